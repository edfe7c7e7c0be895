"""Workers whose reading of what their partitions hold takes longer than their group waits."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import CorruptRecordException
from aiokafka.partitioner import DefaultPartitioner
from aiokafka.protocol.fetch import FetchRequest
from prometheus_client import CollectorRegistry

from stream_rec.config import Settings
from stream_rec.health import Health
from stream_rec.kafka import topics
from stream_rec.kafka.connection import access
from stream_rec.kafka.offset_ranges import OffsetRange
from stream_rec.kafka.topic_guard import TopicGuard
from stream_rec.metrics import WorkerMetrics
from stream_rec.models import model_store
from stream_rec.serving.load import load_engine
from stream_rec.worker import loop, statistics_sync
from stream_rec.worker.loop import InferenceLoop
from stream_rec.worker.main import _fit
from stream_rec.worker.model_runner import ModelRunner
from tests.e2e.kafka import until
from tests.e2e.windows import all_done, answers, windows, write
from tests.tiny import CAPACITY, STRIDE, tiny_model

pytestmark = pytest.mark.e2e

WAITS_S, READS_S = 3.0, 4.0
"""A member hears of a rebalance with its next heartbeat, up to 1.2 s later: the group must wait for longer."""

REMEMBER = statistics_sync.StatisticsSync.replay_until


@pytest.fixture
async def settings(
    make_settings: Callable[..., Settings],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Settings:
    model_store.save(tiny_model(), tmp_path / "model")
    made = make_settings(model=tmp_path / "model", capacity=CAPACITY, stride=STRIDE, coalesce=False, memory="own")
    await topics.create(made)
    remember = statistics_sync.StatisticsSync.replay_until

    async def slowly(self: statistics_sync.StatisticsSync, spans: Mapping[TopicPartition, OffsetRange]) -> int:
        await asyncio.sleep(READS_S)
        return await remember(self, spans)

    monkeypatch.setattr(statistics_sync.StatisticsSync, "replay_until", slowly)
    monkeypatch.setattr(loop, "REBALANCE_MS", int(1_000 * WAITS_S))
    return made


async def worker_of(settings: Settings) -> InferenceLoop:
    metrics = WorkerMetrics(CollectorRegistry())
    host = await ModelRunner.open(settings, metrics, load_engine)
    await host.follow_catalog()
    health = Health(most_waiting=1_000)
    return InferenceLoop(settings, host, metrics, health, TopicGuard(access(settings), await _fit(settings), health))


@asynccontextmanager
async def running(worker: InferenceLoop) -> AsyncIterator[None]:
    stop = asyncio.Event()
    task = asyncio.create_task(worker.run(stop))
    try:
        yield
    finally:
        stop.set()
        await task
        await worker.runner.close()


def part(*workers: InferenceLoop) -> Callable[[], Awaitable[bool]]:
    """Whether each has taken over one partition, and that is all that it was given."""

    async def each() -> bool:
        return all(len(worker._served) == 1 and worker._served == worker._assigned for worker in workers)

    return each


def taking_over(worker: InferenceLoop) -> Callable[[], Awaitable[bool]]:
    async def begun() -> bool:
        return bool(worker._assigned)

    return begun


async def test_workers_part_their_partitions_however_long_taking_one_over_takes(settings: Settings) -> None:
    """The group waits for three seconds, and two partitions take eight: a worker that acquires them gives way.

    If it did not, each worker would be given both partitions in turn, and the wait for one each would never end. How
    often they begin is not asserted: on a busy machine a worker may miss its heartbeats, and then begins once more.
    """
    made = windows(users=10, rounds=6)
    first, second = await worker_of(settings), await worker_of(settings)
    async with running(first):
        await until(taking_over(first))
        async with running(second):
            await write(settings, made)
            await until(part(first, second))
            await all_done(settings)
            assert await part(first, second)()
    seen = {(one.user_id, one.seq) for one in await answers(settings)}
    assert seen == {(one.user_id, one.n) for one in made}


async def test_a_worker_ends_in_the_midst_of_taking_over(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    async def forever(_self: statistics_sync.StatisticsSync, _spans: Mapping[TopicPartition, OffsetRange]) -> int:
        await asyncio.Event().wait()
        return 0

    monkeypatch.setattr(statistics_sync.StatisticsSync, "replay_until", forever)
    worker = await worker_of(settings)
    async with running(worker):
        await until(taking_over(worker))


async def test_a_partition_that_kafka_cannot_read_is_told_and_counted_and_the_others_are_answered(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics_sync.StatisticsSync, "replay_until", REMEMBER)
    worker = await worker_of(settings)
    made = windows(users=10, rounds=3)
    damaged = TopicPartition(settings.windows_topic, 0)
    heals = asyncio.Event()
    send = AIOKafkaClient.send

    async def sending(client: AIOKafkaClient, node: int, request: Any, **options: Any) -> Any:
        """Kafka's answer, with an error in place of the damaged partition's records."""
        response = await send(client, node, request, **options)
        if isinstance(request, FetchRequest) and not heals.is_set():
            response.topics = [
                (topic, [_corrupted(one) if (topic, one[0]) == damaged else one for one in partitions])
                for topic, partitions in response.topics
            ]
        return response

    monkeypatch.setattr(AIOKafkaClient, "send", sending)
    async with running(worker):
        await write(settings, made)
        partitions = list(range(settings.partitions))
        place = {one.user_id: DefaultPartitioner()(one.user_id.encode(), partitions, partitions) for one in made}
        others = {(one.user_id, one.n) for one in made if place[one.user_id] != damaged.partition}
        assert 0 < len(others) < len(made)

        async def told() -> bool:
            seen = {(one.user_id, one.seq) for one in await answers(settings)}
            return seen == others and "CorruptRecordException" in str(worker._health.unready())

        await until(told)
        assert worker._metrics.failed_fetches._value.get() > 0
        heals.set()
        await all_done(settings)

        async def healthy() -> bool:
            return worker._health.unready() is None

        await until(healthy)
    assert {(one.user_id, one.seq) for one in await answers(settings)} == {(one.user_id, one.n) for one in made}


def _corrupted(partition: tuple[Any, ...]) -> tuple[Any, ...]:
    number, _, *between, _ = partition
    return number, CorruptRecordException.errno, *between, b""
