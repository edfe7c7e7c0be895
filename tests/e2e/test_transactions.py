"""Fencing: whoever opens a partition's outlet bars the former owner, however far that one had come."""

import random
from collections.abc import Callable

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from stream_rec.config import Settings
from stream_rec.pipeline import topics
from stream_rec.pipeline.connection import access, connect
from stream_rec.pipeline.transactions import Outlet, Reply
from tests.e2e.kafka import read_topic

pytestmark = pytest.mark.e2e


@pytest.fixture
async def settings(make_settings: Callable[..., Settings]) -> Settings:
    made = make_settings(partitions=1, max_message_bytes=1 << 16)
    await topics.create(made)
    return made


async def committed(settings: Settings) -> int | None:
    async with connect(access(settings)) as admin:
        offsets = await admin.list_consumer_group_offsets(settings.worker_group)
    found = offsets.get(TopicPartition(settings.windows_topic, 0))
    return None if found is None else found.offset


def reply(settings: Settings, text: str) -> Reply:
    return Reply(settings.recommendations_topic, b"u", text.encode())


async def test_who_lost_the_partition_can_neither_publish_nor_move_the_offset(settings: Settings) -> None:
    partition = TopicPartition(settings.windows_topic, 0)
    former = await Outlet.open(partition, settings)
    await former.publish([reply(settings, "first")], 1)
    heir = await Outlet.open(partition, settings)
    with pytest.raises(KafkaError):
        await former.publish([reply(settings, "too late")], 2)
    assert await committed(settings) == 1
    await heir.publish([reply(settings, "second")], 2)
    assert await committed(settings) == 2
    assert [one.value for one in await read_topic(settings, settings.recommendations_topic)] == [b"first", b"second"]
    await former.close()
    await heir.close()


async def test_a_transaction_that_was_open_when_the_partition_moved_is_as_if_it_had_never_begun(
    settings: Settings,
) -> None:
    partition = TopicPartition(settings.windows_topic, 0)
    former = await Outlet.open(partition, settings)
    producer = former._producer
    await producer.begin_transaction()
    await producer.send_and_wait(settings.recommendations_topic, b"half done", key=b"u", partition=0)
    await producer.send_offsets_to_transaction({partition: 1}, settings.worker_group)
    heir = await Outlet.open(partition, settings)
    with pytest.raises(KafkaError):
        await producer.commit_transaction()
    assert await committed(settings) is None
    await heir.publish([reply(settings, "whole")], 1)
    assert [one.value for one in await read_topic(settings, settings.recommendations_topic)] == [b"whole"]
    await former.close()
    await heir.close()


async def test_an_answer_that_kafka_refuses_takes_its_offset_with_it(settings: Settings) -> None:
    partition = TopicPartition(settings.windows_topic, 0)
    larger = settings.model_copy(update={"max_message_bytes": 2 * settings.max_message_bytes})
    outlet = await Outlet.open(partition, larger)
    noise = random.Random(0).randbytes(settings.max_message_bytes + 1)  # more than the topic takes
    with pytest.raises(MessageSizeTooLargeError):
        await outlet.publish([reply(settings, "small"), Reply(settings.recommendations_topic, b"u", noise)], 1)
    await outlet.close()
    assert await committed(settings) is None
    assert await read_topic(settings, settings.recommendations_topic) == []
