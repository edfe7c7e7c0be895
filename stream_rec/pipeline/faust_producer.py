"""faust's producer, with what it does not tell its consumer put right, see `faust_kafka`."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from aiokafka.errors import IllegalGenerationError
from faust.transport.drivers import aiokafka as driver
from faust.types import FutureMessage

from stream_rec.pipeline.group import unhurried

UNCONFIRMED = 2_000
"""Writes on their way to Kafka at which an agent pauses: a commit waits for as many, a crash repeats little more."""

PRODUCE = (0).to_bytes(2, "big")
"""The key of a request that writes records, behind its length in 4 bytes."""

log = logging.getLogger(__name__)


class Producer(driver.Producer):  # type: ignore[misc]
    """Knows which writes Kafka has not confirmed, and writes nothing for a group that has given this process up."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._unconfirmed: set[FutureMessage] = set()
        self._room = asyncio.Event()
        self._room.set()
        self._refused: BaseException | None = None

    def send_soon(self, fut: FutureMessage) -> None:
        self._unconfirmed.add(fut)
        if len(self._unconfirmed) >= UNCONFIRMED:
            self._room.clear()
        fut.add_done_callback(self._settled)
        super().send_soon(fut)

    async def on_start(self) -> None:
        await super().on_start()
        unhurried(self._producer.client)
        sender = self._producer._sender
        sender._send_produce_req = partial(self._guarded, sender, sender._send_produce_req)

    async def _guarded(self, sender: Any, send: Callable[..., Awaitable[None]], node: int, batches: Any) -> None:
        """Sends to a Kafka node, unless the group has given this process up."""
        if await self.app.consumer.counted() and self._refused is None:
            await guard(sender.client, node, lambda: bool(self.app.consumer.fresh))
            await send(node, batches)
            return
        for batch in batches.values():
            batch.failure(exception=IllegalGenerationError())
        sender._in_flight.remove(node)
        sender._muted_partitions.difference_update(batches)

    async def room(self) -> None:
        """Waits while too many writes are on their way: faust's own queue of them has no end."""
        await self._room.wait()

    async def confirmed(self) -> bool:
        """Waits for the writes handed over so far; whether Kafka has confirmed every one since the start."""
        if self._unconfirmed:
            await asyncio.wait(set(self._unconfirmed))
        return self._refused is None

    def _settled(self, fut: FutureMessage) -> None:
        self._unconfirmed.discard(fut)
        if len(self._unconfirmed) <= UNCONFIRMED // 2:
            self._room.set()
        error = asyncio.CancelledError() if fut.cancelled() else fut.exception()
        if error is not None and self._refused is None:
            log.error("Kafka refused a write (%s): this process ends, and its last events are read again", error)
            self.give_up(error)

    def give_up(self, reason: BaseException) -> None:
        """Writes nothing more and ends the process."""
        self._refused = reason
        self.add_future(self.app.crash(reason))

    def _settings_extra(self) -> Mapping[str, Any]:
        return {"acks": "all", "enable_idempotence": True}  # a retry neither doubles nor reorders


async def guard(client: Any, node: int, fresh: Callable[[], bool]) -> None:
    """Has the connection to `node`, if there is one, break rather than write records when they are no longer `fresh`.

    A process may stand still at any moment, also between its decision to write and the write. What was not written is
    handed over again, and decided on anew.
    """
    if (connection := await client._get_conn(node)) is not None and not isinstance(connection._writer, _Writer):
        connection._writer = _Writer(connection._writer, fresh)


class _Writer:
    """A stream's writer that is asked once more, right before it writes, whether records may go."""

    def __init__(self, writer: asyncio.StreamWriter, fresh: Callable[[], bool]) -> None:
        self._writer = writer
        self._fresh = fresh

    def write(self, request: bytes) -> None:
        if request[4:6] == PRODUCE and not self._fresh():
            raise ConnectionError("this process stood still")
        self._writer.write(request)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)
