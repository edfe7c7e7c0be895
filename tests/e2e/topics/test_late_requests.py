"""Transactional requests that reach the broker after their transaction is over (KIP-890).

The proxy resets the connection of a request and delivers it later. `LATE_WINDOWS=4000` lengthens the random load.
"""

import asyncio
import logging
import os
import random
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from stream_rec.config import Settings
from stream_rec.kafka import topics, transactions
from stream_rec.kafka.connection import access
from stream_rec.kafka.consumer import make_consumer
from stream_rec.kafka.transactions import (
    Committed,
    OutcomeUnknown,
    OutputRecord,
    PartitionOutput,
    TransactionalPublisher,
)
from stream_rec.local.broker import Broker
from tests.e2e.kafka import read_topic, settings_for, until
from tests.e2e.proxy import HOST, ApiKey, KafkaProxy

pytestmark = pytest.mark.e2e

WINDOWS = int(os.environ.get("LATE_WINDOWS", "600"))
"""Of the random load, in two partitions."""
LATE_S = 0.1
"""The longest delay of a request in the random load, seconds."""


@pytest.fixture(scope="module")
def proxied() -> Iterator[tuple[KafkaProxy, Broker]]:
    proxy = KafkaProxy()
    with socket.create_server((HOST, 0)) as free:
        direct = free.getsockname()[1]
    with Broker(port=direct, listeners=["PROXIED"], properties=proxy.properties(direct)) as broker:
        yield proxy, broker


class Worker:
    """Answers numbered windows of two partitions as a worker does; the answer to a window is its place."""

    def __init__(self, settings: Settings, committed: Committed) -> None:
        self.settings = settings
        self._committed = committed
        self._partitions = [TopicPartition(settings.windows_topic, number) for number in range(settings.partitions)]
        self._outlet: TransactionalPublisher | None = None
        self.failures: Counter[str] = Counter()
        self.places: dict[int, int] = {}
        """The next window to answer, by partition."""

    async def committed(self) -> dict[int, int]:
        found = await self._committed(self._partitions)
        return {partition.partition: at.offset for partition, at in found.items()}

    async def take_over(self) -> None:
        """Opens another outlet, as after any failure, and goes on from what is committed. Raises `KafkaError`."""
        await self.close()
        self._outlet = await TransactionalPublisher.open(self.settings)
        for one in self._partitions:
            self.places[one.partition] = await self._outlet.acquire_partition(one, 0, self._committed)

    async def publish(self, ends: Mapping[int, int]) -> None:
        """Answers the next windows up to `ends` in one transaction. Raises `KafkaError`."""
        assert self._outlet is not None
        await self._outlet.publish(
            {
                self._partitions[number]: PartitionOutput(
                    [self._answer(number, at) for at in range(self.places[number], end)], end
                )
                for number, end in ends.items()
            }
        )
        self.places |= ends

    async def answer_up_to(self, ends: Mapping[int, int]) -> None:
        """Has every window before `ends` answered, whatever fails."""
        while ahead := {number: end for number, end in ends.items() if self.places[number] < end}:
            try:
                await self.publish(ahead)
            except KafkaError as error:
                await self.recover(error)

    async def recover(self, error: KafkaError) -> None:
        while True:
            self.failures[type(error).__name__] += 1
            try:
                await self.take_over()
            except KafkaError as another:
                error = another
            else:
                return

    async def close(self) -> None:
        if self._outlet is not None:
            await self._outlet.close()

    def _answer(self, partition: int, at: int) -> OutputRecord:
        return OutputRecord(self.settings.recommendations_topic, b"u", f"{partition}.{at}".encode())


@pytest.fixture
async def worker(proxied: tuple[KafkaProxy, Broker], tmp_path: Path) -> AsyncIterator[Worker]:
    """Connected through the proxy; the rest of the test is not."""
    proxy, broker = proxied
    direct = settings_for(tmp_path, bootstrap_servers=broker.bootstrap)
    await topics.create(direct)
    async with (
        proxy.serving(broker.ports["PROXIED"]),
        make_consumer(access(direct), group_id=direct.worker_group) as consumer,
    ):
        one = Worker(
            direct.model_copy(update={"bootstrap_servers": proxy.bootstrap}),
            consumer._coordinator.fetch_committed_offsets,
        )
        await one.take_over()
        yield one
        proxy.clear()
        await one.close()


@pytest.fixture
def proxy(proxied: tuple[KafkaProxy, Broker]) -> KafkaProxy:
    return proxied[0]


@pytest.fixture
def direct(proxied: tuple[KafkaProxy, Broker], worker: Worker) -> Settings:
    return worker.settings.model_copy(update={"bootstrap_servers": proxied[1].bootstrap})


async def answered(settings: Settings) -> list[str]:
    return sorted(str(one.value, "ascii") for one in await read_topic(settings, settings.recommendations_topic))


async def stands(worker: Worker, direct: Settings, ends: Mapping[int, int]) -> None:
    """Every window before `ends` has one answer, and the offsets that an owner would go on from are `ends`."""

    async def committed() -> bool:  # Kafka shows the offsets of a transaction a moment after its end
        return await worker.committed() == ends

    assert await answered(direct) == sorted(f"{number}.{at}" for number, end in ends.items() for at in range(end))
    await until(committed)


async def test_a_late_commit_does_not_commit_half_of_the_next_transaction(
    worker: Worker, proxy: KafkaProxy, direct: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    late = proxy.add(ApiKey.END_TXN, delay_s=None, reset="on request")
    await worker.answer_up_to({0: 1})
    produced, gate = proxy.add(ApiKey.PRODUCE), proxy.add(ApiKey.TXN_OFFSET_COMMIT, delay_s=None)
    going = asyncio.create_task(worker.answer_up_to({0: 2, 1: 1}))
    await produced.answer()
    await gate.arrived()  # the answers of the second transaction stand in the log, their offsets do not
    late.release()
    await late.answer()
    gate.release()
    await going
    await stands(worker, direct, {0: 2, 1: 1})
    assert not [record for record in caplog.records if record.exc_info]


async def test_a_late_commit_does_not_commit_offsets_without_their_answers(
    worker: Worker, proxy: KafkaProxy, direct: Settings
) -> None:
    late = proxy.add(ApiKey.END_TXN, delay_s=None, reset="on request")
    await worker.answer_up_to({0: 1})
    slow, offsets = proxy.add(ApiKey.PRODUCE, delay_s=None), proxy.add(ApiKey.TXN_OFFSET_COMMIT)
    going = asyncio.create_task(worker.answer_up_to({0: 2}))
    await slow.arrived()
    await offsets.answer()
    late.release()
    await late.answer()
    slow.release()
    await going
    await worker.answer_up_to({0: 3})
    await stands(worker, direct, {0: 3, 1: 0})


async def test_late_offsets_take_no_committed_offset_back(worker: Worker, proxy: KafkaProxy, direct: Settings) -> None:
    late = proxy.add(ApiKey.TXN_OFFSET_COMMIT, delay_s=None, reset="on request")
    await worker.answer_up_to({0: 1})
    await worker.answer_up_to({0: 2})
    gate = proxy.add(ApiKey.END_TXN, delay_s=None)
    going = asyncio.create_task(worker.answer_up_to({1: 1}))
    await gate.arrived()
    late.release()
    await late.answer()
    gate.release()
    await going
    await stands(worker, direct, {0: 2, 1: 1})
    await worker.take_over()
    assert worker.places == {0: 2, 1: 1}


async def test_late_requests_of_a_barred_owner_change_nothing(
    worker: Worker, proxy: KafkaProxy, direct: Settings
) -> None:
    late = [proxy.add(key, delay_s=None, reset="on request") for key in (ApiKey.TXN_OFFSET_COMMIT, ApiKey.END_TXN)]
    with pytest.raises(KafkaError):
        await worker.publish({0: 1})
    for one in late:
        one.times = 0  # what follows is not disturbed
    await worker.take_over()
    await worker.answer_up_to({0: 1})
    gate = proxy.add(ApiKey.TXN_OFFSET_COMMIT, delay_s=None)
    going = asyncio.create_task(worker.answer_up_to({0: 2}))
    await gate.arrived()
    for one in late:
        one.release()
        if one.caught:
            await one.answer()
    gate.release()
    await going
    await stands(worker, direct, {0: 2, 1: 0})


async def test_a_commit_whose_answer_is_lost_ends_its_producer(
    worker: Worker, proxy: KafkaProxy, direct: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "REQUEST_TIMEOUT_MS", 500)
    await worker.take_over()
    proxy.add(ApiKey.END_TXN, mute=True)
    with pytest.raises(OutcomeUnknown, match="EndTxn"):
        await worker.publish({0: 1})
    with pytest.raises(OutcomeUnknown, match="EndTxn"):
        await worker.publish({0: 2})
    await worker.take_over()
    assert worker.places == {0: 1, 1: 0}
    await stands(worker, direct, {0: 1, 1: 0})


@pytest.mark.parametrize("seed", range(3))
async def test_under_random_late_requests_every_window_has_one_answer(
    worker: Worker, proxy: KafkaProxy, direct: Settings, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "aiokafka")
    draw = random.Random(seed)
    per_partition = WINDOWS // 2

    async def disturb() -> None:
        while True:
            await asyncio.sleep(draw.uniform(0.1, 0.3))
            proxy.add(draw.choice(list(ApiKey)), delay_s=draw.uniform(0, LATE_S), reset="on request")
            if draw.random() < 0.2:
                proxy.reset()

    disturbing = asyncio.create_task(disturb())
    while min(worker.places.values()) < per_partition:
        some = draw.choice([[0], [1], [0, 1]])
        try:
            await worker.publish({one: min(per_partition, worker.places[one] + draw.randint(1, 8)) for one in some})
        except KafkaError as error:
            await worker.recover(error)
        if draw.random() < 0.025:  # the partitions move for another reason
            await worker.recover(KafkaError())
    disturbing.cancel()
    await asyncio.sleep(2 * LATE_S)  # what is late arrives
    assert sum(fault.caught for fault in proxy.faults), "nothing was disturbed"
    await stands(worker, direct, {0: per_partition, 1: per_partition})
    logging.getLogger(__name__).info(
        "%d late requests, failures: %s", sum(fault.caught for fault in proxy.faults), dict(worker.failures)
    )
