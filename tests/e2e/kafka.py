"""What the tests do with a real Kafka: write bytes, read a topic to its end, ask how far a group is."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import NewPartitions
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import GroupCoordinatorNotAvailableError

from stream_rec import config
from stream_rec.config import Settings
from stream_rec.kafka.access_control import check_access, on
from stream_rec.kafka.connection import access, connect
from stream_rec.kafka.consumer import make_consumer
from stream_rec.messages import Event, Window, encode, read_window

LARGE = 64 << 20


class Sent(NamedTuple):
    key: bytes | None
    value: bytes | None


BOMB = Sent(b"bomb", b"{" + b" " * (20 << 20))
"""Larger than a topic takes, by default, and 20 KB in a batch compressed by gzip."""


def settings_for(folder: Path, **changes: Any) -> Settings:
    unique = uuid.uuid4().hex[:8]
    names = ("events", "windows", "items", "recommendations", "dead_letter")
    given: dict[str, Any] = {f"{name}_topic": f"{unique}-{name}" for name in names}
    given |= {"agents_group": f"{unique}-agents", "worker_group": f"{unique}-worker", "cache_dir": folder}
    given |= {"agents_metrics_port": 0, "worker_metrics_port": 0, "console_port": 0, "partitions": 2}
    return config.load_settings(**{**given, **changes})


def sent(user: str, item: str = "tea", **fields: Any) -> Sent:
    """A good event as it stands in the topic."""
    given = {"user_id": user, "event_type": "view", "timestamp": time.time(), "item_id": item} | fields
    return Sent(user.encode(), encode(Event(**given)))


async def produce(
    settings: Settings, records: Iterable[Sent], topic: str = "", **producer: Any
) -> list[tuple[int, int]]:
    """Writes to `topic` (the events) and returns each record's partition and offset."""
    options = {**access(settings), "max_request_size": LARGE, "linger_ms": 1}
    async with AIOKafkaProducer(**options | producer) as one:
        futures = [await one.send(topic or settings.events_topic, value, key=key) for key, value in records]
        return [(done.partition, done.offset) for done in [await future for future in futures]]


async def produce_nothing(settings: Settings, topic: str) -> tuple[int, int]:
    """Writes a record with neither key nor value, which aiokafka's `send` refuses; returns partition and offset."""
    async with AIOKafkaProducer(**access(settings)) as one:
        batch = one.create_batch()
        batch.append(key=None, value=None, timestamp=None)
        done = await (await one.send_batch(batch, topic, partition=0))
        return done.partition, done.offset


async def produce_batch(settings: Settings, batch: bytes, topic: str = "", partition: int = 0) -> int:
    """Writes a batch of `tests.batches` to a partition of `topic` (the events); returns its first offset."""
    async with AIOKafkaProducer(**access(settings), max_request_size=LARGE) as producer:
        builder = producer.create_batch()
        builder.append(timestamp=None, key=None, value=None)
        builder.close()
        builder._buffer = bytearray(batch)
        stored = await producer.send_batch(builder, topic or settings.events_topic, partition=partition)
        return int((await stored).offset)


@asynccontextmanager
async def whole(settings: Settings, topic: str) -> AsyncIterator[tuple[AIOKafkaConsumer, dict[TopicPartition, int]]]:
    """A consumer at the beginning of all partitions of a topic, and where they end."""
    count = (await check_access(access(settings), *on("Read", topic)))[topic]
    partitions = [TopicPartition(topic, number) for number in range(count)]
    async with make_consumer(access(settings), max_partition_fetch_bytes=LARGE, fetch_max_wait_ms=20) as consumer:
        consumer.assign(partitions)
        await consumer.seek_to_beginning()
        yield consumer, await consumer.end_offsets(partitions)


async def read_topic(settings: Settings, topic: str) -> list[ConsumerRecord]:
    """All committed records of a topic, partition by partition."""
    records: list[ConsumerRecord] = []
    async with whole(settings, topic) as (consumer, ends):
        while any([await consumer.position(partition) < end for partition, end in ends.items()]):
            for batch in (await consumer.getmany(timeout_ms=20)).values():
                records += batch
    return sorted(records, key=lambda record: (record.partition, record.offset))


async def windows_in(settings: Settings) -> dict[str, Window | None]:
    """The newest window of every user; None after an erasure."""
    newest = {record.key.decode(): record.value for record in await read_topic(settings, settings.windows_topic)}
    return {user: value and read_window(value) for user, value in newest.items()}


async def waiting(settings: Settings, group: str, topic: str) -> int:
    """Records of `topic` that `group` has not committed yet."""
    async with whole(settings, topic) as (_, ends), connect(access(settings)) as admin:
        try:
            committed = await admin.list_consumer_group_offsets(group)
        except GroupCoordinatorNotAvailableError:  # a new broker has no groups yet
            committed = {}
    return sum(end - max(0, committed[tp].offset if tp in committed else 0) for tp, end in ends.items())


async def alter(settings: Settings, topic: str, **configs: str) -> None:
    """Changes a topic's configuration; returns when the broker shows it."""
    resource = ConfigResource(
        ConfigResourceType.TOPIC, topic, {name.replace("_", "."): value for name, value in configs.items()}
    )
    async with connect(access(settings)) as admin:
        await admin.alter_configs([resource])

        async def shown() -> bool:
            ((answer,),) = [response.resources for response in await admin.describe_configs([resource])]
            return {entry[0]: entry[1] for entry in answer[4]} == resource.configs

        await until(shown)


async def delete(settings: Settings, *topics: str) -> None:
    """Deletes topics; returns when the broker has forgotten them."""
    async with connect(access(settings)) as admin:
        await admin.delete_topics(list(topics))

        async def gone() -> bool:
            return not set(topics) & set(await admin.list_topics())

        await until(gone)


async def add_partitions(settings: Settings, count: int, *topics: str) -> None:
    """Gives topics more partitions, so that each has `count`."""
    async with connect(access(settings)) as admin:
        await admin.create_partitions({topic: NewPartitions(count) for topic in topics})


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Returns when `condition` holds; pytest's own time limit ends a wait that is in vain."""
    while not await condition():  # noqa: ASYNC110 - the other side is another process
        await asyncio.sleep(0.05)
