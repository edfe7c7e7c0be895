"""Prequential accuracy: an event is compared with the newest answer given before it, and only then taken into account.

Test first, then learn: Dawid, "Statistical theory: the prequential approach" (1984); for streams, Gama, Sebastião and
Rodrigues (2013). Nothing here knows Kafka: partitions, offsets and times are passed in. The arithmetic of one rank is
shared by the worker's live metrics and by the report that reads the topics.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import log2
from typing import NamedTuple

from stream_rec.messages import ERASE, Recommendation
from stream_rec.pipeline.floors import FloorRanks, Floors


def rank_of(item: str, ranked: Sequence[str]) -> int | None:
    """Place of `item` in a ranked list, 1 for the first; None if it is not in the list."""
    return ranked.index(item) + 1 if item in ranked else None


def hit(rank: int | None, k: int) -> bool:
    """Whether the item was among the first k."""
    return rank is not None and rank <= k


def gain(rank: int | None, k: int) -> float:
    """NDCG@k of one event: there is one right item, so the ideal is 1.

    >>> gain(1, 10), gain(3, 10), gain(11, 10), gain(None, 10)
    (1.0, 0.5, 0.0, 0.0)
    """
    return 1 / log2(1 + rank) if rank is not None and rank <= k else 0.0


def reciprocal(rank: int | None) -> float:
    """Reciprocal rank, 0 when the item is not in the list."""
    return 0.0 if rank is None else 1 / rank


class Tally:
    """Counts of ranks, from which each measure follows. Measures are None while nothing was counted."""

    def __init__(self) -> None:
        self.n = 0
        self._ranks: Counter[int | None] = Counter()

    def add(self, rank: int | None) -> None:
        self.n += 1
        self._ranks[rank] += 1

    def hit_rate(self, k: int) -> float | None:
        return sum(n for rank, n in self._ranks.items() if hit(rank, k)) / self.n if self.n else None

    def ndcg(self, k: int) -> float | None:
        return sum(n * gain(rank, k) for rank, n in self._ranks.items()) / self.n if self.n else None

    def mrr(self) -> float | None:
        return sum(n * reciprocal(rank) for rank, n in self._ranks.items()) / self.n if self.n else None


class Outcome(NamedTuple):
    """What became of one accepted event: a committed recommendation covers it."""

    event_type: str
    latency_s: float
    """From Kafka's timestamp of the event to that of the recommendation that covers it, seconds."""
    evaluated: bool
    """False when no earlier answer was held for this user: such an event is a first one and has no rank."""
    rank: int | None
    """Place of the event's item in the answer held before, 1 for the first; None if it was not in the list."""
    floors: FloorRanks
    """Places of the same item in the lists of the floors, at the same moment."""


class _Pending(NamedTuple):
    """An event that no answer covers yet; `item` None is an erasure."""

    offset: int
    item: str | None
    event_type: str
    time_s: float
    floors: FloorRanks


class _Answer(NamedTuple):
    offset: int
    items: tuple[str, ...]
    time_s: float


@dataclass(slots=True)
class _User:
    held: _Answer | None = None
    answered: int = -1
    """Newest offset that an answer covers: an answer up to here is a repeat."""
    pending: deque[_Pending] = field(default_factory=deque)
    waiting: deque[_Answer] = field(default_factory=deque)
    """Answers whose event has not been read yet: the topics are read at different speeds."""


class Prequential:
    """Joins events, recommendations and dead letters by the events' offsets, in whatever order the topics are read.

    Within one partition events must come in offset order and recommendations in theirs; how the topics interleave
    makes no difference. A recommendation covers all events of its user up to its offset (several after a burst), and is
    compared with the events that come after it. An erasure excuses the user's earlier events and drops the held answer.
    The one limit: a dead letter that is told after its event was read does not take back what the event did by then (it
    was shown to the floors, compared if a recommendation covered it, or erased the user); so tell dead letters first.

    `start` is the first offset of each partition that takes part (default 0): answers to earlier events are ignored.
    Memory: a user's pending events and one held list, and one offset for each dead letter.
    """

    def __init__(self, floors: Floors, start: Mapping[int, int] | None = None) -> None:
        self._floors = floors
        self._start = dict(start or {})
        self._read = {partition: offset - 1 for partition, offset in self._start.items()}
        self._users: defaultdict[tuple[int, str], _User] = defaultdict(_User)
        self._uncovered: dict[tuple[int, int], _User | None] = {}
        self._dead: set[tuple[int, int]] = set()
        self._records = 0
        self.recommendations = 0
        """Recommendations that answer an event from `start` on."""
        self.repeated = 0
        """Recommendations whose event an earlier one of the same user had covered already."""
        self._span_s: tuple[float, float] | None = None

    @property
    def events(self) -> int:
        """Accepted events: records read, less dead letters."""
        return self._records - len(self._dead)

    @property
    def dead_letters(self) -> int:
        return len(self._dead)

    @property
    def updates_per_s(self) -> float:
        """Recommendations a second between the timestamps of the first and the last one."""
        if self._span_s is None or self._span_s[0] == self._span_s[1]:
            return 0.0
        return (self.recommendations - 1) / (self._span_s[1] - self._span_s[0])

    def lost(self) -> int:
        """Records that no recommendation covers, no erasure excuses and no dead letter tells of (so far)."""
        return len(self._uncovered)

    def event(
        self, partition: int, offset: int, user: str, item: str | None, event_type: str, time_s: float
    ) -> list[Outcome]:
        """One record of the events topic, with Kafka's timestamp in seconds; one that was read before is ignored."""
        if not self._advance(partition, offset):
            return []
        state = self._users[partition, user]
        if event_type == ERASE:
            self._floors.forget(user)
            for pending in state.pending:
                self._uncovered.pop((partition, pending.offset), None)
            if not state.pending:
                state.held = None
            elif state.pending[-1].item is not None:
                state.pending.append(_Pending(offset, None, event_type, time_s, FloorRanks()))
        elif item is not None:
            state.pending.append(_Pending(offset, item, event_type, time_s, self._floors.observe(user, item)))
            self._uncovered[partition, offset] = state
        else:
            self._uncovered[partition, offset] = None
        outcomes: list[Outcome] = []
        while state.waiting and state.waiting[0].offset <= offset:
            outcomes += self._cover(partition, state, state.waiting.popleft())
        return outcomes

    def unreadable(self, partition: int, offset: int) -> None:
        """A record of the events topic that is no event: lost, unless a dead letter tells of it."""
        if self._advance(partition, offset):
            self._uncovered[partition, offset] = None

    def recommendation(self, partition: int, recommendation: Recommendation, time_s: float) -> list[Outcome]:
        """One record of the recommendations topic; returns the outcomes of the events that it covers."""
        offset = recommendation.offset
        if offset < self._start.get(partition, 0):
            return []
        self.recommendations += 1
        first, last = self._span_s or (time_s, time_s)
        self._span_s = (min(first, time_s), max(last, time_s))
        state = self._users[partition, recommendation.user_id]
        answer = _Answer(offset, tuple(ranked.item_id for ranked in recommendation.items), time_s)
        if offset > self._read.get(partition, -1):
            state.waiting.append(answer)
            return []
        return self._cover(partition, state, answer)

    def dead_letter(self, partition: int, offset: int) -> None:
        """The record of the events topic at `offset` was refused; told twice, it counts once."""
        if offset < self._start.get(partition, 0):
            return
        self._dead.add((partition, offset))
        state = self._uncovered.pop((partition, offset), None)
        if state is not None:
            state.pending.remove(next(pending for pending in state.pending if pending.offset == offset))

    def _advance(self, partition: int, offset: int) -> bool:
        """Whether the record at `offset` is new and not known to be refused."""
        if offset <= self._read.get(partition, -1):
            return False
        self._read[partition] = offset
        self._records += 1
        return (partition, offset) not in self._dead

    def _cover(self, partition: int, state: _User, answer: _Answer) -> list[Outcome]:
        if answer.offset <= state.answered:
            self.repeated += 1
            return []
        outcomes: list[Outcome] = []
        while state.pending and state.pending[0].offset <= answer.offset:
            pending = state.pending.popleft()
            self._uncovered.pop((partition, pending.offset), None)
            if pending.item is None:
                state.held = None
                outcomes.clear()  # what the user did before the erasure is not what this answers
            else:
                outcomes.append(_outcome(pending, pending.item, state.held, answer))
        state.held, state.answered = answer, answer.offset
        return outcomes


def _outcome(pending: _Pending, item: str, held: _Answer | None, answer: _Answer) -> Outcome:
    rank = None if held is None else rank_of(item, held.items)
    return Outcome(pending.event_type, answer.time_s - pending.time_s, held is not None, rank, pending.floors)
