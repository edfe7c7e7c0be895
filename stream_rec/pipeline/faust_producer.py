"""faust's producer, with what it does not tell its consumer put right, see `faust_kafka`."""

import asyncio
import contextvars
import logging
import weakref
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from aiokafka.errors import IllegalGenerationError, MessageSizeTooLargeError
from faust import streams
from faust.transport.drivers import aiokafka as driver
from faust.types import FutureMessage

from stream_rec.kafka.aiokafka_compat import correct

UNCONFIRMED = 2_000
"""Writes on their way to Kafka at which an agent pauses: a commit waits for as many, a crash repeats little more."""

PRODUCE = (0).to_bytes(2, "big")
"""The key of a request that writes records, behind its length in 4 bytes."""

log = logging.getLogger(__name__)


class Write(NamedTuple):
    """A record on its way to Kafka, and the event that it was written for."""

    event: Any
    topic: str
    key: bytes
    value: bytes | None
    before: bytes | None
    """What the table held under the key before; None for nothing, and where the record is no change of the table."""


class Producer(driver.Producer):  # type: ignore[misc]
    """Knows which writes Kafka has not confirmed, and writes nothing for a group that has given this process up.

    What Kafka refuses for its size, because a topic takes less than it did at the start, is given to `decide_anew`;
    until that returns, nothing counts as confirmed and the agent pauses.
    """

    table: Any
    """The agent's; its changes are what a refusal may undo."""
    decide_anew: Callable[[Sequence[Write]], Awaitable[None]]

    def __post_init__(self) -> None:
        super().__post_init__()
        self._unconfirmed: dict[FutureMessage, Write | None] = {}
        self._too_large: list[Write] = []
        self._deciding = asyncio.Lock()
        self._room = asyncio.Event()
        self._room.set()
        self._refused: BaseException | None = None

    def send_soon(self, fut: FutureMessage) -> None:
        self._unconfirmed[fut] = self._write_of(fut)
        if len(self._unconfirmed) >= UNCONFIRMED:
            self._room.clear()
        fut.add_done_callback(self._settled)
        super().send_soon(fut)

    def _write_of(self, fut: FutureMessage) -> Write | None:
        """None where it was written for no event. faust writes to the changelog before it changes the table."""
        if (event := streams.current_event()) is None:
            return None
        message, topic = fut.message, fut.message.channel.get_topic_name()
        before = self.table.data.get(message.key) if topic == changelog_of(self.table) else None
        return Write(event, topic, message.key, message.value, before)

    def _new_producer(self, transactional_id: str | None = None) -> Any:
        producer = super()._new_producer(transactional_id)
        correct(producer.client)
        return producer

    async def on_start(self) -> None:
        await super().on_start()
        sender = self._producer._sender
        sender._send_produce_req = partial(self._guarded, sender, sender._send_produce_req)

    async def _guarded(self, sender: Any, send: Callable[..., Awaitable[None]], node: int, batches: Any) -> None:
        """Sends to a Kafka node, unless the group has given this process up."""
        if await self.app.consumer.counted() and self._refused is None:
            await guard(sender.client, node, lambda: bool(self.app.consumer.fresh))
            await send(node, batches)
            self._take_back(sender, batches)
            return
        for batch in batches.values():
            batch.failure(exception=IllegalGenerationError())
        sender._in_flight.remove(node)
        sender._muted_partitions.difference_update(batches)

    def _take_back(self, sender: Any, batches: Mapping[Any, Any]) -> None:
        """The sequence numbers of batches that Kafka has refused for their size, for those that come after.

        As Kafka's own producer does; aiokafka 0.14 does not (not reported), and Kafka refuses all that follows as out
        of order. It sends one batch of a partition at a time, so none that follows has a number yet.
        """
        for partition, batch in batches.items():
            if batch.future.done() and isinstance(batch.future.exception(), MessageSizeTooLargeError):
                sender._txn_manager.increment_sequence_number(partition, -batch.record_count)

    def fit(self, most_bytes: int) -> None:
        """Writes no larger batches from now on; a record that is larger goes alone."""
        self._producer._message_accumulator._batch_size = most_bytes

    async def room(self) -> None:
        """Waits while too many writes are on their way, faust's own queue of them has no end, or some were refused."""
        await self._room.wait()

    async def confirmed(self) -> bool:
        """Waits for the writes handed over so far; whether Kafka has confirmed every one since the start."""
        if self._unconfirmed:
            await asyncio.wait(set(self._unconfirmed))
        while self._too_large and self._refused is None:
            async with self._deciding:
                await self._decide_anew()
        return self._refused is None

    async def quiet(self) -> None:
        """Returns when no write is on its way; the agent hands none over before its next turn of the event loop."""
        while self._unconfirmed:
            await asyncio.wait(set(self._unconfirmed))

    async def _decide_anew(self) -> None:
        await self.quiet()
        if not self._too_large:
            return
        try:
            await self.decide_anew(self._too_large)
        except Exception as error:  # noqa: BLE001 - it ends the process, whatever it is
            self.give_up(error)
            return
        self._too_large = []
        self._room.set()
        if self._unconfirmed:
            await asyncio.wait(set(self._unconfirmed))

    def _settled(self, fut: FutureMessage) -> None:
        write = self._unconfirmed.pop(fut)
        error = asyncio.CancelledError() if fut.cancelled() else fut.exception()
        if isinstance(error, MessageSizeTooLargeError) and write is not None and self._refused is None:
            self._room.clear()
            self._too_large.append(write)
            self.add_future(self.confirmed())
            return
        if len(self._unconfirmed) <= UNCONFIRMED // 2 and not self._too_large:
            self._room.set()
        if error is not None and self._refused is None:
            log.error("Kafka refused a write (%s): this process ends, and its last events are read again", error)
            self.give_up(error)

    def give_up(self, reason: BaseException) -> None:
        """Writes nothing more and ends the process."""
        self._refused = reason
        self.add_future(self.app.crash(reason))

    def _settings_extra(self) -> Mapping[str, Any]:
        return {"acks": "all", "enable_idempotence": True}  # a retry neither doubles nor reorders


def changelog_of(table: Any) -> str:
    return str(table.changelog_topic.get_topic_name())


def undo(writes: Sequence[Write], table: Any) -> list[Any]:
    """Takes refused writes back out of the table; returns their events in order, to be decided anew.

    A refused window that a confirmed one has followed stays: the later one holds its event too.
    """
    changelog = changelog_of(table)
    events = [write.event for write in writes if write.topic != changelog]
    by_key: defaultdict[bytes, list[Write]] = defaultdict(list)
    for write in writes:
        if write.topic == changelog:
            by_key[write.key].append(write)
    for key, same in by_key.items():
        state = table.data.get(key)
        for write in reversed(same):
            if write.value != state:
                break
            state = write.before
            events.append(write.event)
            during(write.event, partial(_put, table, key, state))
    return sorted(events, key=lambda event: (event.message.tp, event.message.offset))


def during(event: Any, work: Callable[[], None]) -> None:
    """Calls `work` as an agent that has been given `event` would: faust asks for its partition."""

    def call() -> None:
        streams._current_event.set(weakref.ref(event))
        work()

    contextvars.copy_context().run(call)


def _put(table: Any, key: bytes, value: bytes | None) -> None:
    """Changes the table and writes nothing to Kafka."""
    if value is None:
        table.data.pop(key, None)
    else:
        table.data[key] = value


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
