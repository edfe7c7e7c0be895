"""Publishing answers together with the offsets that caused them, so that neither stands without the other.

A transaction costs Kafka the same for one partition or for all that a worker serves, so a worker has one at a time, of
a producer of its own. aiokafka sends no consumer generation with a transaction's offsets (KIP-447), so the group alone
can't fence a worker whose partitions have moved; transactional ids can: whoever opens one ends what was open under it
and bars who used it before. Which one that is stands in Kafka: beside the committed offset of a partition stands, as
its metadata, the id of the producer that may go on from it. Only the gate of the partition, a transactional id of its
own, may put another there, after it has barred the former one.

A producer is used until its first failure: a request without an answer may still arrive, and Kafka would take it for
one of the producer's next transaction (see `producer`).
"""

import logging
from asyncio import Future
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple
from uuid import uuid4

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.structs import OffsetAndMetadata

from stream_rec.config import Settings
from stream_rec.kafka.access_control import transactions
from stream_rec.kafka.aiokafka_compat import correct
from stream_rec.kafka.connection import access
from stream_rec.kafka.producer import TransactionalProducer
from stream_rec.kafka.topic_guard import valid
from stream_rec.kafka.topics import BATCH_BYTES, DEAD_LETTER_ROOM

log = logging.getLogger(__name__)

TRANSACTION_MS = 15_000
"""After which Kafka ends a transaction whose producer is gone, milliseconds."""

Committed = Callable[[Sequence[TopicPartition]], Awaitable[Mapping[TopicPartition, OffsetAndMetadata]]]
"""What the group has committed in which of the partitions that are asked for."""


class Reply(NamedTuple):
    """A record to publish because of a window."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()


class Done(NamedTuple):
    """What came of some windows of a partition."""

    replies: Sequence[Reply]
    offset: int
    """Of the next window to read."""


class Outlet:
    """The transactional producer of a worker, for the partitions of the windows topic that it has taken over."""

    def __init__(self, producer: TransactionalProducer, mark: str, settings: Settings) -> None:
        self._producer = producer
        self._mark = mark
        self._settings = settings
        self._topics = committed_for(mark, settings)
        self.partitions: set[TopicPartition] = set()

    @classmethod
    async def open(cls, settings: Settings, topics: str = "", batch_bytes: int = BATCH_BYTES) -> "Outlet":
        """One that nobody has barred yet, without a partition; raises `KafkaError` when Kafka refuses.

        `topics` is what its commits are valid for, see `topic_guard`: it becomes a part of the id. `batch_bytes` limits
        the records that are written together.
        """
        mark = f"{transactions(settings)}{uuid4().hex}"
        mark += f".{topics}" if topics else ""
        return cls(await _start(mark, settings, batch_bytes), mark, settings)

    async def take_over(self, partition: TopicPartition, begin: int, committed: Committed) -> int:
        """Bars the former owner of `partition`; returns the next offset to read.

        That is `begin` where nothing was ever committed for the topics that there are now.

        Raises `KafkaError` when Kafka refuses, or somebody else takes it over meanwhile.
        """
        gate = await _start(f"{transactions(self._settings)}{partition.partition}", self._settings)
        try:
            former = (await committed([partition])).get(partition)
            if former is not None and former.metadata.startswith(transactions(self._settings)):
                await _close(await _start(former.metadata, self._settings))
                former = (await committed([partition])).get(partition)
            position = begin if former is None else former.offset
            if former is not None and not valid(committed_for(former.metadata, self._settings), self._topics):
                log.warning("%s[%d]: answers begin anew, the last commit is for topics that are no more", *partition)
                position = begin
            async with gate.transaction():
                await self._commit(gate, {partition: position})
        finally:
            await _close(gate)
        self.partitions.add(partition)
        return position

    async def publish(self, done: Mapping[TopicPartition, Done]) -> None:
        """Commits all of `done`, replies and offsets, or nothing.

        Raises `KafkaError`; the outlet is of no more use then.

        Recommendations go to the partition of the same number, so that their order is that of the events. aiokafka
        would commit without a record that Kafka refuses, so each is waited for: the commit flushes them anyway.
        """
        async with self._producer.transaction():
            sent = [await self._send(reply, one.partition) for one, (replies, _) in done.items() for reply in replies]
            await self._commit(self._producer, {one: offset for one, (_, offset) in done.items()})
            for one in sent:
                await one

    async def _commit(self, producer: TransactionalProducer, offsets: Mapping[TopicPartition, int]) -> None:
        marked = {partition: OffsetAndMetadata(offset, self._mark) for partition, offset in offsets.items()}
        await producer.send_offsets_to_transaction(marked, self._settings.worker_group)

    async def _send(self, reply: Reply, partition: int) -> "Future[Any]":
        same = reply.topic == self._settings.recommendations_topic
        sent: Future[Any] = await self._producer.send(
            reply.topic,
            reply.value,
            key=reply.key,
            partition=partition if same else None,
            headers=reply.headers,
        )
        sent.add_done_callback(_heard)
        return sent

    async def close(self) -> None:
        """Gives the partitions up. An open transaction is left to its time-out or to the next owner of one of them."""
        await _close(self._producer)


def committed_for(mark: str, settings: Settings) -> str:
    """What a commit with this metadata is valid for: empty where it does not say."""
    own = mark.removeprefix(transactions(settings))
    return "" if own == mark else own.partition(".")[2]


async def _start(transactional_id: str, settings: Settings, batch_bytes: int = BATCH_BYTES) -> TransactionalProducer:
    """Ends what is open under `transactional_id`, and bars who has used it before."""
    producer = TransactionalProducer(
        **access(settings),
        transactional_id=transactional_id,
        transaction_timeout_ms=TRANSACTION_MS,
        max_batch_size=min(batch_bytes, settings.max_message_bytes),
        max_request_size=settings.max_message_bytes + DEAD_LETTER_ROOM,
    )
    correct(producer.client)
    try:
        await producer.start()
    except BaseException:
        await producer.stop()
        raise
    return producer


async def _close(producer: TransactionalProducer) -> None:
    try:
        await producer.stop()
    except KafkaError as error:
        log.warning("a producer could not be closed in order: %s", type(error).__name__)
    # what was fenced off has failed with what was raised already
    batches = chain.from_iterable(producer._message_accumulator._batches.values())
    ends = [producer._txn_manager.wait_for_transaction_end(), *(batch._drain_waiter for batch in batches)]
    for end in ends:
        if end is not None and end.done():
            _heard(end)


def _heard(sent: "Future[Any]") -> None:
    """`publish` raises the first failure: the others are only kept from being reported again."""
    if not sent.cancelled():
        sent.exception()
