"""Prequential accuracy: an event is compared with the newest answer given before it, and only then taken into account.

Test first, then learn: Dawid, "Statistical theory: the prequential approach" (1984); for streams, Gama, Sebastião and
Rodrigues (2013). Nothing here knows Kafka: partitions, offsets and times are passed in. `Prequential` joins the topics
for the report and for the console; `in_time` and the arithmetic of one rank are the worker's live metrics' too.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import log2
from typing import NamedTuple, Protocol

from stream_rec.evaluation.baselines import BaselineRanks
from stream_rec.messages import ERASE, Recommendation


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


def in_time(predicted_s: float, arrived_s: float) -> bool:
    """Whether a prediction of the time `predicted_s` was there before the event that arrived at `arrived_s`, seconds.

    Kafka's timestamps are whole milliseconds. Which of two records of the same millisecond came first is unknown, so
    the prediction counts as too late.
    """
    return predicted_s < arrived_s


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
    """Whether the answer to an earlier event was there when this event arrived. Otherwise the event has no rank."""
    rank: int | None
    """Place of the event's item in that answer, 1 for the first; None if it was not in the list."""
    floors: BaselineRanks
    """Places of the same item in the lists of the floors, at the same moment."""
    too_late: bool
    """Whether there is an answer to an earlier event, which came only after this event. Where there is none at all, the
    event is a first one: neither evaluated nor too late."""
    offset: int
    """Of the event."""
    before: tuple[str, ...]
    """The items of the answer to an earlier event, in time or too late, the best first."""


class Ranker(Protocol):
    """The floors that events are compared with: `BaselineRanks`, or a bounded variant."""

    def observe(self, user: str, item: str) -> BaselineRanks:
        """Ranks an event's item, then learns from the event."""

    def forget(self, user: str) -> None:
        """Drops the last item of an erased user."""


class Bounds(NamedTuple):
    """Limits of what `Prequential` keeps. Beyond a limit the oldest entry is dropped and not counted."""

    users: int
    """Users with an answer or with events, the latest active ones."""
    events: int
    """Events of a user that wait for an answer."""
    answers: int
    """Answers of a user that wait for their event, because the topics are read at different speeds."""
    places: int
    """Offsets of uncovered records, and offsets of dead letters."""


class _Pending(NamedTuple):
    """An event that no answer covers yet; `item` None is an erasure."""

    offset: int
    item: str | None
    event_type: str
    time_s: float
    floors: BaselineRanks


class Answer(NamedTuple):
    """A recommendation: the offset of the event that it answers, its items and its Kafka timestamp in seconds."""

    offset: int
    items: tuple[str, ...]
    time_s: float


@dataclass(slots=True)
class _User:
    held: Answer | None = None
    answered: int = -1
    """Newest offset that an answer covers: an answer up to here is a repeat."""
    pending: deque[_Pending] = field(default_factory=deque)
    waiting: deque[Answer] = field(default_factory=deque)
    """Answers whose event has not been read yet: the topics are read at different speeds."""


class Prequential:
    """Joins events, recommendations and dead letters by the events' offsets, in whatever order the topics are read.

    Within one partition events must come in offset order and recommendations in theirs; how the topics interleave
    makes no difference. A recommendation covers all events of its user up to its offset (several after a burst), and is
    compared with the events that come after it. Those that arrived before its timestamp are too late (`in_time`). An
    erasure excuses the user's earlier events and drops the held answer. The one limit: a dead letter that is told after
    its event was read does not take back what the event did by then (it was shown to the floors, compared if a
    recommendation covered it, or erased the user); so tell dead letters first.

    `start` is the first offset of each partition that takes part (default 0): answers to earlier events are ignored.
    Memory: a user's pending events and one held list, and one offset for each dead letter; limited by `bounds`.
    """

    def __init__(self, floors: Ranker, start: Mapping[int, int] | None = None, bounds: Bounds | None = None) -> None:
        self._floors = floors
        self._start = dict(start or {})
        self._bounds = bounds
        self._read = {partition: offset - 1 for partition, offset in self._start.items()}
        self._users: OrderedDict[tuple[int, str], _User] = OrderedDict()
        self._uncovered: OrderedDict[tuple[int, int], _User | None] = OrderedDict()
        self._dead: OrderedDict[tuple[int, int], None] = OrderedDict()
        self._refused: Counter[str] = Counter()
        self._records = 0
        self.dead_letters = 0
        self.recommendations = 0
        """Recommendations that answer an event from `start` on."""
        self.repeated = 0
        """Recommendations whose event an earlier one of the same user had covered already."""
        self._span_s: tuple[float, float] | None = None

    @property
    def events(self) -> int:
        """Accepted events: records read, less dead letters."""
        return self._records - self.dead_letters

    @property
    def refused(self) -> dict[str, int]:
        """Dead letters by their reason, the most frequent first."""
        return dict(self._refused.most_common())

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
        state = self._user(partition, user)
        outcomes = self._cover_waiting(partition, state, offset - 1)  # answers to events that were never read
        if event_type == ERASE:
            self._floors.forget(user)
            for pending in state.pending:
                self._uncovered.pop((partition, pending.offset), None)
            if not state.pending:
                state.held = None
            elif state.pending[-1].item is not None:
                state.pending.append(_Pending(offset, None, event_type, time_s, BaselineRanks()))
        elif item is not None:
            state.pending.append(_Pending(offset, item, event_type, time_s, self._floors.observe(user, item)))
            self._await_answer(partition, offset, state)
            self._limit_pending(partition, state)
        else:
            self._await_answer(partition, offset, None)
        return outcomes + self._cover_waiting(partition, state, offset)

    def unreadable(self, partition: int, offset: int) -> None:
        """A record of the events topic that is no event: lost, unless a dead letter tells of it."""
        if self._advance(partition, offset):
            self._await_answer(partition, offset, None)

    def held(self, partition: int, user: str) -> Answer | None:
        """The answer that the next event of `user` will be compared with, as far as the topics are read."""
        state = self._users.get((partition, user))
        if state is None or any(pending.item is None for pending in state.pending):
            return None
        return state.held

    def recommendation(self, partition: int, recommendation: Recommendation, time_s: float) -> list[Outcome]:
        """One record of the recommendations topic; returns the outcomes of the events that it covers."""
        offset = recommendation.offset
        if offset < self._start.get(partition, 0):
            return []
        self.recommendations += 1
        first, last = self._span_s or (time_s, time_s)
        self._span_s = (min(first, time_s), max(last, time_s))
        state = self._user(partition, recommendation.user_id)
        answer = Answer(offset, tuple(ranked.item_id for ranked in recommendation.items), time_s)
        if offset > self._read.get(partition, -1):
            state.waiting.append(answer)
            if self._bounds is not None and len(state.waiting) > self._bounds.answers:
                state.waiting.popleft()
            return []
        return self._cover(partition, state, answer)

    def dead_letter(self, partition: int, offset: int, reason: str = "") -> None:
        """The record of the events topic at `offset` was refused, and why; told twice, it counts once."""
        if offset < self._start.get(partition, 0):
            return
        if (partition, offset) in self._dead:
            return
        self.dead_letters += 1
        self._refused[reason] += 1
        self._dead[partition, offset] = None
        if self._bounds is not None and len(self._dead) > self._bounds.places:
            self._dead.popitem(last=False)
        state = self._uncovered.pop((partition, offset), None)
        if state is not None:
            state.pending.remove(next(pending for pending in state.pending if pending.offset == offset))

    def _user(self, partition: int, user: str) -> _User:
        """The user's state, now the latest active one."""
        state = self._users.get((partition, user))
        if state is None:
            state = self._users[partition, user] = _User()
        if self._bounds is not None:
            self._users.move_to_end((partition, user))
            if len(self._users) > self._bounds.users:
                (oldest, _), idle = self._users.popitem(last=False)
                for pending in idle.pending:
                    self._uncovered.pop((oldest, pending.offset), None)
        return state

    def _await_answer(self, partition: int, offset: int, state: _User | None) -> None:
        """The record at `offset` is not covered yet; `state` is of the user whose event it is, if it is an event."""
        self._uncovered[partition, offset] = state
        if self._bounds is not None and len(self._uncovered) > self._bounds.places:
            self._uncovered.popitem(last=False)

    def _limit_pending(self, partition: int, state: _User) -> None:
        if self._bounds is not None and len(state.pending) > self._bounds.events:
            dropped = state.pending.popleft()
            self._uncovered.pop((partition, dropped.offset), None)
            if dropped.item is None:
                state.held = None

    def _advance(self, partition: int, offset: int) -> bool:
        """Whether the record at `offset` is new and not known to be refused."""
        if offset <= self._read.get(partition, -1):
            return False
        self._read[partition] = offset
        self._records += 1
        return (partition, offset) not in self._dead

    def _cover_waiting(self, partition: int, state: _User, offset: int) -> list[Outcome]:
        """What the answers up to `offset` cover that were read before their events."""
        outcomes: list[Outcome] = []
        while state.waiting and state.waiting[0].offset <= offset:
            outcomes += self._cover(partition, state, state.waiting.popleft())
        return outcomes

    def _cover(self, partition: int, state: _User, answer: Answer) -> list[Outcome]:
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


def _outcome(pending: _Pending, item: str, held: Answer | None, answer: Answer) -> Outcome:
    evaluated = held is not None and in_time(held.time_s, pending.time_s)
    before = () if held is None else held.items
    return Outcome(
        event_type=pending.event_type,
        latency_s=answer.time_s - pending.time_s,
        evaluated=evaluated,
        rank=rank_of(item, before) if evaluated else None,
        floors=pending.floors,
        too_late=held is not None and not evaluated,
        offset=pending.offset,
        before=before,
    )
