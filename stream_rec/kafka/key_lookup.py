"""Finding the newest record of a key in a topic, without reading it all."""

import time
from collections import defaultdict
from collections.abc import Collection
from types import TracebackType
from typing import Self

from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.partitioner import DefaultPartitioner

from stream_rec.config import Settings
from stream_rec.errors import UserError
from stream_rec.kafka.access_control import check_access, on
from stream_rec.kafka.connection import Access, access
from stream_rec.kafka.consumer import make_consumer
from stream_rec.pseudonyms import naming

NEAREST = 500
"""Offsets that are read first, from a partition's end; each further step back reads four times as many."""
SILENCE_S = 10.0
"""How long Kafka may send nothing before the search gives up."""


class KeyLookup:
    """Looks through one topic's committed records; an async context manager.

    Raises `UserError` when no broker answers, the topic does not exist, or the broker falls silent.
    """

    def __init__(self, access: Access, topic: str) -> None:
        self._access = access
        self._topic = topic

    async def __aenter__(self) -> Self:
        self._partitions = (await check_access(self._access, *on("Read", self._topic)))[self._topic]
        self._consumer = make_consumer(
            self._access,
            fetch_max_wait_ms=10,  # a step back has to wait for the request that waits at the end
        )
        await self._consumer.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._consumer.stop()

    async def newest(self, keys: Collection[bytes]) -> dict[bytes, ConsumerRecord]:
        """The newest record of each key, tombstones included; a key without a record is left out.

        A key is looked for in the partition that Kafka's own partitioner (murmur2) gives, from the end backwards, so
        that a key written lately is found at once. When it is not there, the other partitions are searched, because
        the writer may partition differently (librdkafka does).
        """
        every = list(range(self._partitions))
        usual: defaultdict[int, set[bytes]] = defaultdict(set)
        for key in keys:
            usual[DefaultPartitioner()(key, every, every)].add(key)
        found: dict[bytes, ConsumerRecord] = {}
        for partition, own in usual.items():
            found |= await self._backwards(partition, own)
        for partition in every:
            found |= await self._backwards(partition, set(keys) - found.keys() - usual[partition])
        return found

    async def everywhere(self, keys: Collection[bytes]) -> dict[tuple[int, bytes], ConsumerRecord]:
        """The newest record of each key in each partition, tombstones included: reads the whole topic where it must."""
        found: dict[tuple[int, bytes], ConsumerRecord] = {}
        for partition in range(self._partitions):
            held = await self._backwards(partition, set(keys))
            found |= {(partition, key): record for key, record in held.items()}
        return found

    async def _backwards(self, partition: int, missing: set[bytes]) -> dict[bytes, ConsumerRecord]:
        if not missing:
            return {}
        where = TopicPartition(self._topic, partition)
        self._consumer.assign([where])
        first = (await self._consumer.beginning_offsets([where]))[where]
        end = (await self._consumer.end_offsets([where]))[where]
        found: dict[bytes, ConsumerRecord] = {}
        step = NEAREST
        while end > first and missing:
            start = max(first, end - step)
            found |= await self._between(where, start, end, missing)
            missing = missing - found.keys()
            end, step = start, 4 * step
        return found

    async def _between(
        self, where: TopicPartition, start: int, end: int, keys: set[bytes]
    ) -> dict[bytes, ConsumerRecord]:
        """The newest record of each key from `start` up to `end`; the position also passes what holds no record."""
        self._consumer.seek(where, start)
        found: dict[bytes, ConsumerRecord] = {}
        position, moved = start, time.monotonic()
        while position < end:
            batches = await self._consumer.getmany(where, timeout_ms=100)
            for record in batches.get(where, ()):
                if record.key in keys and record.offset < end:
                    found[record.key] = record
            before, position = position, await self._consumer.position(where)
            if position > before:
                moved = time.monotonic()
            elif time.monotonic() > moved + SILENCE_S:
                servers = self._access["bootstrap_servers"]
                raise UserError(f"the Kafka broker at {servers} stopped answering: is it still up?")
        return found


async def newest_of(user: str, settings: Settings, topic: str) -> ConsumerRecord | None:
    """The newest record of a user, named by the id or as the topic does; None without one. Raises `UserError`."""
    keys = dict.fromkeys((naming(settings.pseudonym_key_file)(user).encode(), user.encode()))
    async with KeyLookup(access(settings), topic) as search:
        for key in keys:
            if record := (await search.newest({key})).get(key):
                return record
    return None
