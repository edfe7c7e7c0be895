"""A topic of events as a log to train on: what the agents would apply, without the users who were erased.

`History` is a function of the records of a topic. `read` brings it what Kafka holds at the moment it begins.
"""

import asyncio
import time
from array import array
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from numpy.typing import NDArray

from stream_rec import messages
from stream_rec.config import Settings
from stream_rec.data import event_log
from stream_rec.data.column_roles import Columns
from stream_rec.data.event_log import Log
from stream_rec.data.source import Period, Source
from stream_rec.errors import UserError
from stream_rec.kafka.access_control import check_access, on
from stream_rec.kafka.connection import access
from stream_rec.kafka.consumer import make_consumer
from stream_rec.kafka.item_records import item_of
from stream_rec.kafka.offset_ranges import OffsetRange, since
from stream_rec.kafka.offset_ranges import read as read_spans
from stream_rec.kafka.record_batches import Unreadable
from stream_rec.messages import ERASE, ITEM_BYTES, Item, Rejected
from stream_rec.pseudonyms import naming
from stream_rec.runtime.progress import Progress
from stream_rec.window import start_of

SILENCE_S = 10.0
"""How long Kafka may send nothing before the reading gives up."""
BATCH = 5_000

Spans = Mapping[TopicPartition, OffsetRange]


class Recent:
    """The event ids in a user's window, which refuse another event of the same id."""

    __slots__ = ("_places", "n")

    def __init__(self) -> None:
        self.n = 0
        """Events of the user so far."""
        self._places: dict[str, int] = {}

    def admit(self, event_id: str | None, capacity: int, stride: int) -> bool:
        """Takes one more event; False if the window of the events before it holds its id."""
        start = start_of(self.n, capacity, stride)
        if event_id is not None and self._places.get(event_id, 0) > start:
            return False
        self.n += 1
        if event_id is not None:
            if len(self._places) > 2 * capacity:
                self._places = {held: place for held, place in self._places.items() if place > start}
            self._places[event_id] = self.n
        return True


class History:
    """Takes the records of a topic, those of a partition in order; gives the log of what counts of them.

    An erasure removes what its user did before it, also what lies outside the period.
    """

    def __init__(self, settings: Settings, period: Period) -> None:
        self._settings = settings
        self._period = period
        self._event_types = frozenset(settings.event_types)
        self._name = naming(settings.pseudonym_key_file)
        self._recent: dict[tuple[int, str], Recent] = {}
        """Of the users of each partition, who have a window in each."""
        self._holders: dict[tuple[int, str], int] = {}
        self._held = array("q")
        """Of each row, the number of its holder: a user of a partition."""
        self._numbers: dict[str, dict[str, int]] = {"user": {}, "item": {}, "event": {}}
        self._columns = {name: array("q") for name in self._numbers}
        self._times = array("d")
        self._partitions = array("q")
        self._erased: dict[int, int] = {}
        """Of an erased holder's number, the row from which on events count."""
        self.refused: Counter[str] = Counter()
        """Records that can't be used, by reason."""

    def take(self, record: ConsumerRecord) -> None:
        try:
            self._take(record)
        except Rejected as rejected:
            self.refused[rejected.reason] += 1

    def _take(self, record: ConsumerRecord) -> None:
        settings = self._settings
        if isinstance(record, Unreadable):
            raise Rejected(record.reason, record.error)
        event = messages.read_event(
            record.key,
            record.value,
            event_types=self._event_types,
            now=record.timestamp / 1_000,
            max_bytes=settings.max_event_bytes,
            max_future_s=settings.max_future_s,
        )
        if event.event_type == ERASE:
            user = self._id_of(event.user_id) if event.pseudonym else event.user_id
            holder = record.partition, user
            self._recent.pop(holder, None)
            if (number := self._holders.get(holder)) is not None:
                self._erased[number] = len(self._times)
            return
        holder = record.partition, event.user_id
        recent = self._recent.setdefault(holder, Recent())
        if not recent.admit(event.event_id, settings.capacity, settings.effective_stride):
            raise Rejected("duplicate event_id")
        if event.item_id is None or event.timestamp not in self._period:
            return
        for name, value in (("user", event.user_id), ("item", event.item_id), ("event", event.event_type)):
            numbers = self._numbers[name]
            self._columns[name].append(numbers.setdefault(value, len(numbers)))
        self._held.append(self._holders.setdefault(holder, len(self._holders)))
        self._times.append(event.timestamp)
        self._partitions.append(record.partition)

    def _id_of(self, pseudonym: str) -> str:
        """The id behind a pseudonym that an erasure names, looked for among the users so far.

        Raises `UserError` without the key: who was erased could not be left out.
        """
        if self._settings.pseudonym_key_file is None:
            raise UserError("a user was erased by a pseudonym: set pseudonym_key_file, to leave that user out")
        return next((user for _, user in self._recent if self._name(user) == pseudonym), pseudonym)

    def frame(self) -> pl.DataFrame:
        """`user`, `item`, `event`, `time`, in the order of time; at one time in that of partition and offset."""
        kept = np.flatnonzero(~self._removed)
        partitions, times = np.array(self._partitions, np.int64)[kept], np.array(self._times, np.float64)[kept]
        chosen = kept[np.lexsort((partitions, times))]  # stable: the rows of a partition stand in its order
        named = {
            name: pl.Series(list(numbers), dtype=pl.String)[np.array(self._columns[name], np.int64)[chosen]]
            for name, numbers in self._numbers.items()
        }
        return pl.DataFrame({**named, "time": np.array(self._times, np.float64)[chosen]})

    @property
    def erased(self) -> tuple[int, int]:
        """Users of whom events were removed, and how many events."""
        users = np.array(self._columns["user"], np.int64)[self._removed]
        return len(np.unique(users)), len(users)

    @property
    def _removed(self) -> NDArray[np.bool_]:
        """Which rows an erasure removes, (rows,)."""
        holders = np.array(self._held, np.int64)
        begins = np.zeros(len(self._holders), np.int64)
        begins[list(self._erased)] = list(self._erased.values())
        removed: NDArray[np.bool_] = np.arange(len(holders)) < begins[holders]
        return removed


def read(
    settings: Settings, topic: str, period: Period, items: Path | None, columns: str, progress: Progress
) -> Source:
    """The events of `topic` within `period`, all that is committed now; titles from `items`, or the topic of items.

    `columns` names the columns of the file `items`, as `--columns` does. Raises `UserError` when no broker answers, the
    topic does not exist, or holds nothing that can be used.
    """
    history, catalogue = History(settings, period), Catalogue(settings.max_item_bytes)
    spans = asyncio.run(_read_all(settings, topic, history, period, None if items else catalogue, progress))
    frame = history.frame()
    if frame.is_empty():
        why = "no event that can be used" if _length(spans) else "no event"
        raise UserError(f"topic {topic} holds {why}{_counted(history.refused)}: see --since, --until and event_types")
    fields = Columns(user="user_id", item="item_id", event="event_type", time="timestamp")
    log = event_log.believed(Log(frame, fields, True, history.refused.total(), history.refused))
    if log.frame.is_empty():
        raise UserError(f"topic {topic} holds no event that can be used: {event_log.counted(log.refused)}")
    notes = [f"{len(log.frame):,} events read from topic {topic}"]
    if log.dropped:
        notes.append(f"{log.dropped:,} records of it can't be used and are left out: {event_log.counted(log.refused)}")
    if history.erased[1]:
        notes.append("{:,} users of it were erased: their {:,} events are left out".format(*history.erased))
    if catalogue.refused:
        notes.append(f"items that can't be used and are left out{_counted(catalogue.refused)}")
    if not items and not catalogue.items:
        notes.append(f"topic {settings.items_topic} holds no item: items have no text; name a file with --items")
    places = ", ".join(f"{one.partition}: {begin} to {end}" for one, (begin, end) in spans.items())
    found = event_log.read_items(items, event_log.parse_columns(columns)) if items else catalogue.sorted()
    return Source.of(log, found, f"topic {topic}, offsets by partition {places}", notes)


async def read_catalogue(settings: Settings) -> "Catalogue":
    """What the topic of items holds now. Raises `UserError` where it can't be read."""
    catalogue = Catalogue()
    counts = await check_access(access(settings), *on("Read", settings.items_topic))
    async with make_consumer(
        access(settings),
        max_batch_bytes=settings.max_batch_bytes,
        passed_on=(Unreadable,),
        max_partition_fetch_bytes=settings.max_message_bytes,
    ) as consumer:
        spans = await _spans(consumer, settings.items_topic, counts[settings.items_topic])
        await _take(settings.bootstrap_servers, consumer, spans, catalogue.take, lambda _done, _whole: None)
    return catalogue


class Catalogue:
    """Takes the records of the topic of items; the newest of each counts."""

    def __init__(self, max_bytes: int = ITEM_BYTES) -> None:
        self._max_bytes = max_bytes
        self.items: dict[str, Item] = {}
        self.refused: Counter[str] = Counter()

    def take(self, record: ConsumerRecord) -> None:
        try:
            item = item_of(record, self.items.get, self._max_bytes)
        except Rejected as rejected:
            self.refused[rejected.reason] += 1
        else:
            if item is not None:
                self.items[item.item_id] = item

    def sorted(self) -> list[Item]:
        """In an order that depends on nothing but the items."""
        return [self.items[name] for name in sorted(self.items)]


async def _read_all(
    settings: Settings, topic: str, history: History, period: Period, catalogue: Catalogue | None, progress: Progress
) -> Spans:
    """Reads both topics; returns what of the events was read."""
    topics = [topic] if catalogue is None else [topic, settings.items_topic]
    counts = await check_access(access(settings), *on("Read", *topics))
    async with make_consumer(
        access(settings),
        max_batch_bytes=settings.max_batch_bytes,
        passed_on=(Unreadable,),
        auto_offset_reset="earliest",  # what retention deletes while it is read
        max_partition_fetch_bytes=settings.max_message_bytes,
    ) as consumer:
        reading = partial(_take, settings.bootstrap_servers, consumer)
        if catalogue is not None:
            items = await _spans(consumer, settings.items_topic, counts[settings.items_topic])
            await reading(items, catalogue.take, partial(progress, "reading items"))
        # An event is at most max_future_s ahead of its arrival: nothing before this place can belong to the period.
        earliest = None if period.since is None else period.since - settings.max_future_s
        events = await _spans(consumer, topic, counts[topic], earliest)
        await reading(events, history.take, partial(progress, "reading events"))
    return events


async def _spans(consumer: AIOKafkaConsumer, topic: str, count: int, earliest: float | None = None) -> Spans:
    """From the first record that arrived at `earliest` (seconds) or later, to the last that is committed now."""
    partitions = [TopicPartition(topic, number) for number in range(count)]
    consumer.assign(partitions)
    return await since(consumer, partitions, None if earliest is None else int(earliest * 1_000))


async def _take(
    bootstrap_servers: str,
    consumer: AIOKafkaConsumer,
    spans: Spans,
    take: Callable[[ConsumerRecord], None],
    told: Callable[[int, int], None],
) -> None:
    """Hands over the records of the spans, and tells how many offsets of how many are passed."""
    at, moved = {one: span.begin for one, span in spans.items()}, time.monotonic()
    whole, begun = _length(spans), sum(at.values())
    async for stretch in read_spans(consumer, spans, BATCH):
        for record in stretch.records:
            take(record)
        if stretch.position > at[stretch.partition]:
            at[stretch.partition], moved = stretch.position, time.monotonic()
            told(sum(at.values()) - begun, whole)
        elif time.monotonic() > moved + SILENCE_S:
            raise UserError(f"the Kafka broker at {bootstrap_servers} stopped answering: is it still up?")


def _length(spans: Spans) -> int:
    return sum(span.end - span.begin for span in spans.values())


def _counted(refused: Counter[str]) -> str:
    return ": " + ", ".join(f"{count:,} {reason}" for reason, count in refused.most_common()) if refused else ""
