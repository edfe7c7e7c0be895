"""Online memory: what has followed what, and how often, learned from every event as it passes.

Learning is an addition to sums that decay (see `forward_decay`), so the order of partitions doesn't matter.
"""

import math
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from stream_rec.features.forward_decay import NOTHING, Decay, Heard, Largest, Sums, largest
from stream_rec.features.tokens import UNKNOWN, Numbers

REACH = 5
"""How many events back a transition is counted from, each at the weight 1 / distance."""
FOLLOWERS = 128
"""Of an item's followers, those that count when it is asked: the ones with the largest sums."""
ASIDE = 1_024
"""Followers beside them that are remembered; where one more comes, only the half with the largest sums is kept."""
POPULAR = 64
"""Rows that are known to have the largest counts."""
DAY_S = 86_400.0
USERS = 1 << 20
"""Users whose place in their windows is remembered, the latest active ones."""

BASELINES = ("markov", "popularity", "recent")
"""What an answer must beat: what has followed the last item, what is popular, and what is popular now."""

BaselineRanks = dict[str, int | None]
"""A place in each floor's list, 1 for the first; None beyond its end."""

State = dict[str, NDArray[np.generic]]


FOREVER = 1e30
"""A half-life in seconds with which nothing decays."""
HalfLife = Annotated[float, Meta(gt=0, le=FOREVER)]
"""Seconds."""


class HalfLives(Struct, frozen=True):
    """How long the memory remembers: half-lives in seconds of event time."""

    lasting: HalfLife
    """Of transitions and popularity."""
    recent: HalfLife
    """Of recency."""


class UserCursor(Struct, frozen=True, gc=False):  # there may be a million of them
    """Where learning from a user's windows has come to."""

    n: int
    offset: int
    time: float
    taught: float = 0.0
    """Events that count against what one user may teach in a day: they fall by that number a day, evenly."""
    taught_at: float = 0.0
    """When `taught` was so many, seconds, by the arrival of events."""


class TopSuccessors:
    """What followed an item, and how much: the `FOLLOWERS` with the largest sums, and the rest aside."""

    __slots__ = ("_aside", "_best")

    def __init__(self, sums: Mapping[int, float]) -> None:
        """Takes the sums of `heard`, in its order, or any sums: those beyond both bounds are left out."""
        self._best = Largest(FOLLOWERS, sums)
        self._aside = largest(ASIDE, {row: total for row, total in sums.items() if row not in self._best})

    @property
    def best(self) -> Heard:
        return self._best.heard

    def place(self, row: int) -> int | None:
        """1 for what followed most; None for what is not among the best."""
        return self._best.place(row)

    def add(self, row: int, weight: float) -> None:
        if self._best.raise_by(row, weight):
            return
        rest = self._best.offer(row, self._aside.pop(row, 0.0) + weight)
        if rest is not None:
            self._aside[rest[0]] = rest[1]
            if len(self._aside) > ASIDE:
                self._aside = largest(ASIDE // 2, self._aside)

    def scale(self, factor: float) -> None:
        self._best.scale(factor)
        self._aside = {row: total * factor for row, total in self._aside.items()}

    def heard(self) -> Heard:
        """Every follower that is remembered, the best ones first."""
        best, aside = self.best, Heard.of(self._aside)
        return Heard(np.concatenate([best.rows, aside.rows]), np.concatenate([best.weights, aside.weights]))


class DecayedPopularity:
    """A decayed count of each row of the catalogue."""

    def __init__(self, half_life: float) -> None:
        self.decay = Decay(half_life, self._scale)
        self.sums: Sums = np.zeros(1)
        """Of each row, (rows,) or fewer, as weights that `decay` divides out: they compare with each other."""
        self._highest = Largest(POPULAR, {})

    @property
    def highest(self) -> Numbers:
        """The `POPULAR` rows with the largest counts."""
        return self._highest.heard.rows

    def place(self, row: int) -> int | None:
        """1 for the largest count; None for a row that is not among the `POPULAR`."""
        return self._highest.place(row)

    def add(self, row: int, time: float) -> None:
        weight = self.decay.weight(time)
        if row >= len(self.sums):
            self.sums = np.concatenate([self.sums, np.zeros(max(64, len(self.sums), row + 1 - len(self.sums)))])
        self.sums[row] += weight
        if not self._highest.raise_by(row, weight):
            self._highest.offer(row, float(self.sums[row]))

    def _scale(self, factor: float) -> None:
        self.sums *= factor
        self._highest.scale(factor)

    def state(self) -> State:
        """`sums` (rows,), `highest` (at most `POPULAR`,), `landmark` (1,)."""
        return {"sums": self.sums.copy(), "highest": self.highest.copy(), "landmark": np.array([self.decay.landmark])}

    def load(self, state: State) -> None:
        """Models of format 6 and older have no `highest`: of equal counts, other rows may then be among them."""
        self.sums = state["sums"].astype(np.float64)
        highest = state.get("highest", np.zeros(0)).astype(np.int64)
        rows = np.concatenate([highest, np.setdiff1d(np.flatnonzero(self.sums), highest)])
        self._highest = Largest(POPULAR, dict(zip(rows.tolist(), self.sums[rows].tolist(), strict=True)))
        self.decay.landmark = float(state["landmark"][0])


class ItemTransitions:
    """M[a, b]: the decayed weight with which b followed a, within `REACH` events of one user."""

    def __init__(self, half_life: float) -> None:
        self.decay = Decay(half_life, self._scale)
        self._after: dict[int, TopSuccessors] = {}
        self._before: dict[int, TopSuccessors] = {}

    def add(self, rows: Sequence[int], time: float) -> None:
        """Learns the last of `rows` as what followed the others, oldest first, at `time` seconds."""
        weight, row = self.decay.weight(time), rows[-1]
        for distance, earlier in enumerate(reversed(rows[-REACH - 1 : -1]), 1):
            if earlier != UNKNOWN:
                _followers(self._after, earlier).add(row, weight / distance)
                _followers(self._before, row).add(earlier, weight / distance)

    def after(self, row: int) -> Heard:
        """What followed `row`, as sums that `decay.weight` of the time divides."""
        return found.best if (found := self._after.get(row)) else NOTHING

    def before(self, row: int) -> Heard:
        """What `row` followed, likewise."""
        return found.best if (found := self._before.get(row)) else NOTHING

    def place(self, earlier: int, row: int) -> int | None:
        """1 for what followed `earlier` most; None for what is not among its `FOLLOWERS`."""
        return found.place(row) if (found := self._after.get(earlier)) else None

    def _scale(self, factor: float) -> None:
        for table in (self._after, self._before):
            for followers in table.values():
                followers.scale(factor)

    def state(self) -> State:
        """`after.pairs` (count, 2) and `after.weights` (count,); `before.pairs` and `before.weights`; `landmark` (1,).

        A pair is an item and one that is remembered of it. Each direction drops other pairs when it is full, so that
        neither follows from the other.
        """
        return {
            **{f"after.{name}": array for name, array in _packed(self._after).items()},
            **{f"before.{name}": array for name, array in _packed(self._before).items()},
            "landmark": np.array([self.decay.landmark]),
        }

    def load(self, state: State) -> None:
        """Models of format 6 and older hold what followed alone, as `pairs` and `weights`."""
        self.decay.landmark = float(state["landmark"][0])
        if "after.pairs" in state:
            self._after = _unpacked(state["after.pairs"], state["after.weights"])
            self._before = _unpacked(state["before.pairs"], state["before.weights"])
        else:
            self._after = _unpacked(state["pairs"], state["weights"])
            self._before = _unpacked(state["pairs"][:, ::-1], state["weights"])


class OnlineStatistics:
    """All that is learned online.

    Events at or before `since` (seconds) are part of a trained state and are never learned again. The memory is
    bounded: an item has at most `FOLLOWERS` + `ASIDE` followers, and the place of `USERS` users is known. When
    one of them is dropped, what is as old as the user's last event is taken for learned.

    Of one user, at most `a_day` events are learned in one go, and as many a day from then on, by the time at which they
    arrived: further ones are left out, so that one user alone does not shape what others are recommended.
    """

    def __init__(self, horizons: HalfLives, since: float = -np.inf, a_day: float = np.inf) -> None:
        self.horizons = horizons
        self.a_day = a_day
        self.now = max(since, 0.0)
        """The latest time that was learned, seconds. Sums are read as of then, and not as of the event that asks."""
        self.transitions = ItemTransitions(horizons.lasting)
        self.popularity = DecayedPopularity(horizons.lasting)
        self.recency = DecayedPopularity(horizons.recent)
        self._since = since
        self._learned: OrderedDict[str, UserCursor] = OrderedDict()

    def learn(
        self,
        user: str,
        n: int,
        offset: int,
        rows: Sequence[int],
        times: Sequence[float],
        arrived: float = np.inf,
    ) -> int:
        """Learns those events of a user's window that it hasn't learned yet; returns how many of them are left out
        because the user has taught enough.

        `rows` and `times` are the window's, oldest first; `n` and `offset` its place in the user's log: a window that
        is read again (an offset not above the last) teaches nothing. An event whose time is after `arrived`, when the
        window's last event arrived (seconds), counts as one of then: no event moves `now` into the future. A topic that
        was deleted and created again has lower offsets: there, a window with more and later events is new.
        """
        last = self._learned.pop(user, None)
        times = [min(time, arrived) for time in times]
        if last and offset <= last.offset and not (n > last.n and times[-1] > last.time):
            self._learned[user] = last
            return 0
        self.now = max(self.now, *times)
        fresh = n - last.n if last and n > last.n else n  # a smaller n: the user was erased and began anew
        new = [at for at in range(max(0, len(rows) - fresh), len(rows)) if times[at] > self._since]
        taught_at = max(last.taught_at, arrived) if last else arrived
        taught = self._taught(last, taught_at) if last else 0.0
        learned = new[: int(min(len(new), self.a_day - taught))]
        for at in learned:
            self.learn_last(rows[max(0, at - REACH) : at + 1], times[at])
        self._learned[user] = UserCursor(n, offset, times[-1], taught + len(learned), taught_at)
        if len(self._learned) > USERS:
            self._since = max(self._since, self._learned.popitem(last=False)[1].time)
        return len(new) - len(learned)

    def _taught(self, last: UserCursor, now: float) -> float:
        """What the user has taught of the day's share, at `now` (seconds): 0 to `a_day`. A snapshot may hold more."""
        if math.isinf(self.a_day):
            return 0.0
        return min(self.a_day, max(0.0, last.taught - (now - last.taught_at) / DAY_S * self.a_day))

    def learn_last(self, rows: Sequence[int], time: float) -> None:
        """Learns the last of `rows`, after the others (oldest first), at `time` seconds."""
        self.now = max(self.now, time)
        if rows[-1] == UNKNOWN:
            return
        self.transitions.add(rows, time)
        self.popularity.add(rows[-1], time)
        self.recency.add(rows[-1], time)

    def baselines(self, rows: Sequence[int]) -> BaselineRanks:
        """The place of the last of `rows`, oldest first and not learned yet, in what each table alone would say."""
        *_, earlier, row = UNKNOWN, *rows
        if row == UNKNOWN:
            return dict.fromkeys(BASELINES)
        places = (self.transitions.place(earlier, row), self.popularity.place(row), self.recency.place(row))
        return dict(zip(BASELINES, places, strict=True))

    def forget(self, user: str) -> None:
        """Forgets where a user's windows stand. Sums over all users can't be told apart by user and stay."""
        self._learned.pop(user, None)

    def __contains__(self, user: str) -> bool:
        return user in self._learned

    @property
    def known(self) -> Mapping[str, UserCursor]:
        """Where learning has come to of each user, the latest active one last."""
        return self._learned

    @property
    def since(self) -> float:
        return self._since

    def resume(self, known: Mapping[str, UserCursor], since: float, now: float) -> None:
        """Takes up learning where another memory, of the same sums, has come to."""
        self._learned = OrderedDict(known)
        self._since = since
        self.now = now

    def state(self) -> State:
        """The sums as arrays; neither who has been learned nor `now`."""
        return {f"{name}.{key}": array for name, table in self._tables.items() for key, array in table.state().items()}

    def load(self, state: State) -> None:
        """Takes the sums of `state()` in place of its own."""
        for name, table in self._tables.items():
            table.load({key.partition(".")[2]: array for key, array in state.items() if key.startswith(f"{name}.")})

    @property
    def _tables(self) -> dict[str, ItemTransitions | DecayedPopularity]:
        return {"transitions": self.transitions, "popularity": self.popularity, "recency": self.recency}


def _followers(table: dict[int, TopSuccessors], row: int) -> TopSuccessors:
    if (found := table.get(row)) is None:
        found = table[row] = TopSuccessors({})
    return found


def _packed(table: Mapping[int, TopSuccessors]) -> State:
    heard = [followers.heard() for followers in table.values()]
    items = np.repeat(np.array(list(table), np.int64), [len(one.rows) for one in heard])
    return {
        "pairs": np.stack([items, np.concatenate([NOTHING.rows, *(one.rows for one in heard)])], axis=1),
        "weights": np.concatenate([NOTHING.weights, *(one.weights for one in heard)]),
    }


def _unpacked(pairs: NDArray[np.generic], weights: NDArray[np.generic]) -> dict[int, TopSuccessors]:
    table: defaultdict[int, dict[int, float]] = defaultdict(dict)
    for (item, other), weight in zip(pairs.tolist(), weights.tolist(), strict=True):
        table[item][other] = weight
    return {item: TopSuccessors(sums) for item, sums in table.items()}
