"""Publishes answers and the offsets that caused them in one transaction, so that neither stands without the other.

A transaction costs Kafka the same for one partition as for all partitions of a worker, so a worker has one
transaction at a time, by a producer of its own. aiokafka sends no consumer generation with a transaction's offsets
(KIP-447), so the group alone cannot fence a worker whose partitions have moved. Transactional ids can: opening one
aborts what was open under it and fences its former user. The metadata of a partition's committed offset holds the id
of the producer that may continue from it. Only the partition's gate, a transactional id of its own, may replace that
id, and does so after it has fenced the former producer.

A producer sends each request of a transaction at most once, and is not used after its first failure. aiokafka 0.14
speaks version 0 of Kafka's transactional requests. Before KIP-890 the broker cannot tell a late request of one
transaction from a request of the next one under the same producer epoch: an `EndTxn` that was delayed on a lost
connection commits half of the next transaction, and a delayed `TxnOffsetCommit` moves a committed offset back.
aiokafka sends such a request again on a new connection and keeps using the producer (not reported upstream). Here a
transactional request without an answer ends the producer with `OutcomeUnknown`, because the request may still arrive;
its owner opens a producer under another transactional id and fences this one, as after any other failure.
"""

import asyncio
import logging
from asyncio import Future
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple
from uuid import uuid4

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError, NodeNotReadyError, ProducerFenced, TransactionalIdAuthorizationFailed
from aiokafka.producer import sender
from aiokafka.protocol.transaction import (
    AddOffsetsToTxnRequest,
    AddPartitionsToTxnRequest,
    EndTxnRequest,
    TxnOffsetCommitRequest,
)
from aiokafka.structs import OffsetAndMetadata

from stream_rec.config import Settings
from stream_rec.kafka.access_control import transactions
from stream_rec.kafka.aiokafka_compat import correct
from stream_rec.kafka.connection import access
from stream_rec.kafka.topic_guard import valid
from stream_rec.kafka.topics import BATCH_BYTES, DEAD_LETTER_ROOM

REQUEST_TIMEOUT_MS = 5_000
"""How long a request waits for its answer, milliseconds. aiokafka waits 40 s, longer than a transaction may last."""
RETRY_BACKOFF_MS = 5
"""Pause before a request that the broker asks to repeat. It asks for that right after a commit: with aiokafka's 100 ms
the 99th percentile of a transaction is 130 ms."""

TRANSACTIONAL = (AddPartitionsToTxnRequest, AddOffsetsToTxnRequest, TxnOffsetCommitRequest, EndTxnRequest)


log = logging.getLogger(__name__)
TRANSACTION_MS = 15_000
"""After which Kafka ends a transaction whose producer is gone, milliseconds."""
Committed = Callable[[Sequence[TopicPartition]], Awaitable[Mapping[TopicPartition, OffsetAndMetadata]]]
"""What the group has committed in which of the partitions that are asked for."""


class OutcomeUnknown(ProducerFenced):  # type: ignore[misc]  # aiokafka is partly typed
    """A transactional request got no answer, or one that ends the producer: its transaction may stand or not."""


class TransactionalProducer(AIOKafkaProducer):  # type: ignore[misc]
    """An `AIOKafkaProducer` for transactions alone; takes its arguments, of which `transactional_id` is required.

    Every call of a transaction raises `OutcomeUnknown` once a transactional request has failed without an answer.
    """

    def __init__(self, *, transactional_id: str, **options: Any) -> None:
        super().__init__(
            transactional_id=transactional_id,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
            retry_backoff_ms=RETRY_BACKOFF_MS,
            **options,
        )
        self._sender: sender.Sender = _Sender(
            _Client(self.client),
            acks=-1,  # all: a transaction takes nothing less
            txn_manager=self._txn_manager,
            retry_backoff_ms=RETRY_BACKOFF_MS,
            message_accumulator=self._message_accumulator,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
        )

    async def begin_transaction(self) -> None:
        if self._txn_manager.is_fatal_error():  # aiokafka asserts that it is not
            self._txn_manager.wait_for_transaction_end().result()
        await super().begin_transaction()


class _Unanswered(Exception):  # noqa: N818 - aiokafka must not take it for an error after which it sends again
    """A transactional request was sent, and no answer came. Not a `KafkaError`, which aiokafka repeats a request on."""


class _Client:
    """An aiokafka client that raises `_Unanswered` where a transactional request may have reached the broker."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def send(self, node_id: int, request: Any, **options: Any) -> Any:
        try:
            return await self._client.send(node_id, request, **options)
        except NodeNotReadyError:  # there was no connection: nothing was sent
            raise
        except KafkaError as error:
            if isinstance(request, TRANSACTIONAL):
                raise _Unanswered(f"{type(request).__name__}: {type(error).__name__}") from error
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


class _Sender(sender.Sender):  # type: ignore[misc]
    """Fails with `OutcomeUnknown`, and leaves no request behind that goes on after that.

    aiokafka's sender logs a traceback, and each Produce request that is still on its way raises into nothing.
    """

    def __init__(self, client: Any, **options: Any) -> None:
        super().__init__(client, **options)
        self._requests: set[asyncio.Task[Any]] = set()

    def _maybe_do_transactional_request(self) -> "asyncio.Task[Any] | None":
        task = super()._maybe_do_transactional_request()
        return None if task is None else self._listed(asyncio.create_task(_transactional(task)))

    async def _send_produce_req(self, node_id: int, batches: Any) -> None:
        self._listed(asyncio.current_task())
        await super()._send_produce_req(node_id, batches)

    def _listed(self, task: "asyncio.Task[Any] | None") -> "asyncio.Task[Any] | None":
        if task is not None:
            self._requests.add(task)
            task.add_done_callback(self._requests.discard)
        return task

    def _fail_all(self, task: "asyncio.Task[Any]") -> None:
        if not task.cancelled() and task.exception() is not None:
            for request in self._requests:
                request.cancel()
        super()._fail_all(task)

    async def _do_add_partitions_to_txn(self, tps: Any) -> Any:
        node_id = await self._find_coordinator(sender.CoordinationType.TRANSACTION, self._txn_manager.transactional_id)
        return await _AddPartitions(self, tps).do(node_id)


async def _transactional(request: Awaitable[Any]) -> Any:
    """Awaits a transactional request; raises `OutcomeUnknown` for what aiokafka's sender would log as unexpected."""
    try:
        return await request
    except (ProducerFenced, TransactionalIdAuthorizationFailed):  # say what they are
        raise
    except (KafkaError, _Unanswered) as error:
        raise OutcomeUnknown(str(error) or type(error).__name__) from error


class _AddPartitions(sender.AddPartitionsToTxnHandler):  # type: ignore[misc]
    """Pauses no longer than for other requests while Kafka finishes the transaction before; aiokafka pauses 20 ms."""

    def handle_response(self, resp: Any) -> float | None:
        pause: float | None = super().handle_response(resp)
        return pause if pause is None else min(pause, self._default_backoff)


class OutputRecord(NamedTuple):
    """A record to publish because of a window."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()


class PartitionOutput(NamedTuple):
    """What came of some windows of a partition."""

    replies: Sequence[OutputRecord]
    offset: int
    """Of the next window to read."""


class TransactionalPublisher:
    """The transactional producer of a worker, for the partitions of the windows topic that it has taken over."""

    def __init__(self, producer: TransactionalProducer, mark: str, settings: Settings) -> None:
        self._producer = producer
        self._mark = mark
        self._settings = settings
        self._topics = committed_for(mark, settings)
        self.partitions: set[TopicPartition] = set()

    @classmethod
    async def open(
        cls, settings: Settings, topics: str = "", batch_bytes: int = BATCH_BYTES
    ) -> "TransactionalPublisher":
        """One that nobody has barred yet, without a partition; raises `KafkaError` when Kafka refuses.

        `topics` is what its commits are valid for, see `topic_guard`: it becomes a part of the id. `batch_bytes` limits
        the records that are written together.
        """
        mark = f"{transactions(settings)}{uuid4().hex}"
        mark += f".{topics}" if topics else ""
        return cls(await _start(mark, settings, batch_bytes), mark, settings)

    async def acquire_partition(self, partition: TopicPartition, begin: int, committed: Committed) -> int:
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

    async def publish(self, done: Mapping[TopicPartition, PartitionOutput]) -> None:
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

    async def _send(self, reply: OutputRecord, partition: int) -> "Future[Any]":
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
