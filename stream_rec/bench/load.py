"""The load of the pipeline's benchmark: events at a chosen pace, and what is committed because of them."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from itertools import count
from typing import Self

import msgspec
from aiokafka.structs import RecordMetadata

from stream_rec.config import Settings
from stream_rec.kafka.connection import access
from stream_rec.kafka.consumer import make_consumer
from stream_rec.kafka.publish import Publisher
from stream_rec.messages import Event, encode

Turn = Callable[[int], Awaitable[None]]
"""Returns when an event may go, by its number from 0."""

TICK_S = 0.005
"""Between two looks at what may be sent and at what was answered: the load is to cost the machine little."""
BREATH = 64
"""Events after which others on the event loop get their turn."""


class _Answer(msgspec.Struct):
    """What is read of a recommendation."""

    offset: int


_answer = msgspec.json.Decoder(_Answer)


class Load:
    """Feeds a log and reads, as any service would, the recommendations that are committed; an async context manager.

    An event counts from the timestamp that Kafka gave it, and as answered when a `read_committed` consumer here has
    the recommendation for its offset in hand. What is answered twice shows in `repeated`, what never is in `waiting`.
    """

    def __init__(self, settings: Settings, events: Iterable[Event]) -> None:
        self._settings = settings
        self._events = iter(events)
        self._arrived: dict[tuple[int, int], int] = {}
        self._early: dict[tuple[int, int], float] = {}
        self._feeding: asyncio.Task[None] | None = None
        self.sent = 0
        self.warmed = 0
        """Answers to windows that no event of this load made."""
        self.latencies_ms: list[float] = []
        """Of each answered event, in the order of the answers."""

    async def __aenter__(self) -> Self:
        settings = self._settings
        self._publisher = await Publisher(settings, settings.events_topic, on_stored=self._stored).__aenter__()
        self._consumer = make_consumer(access(settings), settings.recommendations_topic, auto_offset_reset="earliest")
        await self._consumer.start()
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._consumer.stop()
        await self._publisher.__aexit__(None, None, None)

    @property
    def answered(self) -> int:
        return len(self.latencies_ms)

    @property
    def heard(self) -> int:
        """Answers of any kind."""
        return self.warmed + self.answered

    @property
    def waiting(self) -> int:
        """Events that were sent and are not answered yet."""
        return self.sent - self.answered

    @property
    def repeated(self) -> int:
        """Answers without an event that waits for one."""
        return len(self._early)

    @asynccontextmanager
    async def fed(self, turn: Turn) -> AsyncIterator[None]:
        """Feeds in the background, until the log ends at the latest."""
        stop = asyncio.Event()
        self._feeding = asyncio.create_task(self._feed(turn, stop))
        try:
            yield
        except BaseException:
            self._feeding.cancel()
            raise
        stop.set()
        await self._feeding

    def check(self) -> None:
        """Raises what broke the reading or the feeding, if anything did."""
        for task in (self._reading, self._feeding):
            if task is not None and task.done():
                task.result()

    async def _feed(self, turn: Turn, stop: asyncio.Event) -> None:
        for number in count():
            await turn(number)
            if stop.is_set():
                return
            event = next(self._events, None)
            if event is None:
                return
            self.sent += 1
            await self._publisher.send(event.user_id, encode(event))
            if number % BREATH == 0:
                await asyncio.sleep(0)

    def _stored(self, record: RecordMetadata) -> None:
        place = record.partition, record.offset
        seen_ms = self._early.pop(place, None)
        if seen_ms is None:
            self._arrived[place] = record.timestamp
        else:
            self.latencies_ms.append(seen_ms - record.timestamp)

    async def _read(self) -> None:
        while True:
            batches = await self._consumer.getmany(timeout_ms=500)
            now_ms = 1_000 * time.time()
            for partition, records in batches.items():
                for record in records:
                    self._answered(partition.partition, _answer.decode(record.value).offset, now_ms)
            await asyncio.sleep(TICK_S)  # a fetch for each few answers would cost more than the answers

    def _answered(self, partition: int, offset: int, now_ms: float) -> None:
        arrived_ms = self._arrived.pop((partition, offset), None)
        if offset < 0:
            self.warmed += 1
        elif arrived_ms is None:
            self._early[partition, offset] = now_ms
        else:
            self.latencies_ms.append(now_ms - arrived_ms)


def at_most(load: Load, waiting: int) -> Turn:
    """As fast as answers come: an event goes when fewer than `waiting` are unanswered."""

    async def turn(_number: int) -> None:
        while load.waiting >= waiting:  # noqa: ASYNC110 - one can only ask
            await asyncio.sleep(TICK_S)

    return turn


def steady(events_per_s: float) -> Turn:
    """Evenly, whatever becomes of the events."""
    began = time.monotonic()

    async def turn(number: int) -> None:
        wait = began + number / events_per_s - time.monotonic()
        if wait > TICK_S:
            await asyncio.sleep(wait)

    return turn
