"""Publishing answers together with the offsets that caused them, so that neither stands without the other.

aiokafka sends no consumer generation with a transaction's offsets, so the group alone can't fence a worker whose
partitions have moved. Each partition therefore has a transactional id of its own: whoever opens it ends the former
owner's open transaction and bars it from any other, and only then reads where to go on.
"""

import logging
from asyncio import Future
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError

from stream_rec.config import Settings
from stream_rec.pipeline.connection import access
from stream_rec.pipeline.rights import transactions
from stream_rec.pipeline.topics import DEAD_LETTER_ROOM

log = logging.getLogger(__name__)

TRANSACTION_MS = 15_000
"""After which Kafka ends a transaction whose producer is gone, milliseconds."""


class Reply(NamedTuple):
    """A record to publish because of a window."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()


class Outlet:
    """The transactional producer of one partition of the windows topic, for one consumer group."""

    def __init__(self, producer: AIOKafkaProducer, partition: TopicPartition, settings: Settings) -> None:
        self._producer = producer
        self._partition = partition
        self._settings = settings

    @classmethod
    async def open(cls, partition: TopicPartition, settings: Settings) -> "Outlet":
        """Takes the partition over; raises `KafkaError` when Kafka refuses."""
        producer = AIOKafkaProducer(
            **access(settings),
            transactional_id=f"{transactions(settings)}{partition.partition}",
            transaction_timeout_ms=TRANSACTION_MS,
            max_batch_size=1 << 20,
            max_request_size=settings.max_message_bytes + DEAD_LETTER_ROOM,
            retry_backoff_ms=5,  # right after a commit the broker asks to retry: with the default of 100 p99 is 130 ms
        )
        try:
            await producer.start()
        except BaseException:
            await producer.stop()
            raise
        return cls(producer, partition, settings)

    async def publish(self, replies: Sequence[Reply], offset: int) -> None:
        """Commits `replies` and `offset`, the next one to read, or neither.

        Raises `KafkaError`; the outlet is of no more use then.

        Recommendations go to the partition of the same number, so that their order is that of the events. aiokafka
        would commit without a record that Kafka refuses, so each is waited for: the commit flushes them anyway.
        """
        async with self._producer.transaction():
            sent = [await self._send(reply) for reply in replies]
            await self._producer.send_offsets_to_transaction({self._partition: offset}, self._settings.worker_group)
            for one in sent:
                await one

    async def _send(self, reply: Reply) -> "Future[Any]":
        same = reply.topic == self._settings.recommendations_topic
        sent: Future[Any] = await self._producer.send(
            reply.topic,
            reply.value,
            key=reply.key,
            partition=self._partition.partition if same else None,
            headers=reply.headers,
        )
        sent.add_done_callback(_heard)
        return sent

    async def close(self) -> None:
        """Gives the partition up. An open transaction is left to its time-out or to the next owner."""
        try:
            await self._producer.stop()
        except KafkaError as error:
            log.warning("a producer could not be closed in order: %s", type(error).__name__)
        # what was fenced off has failed with what `publish` has raised already
        batches = chain.from_iterable(self._producer._message_accumulator._batches.values())
        ends = [self._producer._txn_manager.wait_for_transaction_end(), *(batch._drain_waiter for batch in batches)]
        for end in ends:
            if end is not None and end.done():
                _heard(end)


def _heard(sent: "Future[Any]") -> None:
    """`publish` raises the first failure: the others are only kept from being reported again."""
    if not sent.cancelled():
        sent.exception()
