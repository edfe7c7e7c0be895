"""The worker process: loads the model, serves windows, takes a new model when there is one, ends in order."""

import asyncio
import logging
import os
import signal
from functools import partial

import uvloop
from prometheus_client import CollectorRegistry

from stream_rec.config import Settings
from stream_rec.errors import UserError, end_process
from stream_rec.health import Health, serve
from stream_rec.kafka import access_control, topics
from stream_rec.kafka.access_control import TopicInfo, describe_topics
from stream_rec.kafka.connection import access
from stream_rec.kafka.topic_guard import TopicGuard
from stream_rec.metrics import WorkerMetrics
from stream_rec.runtime.retry import retry_until_available, run_until_stopped
from stream_rec.serving.load import load_engine
from stream_rec.worker.loop import InferenceLoop
from stream_rec.worker.reload import ModelReloader

log = logging.getLogger(__name__)

STOP_S = 8.0
"""How long the last transaction, the goodbye to the group and what the model does just now may take, seconds."""


def run(settings: Settings) -> int:
    """Runs a worker until SIGTERM or Ctrl-C; returns the exit code: 0 after a clean end. SIGHUP: look for a new model.

    Raises `UserError` for a bad model folder, a topic that is missing or changes (`topic_guard`), a broker that doesn't
    answer, a busy metrics port.
    """
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if settings.log_level != "debug":
        logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # what matters of it is said here, in a line
    code: int = uvloop.run(_run(settings))
    return code


async def _run(settings: Settings) -> int:
    stop, look = asyncio.Event(), asyncio.Event()
    for number, event in ((signal.SIGINT, stop), (signal.SIGTERM, stop), (signal.SIGHUP, look)):
        asyncio.get_running_loop().add_signal_handler(number, event.set)
    topics = await retry_until_available(partial(_fit, settings), stop, fail_fast=settings.fail_fast)
    if topics is None:
        return 0
    registry = CollectorRegistry()
    metrics, health = WorkerMetrics(registry), Health(settings.ready_lag)
    port = serve(registry, health, settings.metrics_host, settings.worker_metrics_port)
    log.info("metrics on http://%s:%d/metrics", settings.metrics_host, port)
    told = asyncio.create_task(stop.wait())
    watching = asyncio.create_task(health.watch())
    reloader = ModelReloader(settings, metrics, load_engine, look)
    guard = TopicGuard(access(settings), topics, health)
    guarding = asyncio.create_task(guard.watch())
    serving = asyncio.create_task(_serve(settings, metrics, health, reloader, guard, stop))
    await asyncio.wait({told, serving, guarding}, return_when=asyncio.FIRST_COMPLETED)
    if guarding.done():
        end_process(guarding.result())
    ended, _ = await asyncio.wait({serving}, timeout=STOP_S)
    if not ended:
        log.error("the worker could not end in order; what was not committed is computed again")
        logging.shutdown()
        os._exit(1)
    for task in (told, watching, guarding):
        task.cancel()
    await serving
    log.info("worker ended")
    return 0


async def _fit(settings: Settings) -> dict[str, TopicInfo]:
    """The topics that a worker depends on. Raises `UserError` where it could not do its work."""
    found = await describe_topics(access(settings), *access_control.worker(settings))
    await topics.require_room(settings, settings.recommendations_topic, settings.dead_letter_topic)
    names = settings.windows_topic, settings.recommendations_topic
    windows, recommendations = (found[name].partitions for name in names)
    if recommendations < windows:
        raise UserError(
            f"topic {settings.windows_topic} has {windows} partitions and {settings.recommendations_topic} "
            f"{recommendations}: give {settings.recommendations_topic} as many"
        )
    return {name: found[name] for name in (*names, settings.items_topic)}


async def _serve(
    settings: Settings,
    metrics: WorkerMetrics,
    health: Health,
    reloader: ModelReloader,
    guard: TopicGuard,
    stop: asyncio.Event,
) -> None:
    """Serves with the model that is there and then with each new one, until `stop` is set."""
    runner = await run_until_stopped(reloader.first(), stop)
    if runner is None:
        return
    worker = InferenceLoop(settings, runner, metrics, health, guard)
    watching, serving = asyncio.create_task(reloader.watch(worker)), asyncio.create_task(worker.run(stop))
    try:
        done, _ = await asyncio.wait({watching, serving}, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            await task
    finally:
        for task in (watching, serving):
            task.cancel()
        await asyncio.gather(watching, serving, return_exceptions=True)
        await worker.runner.statistics_sync.close()
        await worker.runner.statistics_sync.save_snapshot()
        await worker.runner.close()
