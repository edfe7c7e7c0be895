"""A transactional producer that sends each request of a transaction at most once.

aiokafka 0.14 speaks version 0 of Kafka's transactional requests. Before KIP-890 the broker cannot tell a late request
of one transaction from a request of the next one under the same producer epoch: an `EndTxn` that was delayed on a lost
connection commits half of the transaction after it, and a delayed `TxnOffsetCommit` takes a committed offset back.
aiokafka sends such a request again on a new connection and goes on with the same producer (not reported there).

`TransactionalProducer` never sends one twice. If a transactional request gets no answer, nobody can know whether it
still arrives, so the producer fails with `OutcomeUnknown` for good. Its owner opens a producer under another
transactional id and bars this one, as after any other failure.
"""

import asyncio
from collections.abc import Awaitable
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, NodeNotReadyError, ProducerFenced, TransactionalIdAuthorizationFailed
from aiokafka.producer import sender
from aiokafka.protocol.transaction import (
    AddOffsetsToTxnRequest,
    AddPartitionsToTxnRequest,
    EndTxnRequest,
    TxnOffsetCommitRequest,
)

REQUEST_TIMEOUT_MS = 5_000
"""How long a request waits for its answer, milliseconds. aiokafka waits 40 s, longer than a transaction may last."""
RETRY_BACKOFF_MS = 5
"""Pause before a request that the broker asks to repeat. It asks for that right after a commit: with aiokafka's 100 ms
the 99th percentile of a transaction is 130 ms."""

TRANSACTIONAL = (AddPartitionsToTxnRequest, AddOffsetsToTxnRequest, TxnOffsetCommitRequest, EndTxnRequest)


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
