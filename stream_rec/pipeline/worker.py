"""The worker process: loads the model, follows the catalogue, serves windows, ends in order."""

import asyncio
import logging
import os
import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import uvloop
from prometheus_client import CollectorRegistry

from stream_rec import telemetry
from stream_rec.config import Settings
from stream_rec.cores import share_cores
from stream_rec.messages import Item
from stream_rec.pipeline.connection import require
from stream_rec.pipeline.serving import Worker
from stream_rec.pipeline.upserts import Upserts
from stream_rec.telemetry import WorkerMetrics

if TYPE_CHECKING:
    from stream_rec.model.engine import Engine

log = logging.getLogger(__name__)

STOP_S = 8.0
"""How long the last transaction and the goodbye to the group may take, seconds."""


def run(settings: Settings) -> int:
    """Runs a worker until SIGTERM or Ctrl-C; returns the exit code: 0 after a clean end.

    Raises `UserError` for a bad model folder, a missing topic, a broker that doesn't answer, a busy metrics port.
    """
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if settings.log_level != "debug":
        logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # what matters of it is said here, in a line
    code: int = uvloop.run(_run(settings))
    return code


async def _run(settings: Settings) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    answers = (settings.recommendations_topic, settings.dead_letter_topic)
    await require(settings.bootstrap_servers, settings.windows_topic, settings.items_topic, *answers)
    registry = CollectorRegistry()
    metrics = WorkerMetrics(registry)
    port = telemetry.serve(registry, settings.metrics_host, settings.worker_metrics_port)
    log.info("metrics on http://%s:%d/metrics", settings.metrics_host, port)
    torch, texts = ThreadPoolExecutor(1, "torch"), ThreadPoolExecutor(1, "texts")
    told = asyncio.create_task(stop.wait())
    serving = asyncio.create_task(_serve(settings, metrics, torch, texts, stop))
    await asyncio.wait({told, serving}, return_when=asyncio.FIRST_COMPLETED)
    ended, _ = await asyncio.wait({serving}, timeout=STOP_S)
    if not ended:
        log.error("the worker could not end in order; what was not committed is computed again")
        logging.shutdown()
        os._exit(1)
    told.cancel()
    torch.shutdown()
    texts.shutdown()
    await serving
    log.info("worker ended")
    return 0


async def _serve(
    settings: Settings,
    metrics: WorkerMetrics,
    torch: ThreadPoolExecutor,
    texts: ThreadPoolExecutor,
    stop: asyncio.Event,
) -> None:
    """Loads the model, brings the catalogue up to date and serves; the items topic is followed all the while."""
    loop = asyncio.get_running_loop()
    engine = await loop.run_in_executor(torch, load, settings)
    metrics.bytes_per_user.set(engine.incremental.cache.bytes_per_user)

    async def apply(items: Sequence[Item]) -> None:
        news = engine.catalog.news(items)
        if news:
            vectors = await loop.run_in_executor(texts, engine.read, news)
            await loop.run_in_executor(torch, engine.upsert, news, vectors)
            metrics.upserts.inc(len(news))
        available = engine.catalog.count_available()
        metrics.items.labels("yes").set(available)
        metrics.items.labels("no").set(len(engine.catalog) - 1 - available)

    upserts = Upserts(settings, metrics, admit=engine.catalog.admit, known=engine.catalog.find, apply=apply)
    following = asyncio.create_task(upserts.follow())
    serving = asyncio.create_task(_once_caught_up(upserts, Worker(settings, engine, metrics, torch), stop))
    await asyncio.wait({following, serving}, return_when=asyncio.FIRST_COMPLETED)
    try:
        if serving.done():
            await serving
        else:
            await following  # it ends only by failing
    finally:
        for task in (following, serving):
            task.cancel()
        await asyncio.gather(following, serving, return_exceptions=True)


async def _once_caught_up(upserts: Upserts, worker: Worker, stop: asyncio.Event) -> None:
    waits = [asyncio.create_task(event.wait()) for event in (upserts.caught_up, stop)]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    await worker.run(stop)


def load(settings: Settings) -> "Engine":
    """The engine of the settings' model, loaded on the calling thread; importing torch alone takes seconds."""
    share_cores()
    from stream_rec.model.engine import Engine, Limits

    return Engine.load(
        settings.model,
        settings.cache_dir,
        Limits(
            stride=settings.move,
            token_budget=settings.token_budget,
            kv_cache_bytes=settings.kv_cache_gb * 1e9,
            kv_cache_share=settings.kv_cache_share,
            kv_host_bytes=settings.kv_host_gb * 1e9,
            dtype=settings.dtype,
            top_k=settings.top_k,
            interests_k=settings.interests_k,
        ),
        settings.device,
        settings.threads,
    )
