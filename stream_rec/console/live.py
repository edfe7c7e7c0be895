"""The live stream: each event beside what was predicted for it before, in bounded memory.

An event is compared with the newest answer of its user that was given to an earlier event, and counts once a committed
answer covers it. Nothing here knows Kafka: partitions, offsets and times are passed in.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple, TypeVar

from msgspec import Struct

from stream_rec.console.floors import RecentFloors
from stream_rec.messages import ERASE, Event, Recommendation
from stream_rec.pipeline.accuracy import Tally, rank_of
from stream_rec.pipeline.floors import FloorRanks

ROWS = 2_000
"""Events that are remembered, and that the live accuracy is about."""
USERS = 10_000
"""Users whose last answers are held, the latest active ones."""
ANSWERS = 3
"""Answers that are held of a user: an event that is read late still finds the one before it.

With 20 items an answer that is 600,000 ids at most, 55 MB where they are short."""
WAITING = 16
"""Events of a user that may wait for their answer: at most 160,000 in all, 90 MB with short ids."""
POINTS = 300
"""Of the charts, one a second."""
SHOWN = 5
"""Predicted items that a row names."""
CUTOFF = 10

K = TypeVar("K")
V = TypeVar("V")


class Row(Struct):
    """An event on the page."""

    number: int
    user: str
    item: str
    event_type: str
    timestamp: float
    """The event's own, seconds."""
    arrived: float
    """Kafka's, seconds."""
    evaluated: bool
    """False where no earlier answer is known."""
    rank: int | None
    """Place of the item in the earlier answer, 1 for the first."""
    listed: int
    """Items in that answer."""
    predicted: tuple[str, ...]
    """Its first ones."""
    floors: FloorRanks
    partition: int
    offset: int
    latency_s: float | None = None
    """From Kafka's timestamp of the event to that of the answer that covers it."""
    refused: str | None = None
    """Why it became a dead letter."""


class Point(Struct, frozen=True):
    """A second of the charts."""

    at: float
    events: int
    answers: int
    p50: float | None
    """Of the answers of this second, seconds."""
    p99: float | None
    hit_rate: float | None
    """At 10, of the last `ROWS` events that were answered and had a prediction."""
    popularity: float | None
    markov: float | None


class _Answer(NamedTuple):
    partition: int
    offset: int
    time_s: float
    items: tuple[str, ...]


class Live:
    """Joins events, answers and dead letters as they are read."""

    def __init__(self, floors: RecentFloors) -> None:
        self._floors = floors
        self._answers: OrderedDict[str, deque[_Answer]] = OrderedDict()
        self._waiting: OrderedDict[str, deque[Row]] = OrderedDict()
        self._places: OrderedDict[tuple[int, int], Row] = OrderedDict()
        self._judged: deque[tuple[int | None, FloorRanks]] = deque(maxlen=ROWS)
        self._latencies: list[float] = []
        self._since_point = [0, 0]
        self.rows: deque[Row] = deque(maxlen=ROWS)
        self.points: deque[Point] = deque(maxlen=POINTS)
        self.events = self.answers = self.refused = 0

    def event(self, partition: int, offset: int, event: Event, arrived: float) -> Row | None:
        """One record of the events topic; None for an erasure."""
        user, item = event.user_id, event.item_id
        if event.event_type == ERASE:
            self._floors.forget(user)
            self.forget(user)
            return None
        if item is None:
            return None
        self.events += 1
        self._since_point[0] += 1
        held = self._before(user, partition, offset)
        predicted = held.items if held else ()
        row = Row(
            number=self.events,
            user=user,
            item=item,
            event_type=event.event_type,
            timestamp=event.timestamp,
            arrived=arrived,
            evaluated=held is not None,
            rank=rank_of(item, predicted),
            listed=len(predicted),
            predicted=predicted[:SHOWN],
            floors=self._floors.observe(user, item),
            partition=partition,
            offset=offset,
        )
        self.rows.append(row)
        _remember(self._places, (partition, offset), row, ROWS)
        for answer in self._answers.get(user, ()):
            if answer.partition == partition and answer.offset >= offset:  # the topics are read at different speeds
                self._cover(row, answer)
                return row
        waiting = self._waiting.pop(user, None) or deque(maxlen=WAITING)
        waiting.append(row)
        _remember(self._waiting, user, waiting, USERS)
        return row

    def answer(self, partition: int, answer: Recommendation, time_s: float) -> list[Row]:
        """One record of the recommendations topic; the rows that it answers."""
        self.answers += 1
        self._since_point[1] += 1
        user = answer.user_id
        given = _Answer(partition, answer.offset, time_s, tuple(ranked.item_id for ranked in answer.items))
        mine = self._answers.pop(user, None) or deque(maxlen=ANSWERS)
        mine.append(given)
        _remember(self._answers, user, mine, USERS)
        waiting = self._waiting.get(user, deque())
        covered: list[Row] = []
        while waiting and waiting[0].partition == partition and waiting[0].offset <= answer.offset:
            row = waiting.popleft()
            if row.refused is None:
                self._cover(row, given)
                covered.append(row)
        if not waiting:
            self._waiting.pop(user, None)
        return covered

    def dead_letter(self, partition: int, offset: int, reason: str) -> Row | None:
        """The event there was refused."""
        row = self.find(partition, offset)
        if row is not None:
            self.refused += 1
            row.refused = reason
        return row

    def forget(self, user: str) -> None:
        """The user was erased."""
        self._answers.pop(user, None)
        self._waiting.pop(user, None)

    def find(self, partition: int, offset: int) -> Row | None:
        """A remembered row by its event's place."""
        return self._places.get((partition, offset))

    def newest(self, count: int) -> Iterator[Row]:
        """Newest first."""
        return islice(reversed(self.rows), count)

    def clock(self, now: float) -> float:
        """The stream's time, seconds: `now`, but where a log of another time is replayed, its newest event's."""
        newest = max((row.timestamp for row in self.newest(100) if row.refused is None), default=now)
        return now if abs(now - newest) < 3_600 else newest

    def tick(self, now: float) -> Point:
        """Closes a second of the charts."""
        ours, popular, markov = Tally(), Tally(), Tally()
        for rank, floors in self._judged:
            ours.add(rank)
            popular.add(floors.popularity)
            markov.add(floors.markov)
        late = sorted(self._latencies)
        point = Point(
            at=now,
            events=self._since_point[0],
            answers=self._since_point[1],
            p50=_nearest_rank(late, 0.5),
            p99=_nearest_rank(late, 0.99),
            hit_rate=ours.hit_rate(CUTOFF),
            popularity=popular.hit_rate(CUTOFF),
            markov=markov.hit_rate(CUTOFF),
        )
        self._latencies, self._since_point = [], [0, 0]
        self.points.append(point)
        return point

    @property
    def judged(self) -> int:
        """Events that the live accuracy is about."""
        return len(self._judged)

    def _before(self, user: str, partition: int, offset: int) -> _Answer | None:
        """The newest answer to an event before this one."""
        mine = self._answers.get(user, ())
        return next((one for one in reversed(mine) if one.partition == partition and one.offset < offset), None)

    def _cover(self, row: Row, answer: _Answer) -> None:
        row.latency_s = max(0.0, answer.time_s - row.arrived)
        self._latencies.append(row.latency_s)
        if row.evaluated:
            self._judged.append((row.rank, row.floors))


def _remember(held: OrderedDict[K, V], key: K, value: V, most: int) -> None:
    """As the latest; the first goes where there are more than `most`."""
    held[key] = value
    if len(held) > most:
        held.popitem(last=False)


def _nearest_rank(ordered: list[float], share: float) -> float | None:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None
