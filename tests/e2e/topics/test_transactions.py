"""Fencing: whoever takes a partition over bars the former owner, however far that one had come."""

import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError, MessageSizeTooLargeError
from aiokafka.structs import OffsetAndMetadata

from stream_rec.config import Settings
from stream_rec.kafka import topics
from stream_rec.kafka.connection import access
from stream_rec.kafka.consumer import make_consumer
from stream_rec.kafka.transactions import Committed, OutputRecord, PartitionOutput, TransactionalPublisher
from tests.e2e.kafka import read_topic, until

pytestmark = pytest.mark.e2e


@pytest.fixture
async def settings(make_settings: Callable[..., Settings]) -> Settings:
    made = make_settings(partitions=2, max_message_bytes=1 << 16)
    await topics.create(made)
    return made


@pytest.fixture
def first(settings: Settings) -> TopicPartition:
    return TopicPartition(settings.windows_topic, 0)


@pytest.fixture
def second(settings: Settings) -> TopicPartition:
    return TopicPartition(settings.windows_topic, 1)


@pytest.fixture
async def committed(settings: Settings) -> AsyncIterator[Committed]:
    async with make_consumer(access(settings), group_id=settings.worker_group) as one:
        yield one._coordinator.fetch_committed_offsets


async def reached(committed: Committed, offsets: Mapping[TopicPartition, int]) -> None:
    """Returns when just `offsets` are committed: Kafka shows them a moment after it has confirmed a transaction."""

    async def there() -> bool:
        return {partition: found.offset for partition, found in (await committed(list(offsets))).items()} == offsets

    await until(there)


def reply(settings: Settings, text: str) -> OutputRecord:
    return OutputRecord(settings.recommendations_topic, b"u", text.encode())


async def published(settings: Settings) -> list[bytes | None]:
    return [one.value for one in await read_topic(settings, settings.recommendations_topic)]


async def test_who_lost_a_partition_can_neither_publish_nor_move_an_offset(
    settings: Settings, first: TopicPartition, second: TopicPartition, committed: Committed
) -> None:
    former, heir = await TransactionalPublisher.open(settings), await TransactionalPublisher.open(settings)
    assert await former.acquire_partition(first, 0, committed) == 0
    assert await former.acquire_partition(second, 5, committed) == 5
    await former.publish(
        {first: PartitionOutput([reply(settings, "one")], 1), second: PartitionOutput([reply(settings, "two")], 6)}
    )
    assert await heir.acquire_partition(first, 0, committed) == 1
    with pytest.raises(KafkaError):
        await former.publish({first: PartitionOutput([reply(settings, "too late")], 2), second: PartitionOutput([], 7)})
    await reached(committed, {first: 1, second: 6})
    await heir.publish({first: PartitionOutput([reply(settings, "three")], 2)})
    await reached(committed, {first: 2, second: 6})
    assert sorted(map(str, await published(settings))) == ["b'one'", "b'three'", "b'two'"]
    await former.close()
    await heir.close()


async def test_a_transaction_that_was_open_when_the_partition_moved_is_as_if_it_had_never_begun(
    settings: Settings, first: TopicPartition, committed: Committed
) -> None:
    former, heir = await TransactionalPublisher.open(settings), await TransactionalPublisher.open(settings)
    await former.acquire_partition(first, 0, committed)
    producer = former._producer
    await producer.begin_transaction()
    await producer.send_and_wait(settings.recommendations_topic, b"half done", key=b"u", partition=0)
    await former._commit(producer, {first: 1})
    assert await heir.acquire_partition(first, 0, committed) == 0
    with pytest.raises(KafkaError):
        await producer.commit_transaction()
    await reached(committed, {first: 0})
    await heir.publish({first: PartitionOutput([reply(settings, "whole")], 1)})
    assert await published(settings) == [b"whole"]
    await former.close()
    await heir.close()


@pytest.mark.parametrize("asked", [1, 2])
async def test_of_two_that_take_a_partition_over_at_once_the_later_one_has_it(
    settings: Settings, first: TopicPartition, committed: Committed, asked: int
) -> None:
    """Whether the earlier one has barred the owner before them or not, when the later one comes."""
    owner, earlier, later = [await TransactionalPublisher.open(settings) for _ in range(3)]
    await owner.acquire_partition(first, 0, committed)
    await owner.publish({first: PartitionOutput([reply(settings, "owner")], 1)})
    times = 0

    async def overtaken(partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, OffsetAndMetadata]:
        nonlocal times
        times += 1
        found = await committed(partitions)
        if times == asked:
            assert await later.acquire_partition(first, 0, committed) == 1
        return found

    with pytest.raises(KafkaError):
        await earlier.acquire_partition(first, 0, overtaken)
    assert not earlier.partitions
    with pytest.raises(KafkaError):
        await owner.publish({first: PartitionOutput([reply(settings, "barred")], 9)})
    await later.publish({first: PartitionOutput([reply(settings, "later")], 2)})
    await reached(committed, {first: 2})
    assert await published(settings) == [b"owner", b"later"]
    for outlet in (owner, earlier, later):
        await outlet.close()


async def test_an_answer_that_kafka_refuses_takes_all_offsets_with_it(
    settings: Settings, first: TopicPartition, second: TopicPartition, committed: Committed
) -> None:
    larger = settings.model_copy(update={"max_message_bytes": 2 * settings.max_message_bytes})
    outlet = await TransactionalPublisher.open(larger)
    for partition in (first, second):
        await outlet.acquire_partition(partition, 0, committed)
    noise = random.Random(0).randbytes(settings.max_message_bytes + 1)  # more than the topic takes
    refused = PartitionOutput([OutputRecord(settings.recommendations_topic, b"u", noise)], 1)
    with pytest.raises(MessageSizeTooLargeError):
        await outlet.publish({first: PartitionOutput([reply(settings, "small")], 1), second: refused})
    await outlet.close()
    await reached(committed, {first: 0, second: 0})
    assert await published(settings) == []
