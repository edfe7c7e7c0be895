"""The live stream: each event beside what was predicted for it before, in bounded memory.

The join is the report's (`accuracy.Prequential`): an event counts once a committed answer covers it. Until then its row
shows the comparison with what was read so far. Nothing here knows Kafka: partitions, offsets and times are passed in.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from itertools import islice

from msgspec import Struct

from stream_rec.console.baselines import RecentBaselines
from stream_rec.evaluation.prequential import Bounds, Outcome, Prequential, Tally, in_time, rank_of
from stream_rec.messages import Event, Recommendation

ROWS = 2_000
"""Events that are remembered, and that the live accuracy is about."""
BOUNDS = Bounds(users=10_000, events=16, answers=2, places=100_000)
"""With the answer that is held, at most three a user: 600,000 ids where an answer has 20 items, 55 MB of short ones."""
POINTS = 300
"""Of the charts, one a second."""
SHOWN = 5
"""Predicted items that a row names."""
CUTOFF = 10


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
    """Whether the answer to an earlier event was there when this event arrived."""
    too_late: bool
    """Whether there is one that came only after this event."""
    rank: int | None
    """Place of the item in the earlier answer, 1 for the first; None if it is not evaluated."""
    listed: int
    """Items in that answer."""
    predicted: tuple[str, ...]
    """Its first ones."""
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
    """At 10, of the evaluated ones of the last `ROWS` events that were answered and follow an answer to their user."""
    popularity: float | None
    markov: float | None


class Live:
    """Shows events, answers and dead letters as they are read."""

    def __init__(self, floors: RecentBaselines, bounds: Bounds = BOUNDS) -> None:
        self._floors = floors
        self._bounds = bounds
        self._join = Prequential(floors, bounds=bounds)
        self._read: dict[int, int] = {}
        """The newest offset of each partition of the events topic."""
        self._places: OrderedDict[tuple[int, int], Row] = OrderedDict()
        self._outcomes: deque[Outcome] = deque(maxlen=ROWS)
        """Of events that follow an answer to their user: evaluated, or too late."""
        self._latencies: list[float] = []
        self._since_point = [0, 0]
        self.rows: deque[Row] = deque(maxlen=ROWS)
        self.points: deque[Point] = deque(maxlen=POINTS)
        self.events = self.answers = self.refused = 0

    def event(self, partition: int, offset: int, event: Event, arrived: float) -> Row | None:
        """One record of the events topic; None for an erasure."""
        user, item = event.user_id, event.item_id
        if offset <= self._read.get(partition, -1):  # the topic was deleted and made again
            self._join = Prequential(self._floors, bounds=self._bounds)
            self._read.clear()
        self._read[partition] = offset
        outcomes = self._join.event(partition, offset, user, item, event.event_type, arrived)
        if item is None:
            return None
        self.events += 1
        self._since_point[0] += 1
        held = self._join.held(partition, user)
        before = held.items if held else ()
        evaluated = held is not None and in_time(held.time_s, arrived)
        row = Row(
            number=self.events,
            user=user,
            item=item,
            event_type=event.event_type,
            timestamp=event.timestamp,
            arrived=arrived,
            evaluated=evaluated,
            too_late=held is not None and not evaluated,
            rank=rank_of(item, before) if evaluated else None,
            listed=len(before),
            predicted=before[:SHOWN],
            partition=partition,
            offset=offset,
        )
        self.rows.append(row)
        self._places[partition, offset] = row
        if len(self._places) > ROWS:
            self._places.popitem(last=False)
        self._settle(partition, outcomes)
        return row

    def answer(self, partition: int, answer: Recommendation, time_s: float) -> list[Row]:
        """One record of the recommendations topic; the rows that it answers."""
        self.answers += 1
        self._since_point[1] += 1
        return self._settle(partition, self._join.recommendation(partition, answer, time_s))

    def dead_letter(self, partition: int, offset: int, reason: str) -> Row | None:
        """The event there was refused."""
        self._join.dead_letter(partition, offset)
        row = self.find(partition, offset)
        if row is not None:
            self.refused += 1
            row.refused = reason
        return row

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
        for outcome in self._outcomes:
            if outcome.evaluated:
                ours.add(outcome.rank)
                popular.add(outcome.floors.popularity)
                markov.add(outcome.floors.markov)
        latencies = sorted(self._latencies)
        point = Point(
            at=now,
            events=self._since_point[0],
            answers=self._since_point[1],
            p50=_nearest_rank(latencies, 0.5),
            p99=_nearest_rank(latencies, 0.99),
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
        return sum(outcome.evaluated for outcome in self._outcomes)

    @property
    def too_late(self) -> int:
        """Events of the same time that no prediction preceded, because it came too late."""
        return sum(outcome.too_late for outcome in self._outcomes)

    def _settle(self, partition: int, outcomes: Iterable[Outcome]) -> list[Row]:
        """Counts what became of events; returns their rows, as far as these are remembered."""
        rows = []
        for outcome in outcomes:
            latency_s = max(0.0, outcome.latency_s)
            self._latencies.append(latency_s)
            if outcome.evaluated or outcome.too_late:
                self._outcomes.append(outcome)
            row = self.find(partition, outcome.offset)
            if row is not None:
                row.latency_s = latency_s
                row.evaluated, row.too_late, row.rank = outcome.evaluated, outcome.too_late, outcome.rank
                row.listed, row.predicted = len(outcome.before), outcome.before[:SHOWN]
                rows.append(row)
        return rows


def _nearest_rank(ordered: list[float], share: float) -> float | None:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None
