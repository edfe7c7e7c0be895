"""Online memory: what has followed what, learned from every event as it passes, with exponential decay in event time.

Decay is kept forward (Cormode et al., "Forward decay", ICDE 2009): an event's weight grows with its time and is divided
out when it is read, so learning is one addition, the order of partitions doesn't matter, and nothing is ever swept.
"""

import heapq
from collections import defaultdict
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream_rec.model.tokens import UNKNOWN

REACH = 5
"""How many events back a transition is counted from, each at the weight 1 / distance."""
FOLLOWERS = 128
"""Of an item's followers, those that count when it is asked: the ones with the largest sums."""
HEADROOM = 500.0
"""Half-lives after the landmark at which the sums are rescaled, far below the largest float (2^1023)."""


class Learned(NamedTuple):
    """Where learning from a user's windows has come to."""

    n: int
    offset: int


class Followers:
    """What followed an item, and how much; `best` are the `FOLLOWERS` with the largest sums.

    Sums only grow (decay is divided out on reading), so the best are kept exactly, at the cost of a comparison.
    """

    __slots__ = ("best", "sums")

    def __init__(self, sums: dict[int, float]) -> None:
        self.sums = sums
        self.best = sums if len(sums) <= FOLLOWERS else dict(heapq.nlargest(FOLLOWERS, sums.items(), key=itemgetter(1)))

    def add(self, row: int, weight: float) -> None:
        self.sums[row] = total = self.sums.get(row, 0.0) + weight
        if self.best is self.sums:
            if len(self.sums) > FOLLOWERS:
                self.best = dict(self.sums)
                del self.best[min(self.best, key=self.best.__getitem__)]
        elif row in self.best:
            self.best[row] = total
        elif total > self.best[least := min(self.best, key=self.best.__getitem__)]:
            del self.best[least]
            self.best[row] = total


class Transitions:
    """M[a, b]: the decayed weight with which b followed a, within `REACH` events of one user.

    `half_life` in seconds of event time. Events at or before `since` (seconds) are part of the trained state already
    and are never learned again.
    """

    def __init__(self, half_life: float, since: float = -np.inf) -> None:
        self.half_life = half_life
        self.since = since
        self._landmark: float | None = None
        self._next: dict[int, Followers] = {}
        self._learned: dict[str, Learned] = {}

    def learn(self, user: str, n: int, offset: int, rows: Sequence[int], times: Sequence[float]) -> None:
        """Learns those events of a user's window that it hasn't learned yet.

        `rows` and `times` are the window's, oldest first; `n` and `offset` its place in the user's log: a window that
        is read again (an offset not above the last) teaches nothing.
        """
        last = self._learned.get(user, Learned(0, -1))
        if offset <= last.offset:
            return
        fresh = n - last.n if n > last.n else n  # a smaller n: the user was erased and began anew
        self._learned[user] = Learned(n, offset)
        for at in range(max(0, len(rows) - fresh), len(rows)):
            self.learn_last(rows[: at + 1], times[at])

    def learn_last(self, rows: Sequence[int], time: float) -> None:
        """Learns the last of `rows` as what followed the others, at `time` seconds."""
        if time <= self.since or rows[-1] == UNKNOWN:
            return
        weight = self._weight(time)
        for distance, earlier in enumerate(reversed(rows[-REACH - 1 : -1]), 1):
            if earlier != UNKNOWN:
                if (followers := self._next.get(earlier)) is None:
                    followers = self._next[earlier] = Followers({})
                followers.add(rows[-1], weight / distance)

    def after(self, rows: Sequence[int], time: float) -> dict[int, float]:
        """What may follow `rows` (oldest first) at `time`: {row: sum over distance d of M[rows[-d], row] / d}.

        Of each of the `rows` the `FOLLOWERS` with the largest sums count: a popular item is followed by thousands.
        """
        scale = 1 / self._weight(time)
        found: dict[int, float] = {}
        for distance, earlier in enumerate(reversed(rows[-REACH:]), 1):
            if followers := self._next.get(earlier):
                share = scale / distance
                for row, weight in followers.best.items():
                    found[row] = found.get(row, 0.0) + weight * share
        return found

    def forget(self, user: str) -> None:
        """Forgets where a user's windows stand. Sums over all users can't be told apart by user and stay."""
        self._learned.pop(user, None)

    def _weight(self, time: float) -> float:
        if self._landmark is None:
            self._landmark = time
        if time - self._landmark > HEADROOM * self.half_life:
            self._rescale(self._landmark, time)
        return float(2.0 ** max(-HEADROOM, (time - self._landmark) / self.half_life))

    def _rescale(self, former: float, landmark: float) -> None:
        factor = 2.0 ** ((former - landmark) / self.half_life)
        for earlier, followers in self._next.items():
            self._next[earlier] = Followers({row: weight * factor for row, weight in followers.sums.items()})
        self._landmark = landmark

    def _entries(self) -> Iterator[tuple[int, int, float]]:
        for earlier, followers in self._next.items():
            for row, weight in followers.sums.items():
                yield earlier, row, weight

    def state(self) -> dict[str, NDArray[np.generic]]:
        """The sums as arrays: `pairs` (count, 2), `weights` (count,), `landmark` (1,). Not who has been learned."""
        entries = list(self._entries())
        return {
            "pairs": np.array([entry[:2] for entry in entries], np.int64).reshape(-1, 2),
            "weights": np.array([entry[2] for entry in entries], np.float64),
            "landmark": np.array([np.nan if self._landmark is None else self._landmark], np.float64),
        }

    def load(self, state: dict[str, NDArray[np.generic]]) -> None:
        """Takes the sums of `state()` in place of its own."""
        landmark = float(state["landmark"][0])
        self._landmark = None if np.isnan(landmark) else landmark
        sums: defaultdict[int, dict[int, float]] = defaultdict(dict)
        for (earlier, row), weight in zip(state["pairs"].tolist(), state["weights"].tolist(), strict=True):
            sums[earlier][row] = weight
        self._next = {earlier: Followers(found) for earlier, found in sums.items()}
