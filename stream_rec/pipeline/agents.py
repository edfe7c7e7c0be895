"""The agents: events in, each user's window out, in a faust table whose changelog is the `windows` topic.

Delivery is at least once, and what comes of it exactly once. A window carries the offset of the event applied last, so
that an event read again changes nothing; and whoever takes a partition over looks up which of its events are dead
letters already, or stand before an erasure, which leaves no window to tell. Whether an event is acceptable
depends on the log alone (on Kafka's timestamp of it, not on today's clock): the same log gives the same windows and
dead letters, whatever crashed in between.
"""

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import faust
import uvloop
from aiokafka.errors import KafkaError
from prometheus_client import CollectorRegistry

from stream_rec.config import Settings
from stream_rec.errors import NoBrokerError, UserError, end_process
from stream_rec.health import REBALANCING, Health, serve
from stream_rec.kafka import access_control, topics
from stream_rec.kafka.access_control import TopicInfo, describe_topics
from stream_rec.kafka.connection import access
from stream_rec.kafka.lag import HeldUp, LagMonitor, show_failed
from stream_rec.kafka.record_batches import Unreadable
from stream_rec.kafka.topic_guard import TopicGuard, state_of
from stream_rec.metrics import AgentMetrics
from stream_rec.pipeline import faust_kafka, faust_memory, faust_producer, faust_thread
from stream_rec.pipeline.buried import done
from stream_rec.pipeline.keeper import Keeper
from stream_rec.pseudonyms import fingerprint, naming
from stream_rec.runtime import process
from stream_rec.runtime.process import process_dir
from stream_rec.runtime.retry import retry_until_available

log = logging.getLogger(__name__)

READ = 2_000
"""Most records that are taken from Kafka's client at a time."""
TELL_S = 60.0
"""How often the log says how many records were refused, if any were, seconds."""
RETRY_S = 0.5
STOP_S = 8.0
"""How long the last commit and the goodbye to the group may take, seconds."""
CRASHED_S = 1.0
"""The same after a crash, which commits nothing more."""
ROCKSDB = {"driver": "rocksdict", "block_cache_size": 64 << 20, "write_buffer_size": 16 << 20}
"""Bytes, for each partition; faust's defaults are 2 GiB and 64 MiB."""


def build(
    settings: Settings, metrics: AgentMetrics, health: Health, folder: Path, topics: Mapping[str, TopicInfo]
) -> faust.App:
    """The faust app, not started; `folder` is this process's own, for RocksDB. `topics` are those of `_fit`."""
    app = _app(settings, folder)
    app.topic_guard = TopicGuard(access(settings), topics, health)
    app.max_batch_bytes = settings.max_batch_bytes
    events = topics[settings.events_topic]
    app.events_topic_id = events.id
    app.committed_for = state_of(events, topics[settings.windows_topic])
    app.commit_metadata = f"{app.committed_for} {fingerprint(settings.pseudonym_key_file)}".rstrip()
    app.flow_control = faust_kafka.FlowControl()
    app.tables._changelog_queue = faust_kafka.ChangelogQueue(
        maxsize=app.conf.stream_buffer_maxsize, flow_control=app.flow_control, clear_on_resume=True
    )
    raw: dict[str, Any] = {
        "key_type": bytes,
        "value_type": bytes,
        "key_serializer": "raw",
        "value_serializer": "raw",
        "allow_empty": True,
    }
    table = app.Table(
        "windows",
        key_type=bytes,
        value_type=bytes,
        changelog_topic=app.topic(settings.windows_topic, acks=False, maxsize=131_072, **raw),
        options=dict(ROCKSDB) if settings.store == "rocksdb" else {},
    )
    graveyard = app.topic(settings.dead_letter_topic, **raw)
    keeper = Keeper(
        settings,
        metrics,
        table,
        graveyard,
        naming(settings.pseudonym_key_file),
        topic_id=events.id,
        in_several=partial(_in_several, table),
    )

    async def decide_anew(refused: Sequence[faust_producer.Write]) -> None:
        """Events whose windows or dead letters are larger than Kafka takes by now."""
        room = await _room(settings)
        if room == keeper.room:
            raise UserError("Kafka refused a write for its size, and says that it takes such")
        log.warning("Kafka takes windows of up to %d bytes: the events of larger ones become dead letters", room.record)
        await app.producer.quiet()  # a later window of the same user may be on its way
        keeper.room = room
        app.producer.fit(room.batch)
        for event in faust_producer.undo(refused, table):
            faust_producer.during(event, partial(keeper.take, event.message))
        metrics.users.set(len(table.data))

    async def take(stream: Any) -> None:
        app.producer.table, app.producer.decide_anew = table, decide_anew
        done = app.consumer.done
        try:
            async for event in stream.events():
                await app.producer.room()
                message = event.message
                unread = message.record if isinstance(message, faust_kafka.NoEvent) else None
                if isinstance(unread, Unreadable):
                    keeper.refuse(message, unread.reason, unread.error)
                elif unread is None:
                    keeper.take(message)
                done[message.tp] = message.offset + 1
        except Exception as error:
            await app.crash(error)
            raise

    async def ready() -> None:
        mine = [tp.partition for tp in app.consumer.assignment() if tp.topic == settings.events_topic]
        while not app.should_stop:
            await app.producer.confirmed()  # dead letters of this process's own may be on their way
            try:
                keeper.recall(await done(settings, mine, app.committed_for, events.id))
                break
            except (KafkaError, UserError) as error:
                log.warning("what is done already can't be read (%s): trying again", type(error).__name__)
                await asyncio.sleep(RETRY_S)
        metrics.users.set(len(table.data))
        process.freeze_gc()
        health.not_ready_reasons.discard(REBALANCING)
        log.info("agents ready: %d partitions", len(mine))

    async def moving(*_: Any, **__: Any) -> None:
        health.not_ready_reasons.add(REBALANCING)

    lag, held_up = LagMonitor(metrics.lag, health), HeldUp(metrics.held_up)

    async def measure() -> None:
        show_failed(app.consumer.failed_fetches, metrics.failed_fetches, health)
        held_up.show(app.consumer.readable(settings.events_topic), time.monotonic())
        await lag.measure(app.consumer.waiting(settings.events_topic))

    async def tell() -> None:
        if refused := keeper.refused.most_common():
            log.warning("refused in the last minute: %s", ", ".join(f"{count} {reason}" for reason, count in refused))
            keeper.refused.clear()

    app.agent(app.topic(settings.events_topic, **raw), name="windows", concurrency=1)(take)
    app.on_partitions_revoked.connect(moving)
    table.on_recover(ready)
    app.timer(interval=1.0)(measure)
    app.timer(interval=TELL_S)(tell)
    return app


def _in_several(table: Any, key: bytes) -> bool:
    """Whether more than one partition of this process has a window of `key`."""
    store = table.data
    if isinstance(store, faust_memory.Memory):
        return store.in_several(key)
    return sum(db.get(key) is not None for db in store._dbs.values()) > 1


def run(settings: Settings) -> int:
    """Runs one agent process until SIGTERM or Ctrl-C; returns 0 once everything done is committed.

    What can't end in order (a crash, or Kafka is away) ends the process with code 1; no event is lost by that.
    Raises `UserError` when no broker answers, a topic is missing or changes (`topic_guard`), or the metrics port is
    taken.
    """
    _log(settings.log_level)
    uvloop.run(_run(settings))
    return 0


async def _run(settings: Settings) -> None:
    told = asyncio.Event()  # one for the whole life of the process: a signal that comes during the start counts too
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    registry = CollectorRegistry()
    metrics, health = AgentMetrics(registry), Health(settings.ready_lag)
    topics = await retry_until_available(partial(_fit, settings), told, fail_fast=settings.fail_fast)
    if topics is None:
        return
    port = serve(registry, health, settings.metrics_host, settings.agents_metrics_port)
    log.info("metrics on http://%s:%d/metrics", settings.metrics_host, port)
    with process_dir(settings.cache_dir / "agents") as folder:
        await _serve(settings, metrics, health, folder, topics, told)


async def _fit(settings: Settings) -> dict[str, TopicInfo]:
    """The events and windows topics; warns of what is odd. Raises `UserError` where agents could not do their work."""
    found = await describe_topics(access(settings), *access_control.agents(settings))
    for problem in await topics.check(settings, *found):
        log.warning("%s", problem)
    await topics.require_room(settings, settings.windows_topic, settings.dead_letter_topic)
    names = settings.events_topic, settings.windows_topic
    events, windows = (found[name].partitions for name in names)
    if events != windows:
        raise UserError(
            f"topic {settings.events_topic} has {events} partitions and {settings.windows_topic} {windows}: "
            f"give {settings.windows_topic} as many"
        )
    return {name: found[name] for name in names}


async def _room(settings: Settings) -> topics.Room:
    """What Kafka takes now. Raises `UserError` where it does not even take dead letters."""
    while True:
        try:
            return await topics.room(settings, settings.windows_topic)
        except NoBrokerError:
            await asyncio.sleep(RETRY_S)


async def _serve(
    settings: Settings,
    metrics: AgentMetrics,
    health: Health,
    folder: Path,
    topics: Mapping[str, TopicInfo],
    told: asyncio.Event,
) -> None:
    """Runs the app until `told` is set, the app stops, or a topic changes."""
    app = build(settings, metrics, health, folder, topics)
    watching = asyncio.create_task(health.watch())
    guarding = asyncio.create_task(app.topic_guard.watch())
    started = asyncio.ensure_future(app.start())
    ends = [asyncio.ensure_future(told.wait()), asyncio.ensure_future(app.wait_until_stopped()), guarding]
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    if guarding.done():
        end_process(guarding.result())
    force = threading.Timer(CRASHED_S if app.crashed else STOP_S, _end)  # faust waits for a thread in the event loop's
    force.daemon = True
    force.start()
    try:
        await app.stop()
        await started
    except Exception as error:  # noqa: BLE001 - whatever it was, the process ends
        log.error("%s at the end", type(error).__name__)
        _end()
    if app.crashed:
        _end()
    force.cancel()
    for end in (*ends, watching):
        end.cancel()
    log.info("agents ended")


def _end() -> None:
    """Ends the process at once: neither the tasks nor the threads of a faust in trouble can be relied on to end."""
    log.error("the agents could not end in order: the next ones read again what these had not committed")
    logging.shutdown()
    os._exit(1)


def _app(settings: Settings, folder: Path) -> faust.App:
    brokers = settings.bootstrap_servers.split(",")
    datadir = str(folder).replace("{", "{{").replace("}", "}}")  # faust formats it
    return faust.App(
        settings.agents_group,
        env={},  # faust would let any BROKER_URL or APP_STORE around win over what stands here
        broker=[f"{faust_kafka.SCHEME}://{address.strip()}" for address in brokers],
        broker_credentials=faust_kafka.credentials(access(settings)),
        store="rocksdb://" if settings.store == "rocksdb" else faust_memory.MEMORY,
        datadir=datadir,
        processing_guarantee="at_least_once",  # its exactly_once swallows errors
        stream_wait_empty=True,
        stream_buffer_maxsize=512,  # events; each may be as large as max_message_bytes
        broker_commit_interval=0.5,
        broker_session_timeout=faust_thread.SESSION_S,
        broker_heartbeat_interval=2.0,
        consumer_max_fetch_size=settings.max_message_bytes,
        broker_max_poll_records=READ,  # all that was fetched at once is tens of thousands, when they lag
        producer_max_request_size=settings.max_message_bytes + topics.DEAD_LETTER_ROOM,
        producer_linger=0.008,  # by default each changelog record goes out alone; all partitions of a burst fit in
        producer_max_batch_size=min(topics.BATCH_BYTES, settings.max_message_bytes),
        producer_request_timeout=40.0,  # of one attempt, before another; faust's default is 20 minutes
        table_standby_replicas=settings.standby_replicas,
        topic_allow_declare=False,  # 'stream-rec topics create' knows the right settings
        topic_disable_leader=True,
        web_enabled=False,
        Table=faust_memory.Table,
    )


def _log(level: str) -> None:
    logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if level == "debug":
        return
    logging.disable(logging.DEBUG)  # faust builds its debug records even where nobody sees them: 8% of the time
    for name in (
        "faust",
        "mode",
        *(module.__name__ for module in (faust_kafka, faust_memory, faust_producer, faust_thread)),
    ):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("faust.topics").setLevel(logging.CRITICAL)  # it would log a refused record, key and all
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # what matters of it is said here, in a line
