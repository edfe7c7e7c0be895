"""Online memory: what has followed what, learned from every event as it passes, with exponential decay in event time.

Decay is kept forward (Cormode et al., "Forward decay", ICDE 2009): an event's weight grows with its time and is divided
out when it is read, so learning is one addition, the order of partitions doesn't matter, and nothing is ever swept.
"""

import heapq
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream_rec.model.tokens import UNKNOWN, Numbers

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


class Heard(NamedTuple):
    """What may come next: `rows` and `weights`, (entries,) each. The weights of a row that is there twice add up."""

    rows: Numbers
    weights: NDArray[np.float64]

    @classmethod
    def of(cls, weights: Mapping[int, float]) -> "Heard":
        return cls(np.array(list(weights), np.int64), np.array(list(weights.values()), np.float64))


NOTHING = Heard.of({})


class Followers:
    """What followed an item, and how much. The `FOLLOWERS` with the largest sums stand in arrays, the rest aside.

    Sums only grow (decay is divided out on reading), so the largest are kept exactly, at the cost of a comparison.
    """

    __slots__ = ("_aside", "_place", "_rows", "_sums")

    def __init__(self, sums: Mapping[int, float]) -> None:
        best = sums if len(sums) <= FOLLOWERS else dict(heapq.nlargest(FOLLOWERS, sums.items(), key=itemgetter(1)))
        self._rows, self._sums = Heard.of(best)
        self._place = {row: at for at, row in enumerate(best)}
        self._aside = {row: total for row, total in sums.items() if row not in best}

    @property
    def best(self) -> Heard:
        return Heard(self._rows[: len(self._place)], self._sums[: len(self._place)])

    def add(self, row: int, weight: float) -> None:
        if (at := self._place.get(row)) is not None:
            self._sums[at] += weight
        elif (count := len(self._place)) < FOLLOWERS:
            if count == len(self._rows):
                self._rows = np.concatenate([self._rows, np.zeros(max(4, count), np.int64)])
                self._sums = np.concatenate([self._sums, np.zeros(max(4, count))])
            self._put(count, row, weight)
        else:
            total = self._aside.pop(row, 0.0) + weight
            least = int(self._sums[:count].argmin())
            if total > self._sums[least]:
                former = int(self._rows[least])
                del self._place[former]
                self._aside[former] = float(self._sums[least])
                self._put(least, row, total)
            else:
                self._aside[row] = total

    def scale(self, factor: float) -> None:
        self._sums *= factor
        self._aside = {row: total * factor for row, total in self._aside.items()}

    def sums(self) -> dict[int, float]:
        """Of every follower."""
        return dict(zip(*(column.tolist() for column in self.best), strict=True)) | self._aside

    def _put(self, at: int, row: int, total: float) -> None:
        self._place[row], self._rows[at], self._sums[at] = at, row, total


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

    def after(self, rows: Sequence[int], time: float) -> Heard:
        """What may follow `rows` (oldest first) at `time`: of a row the sum over distance d of M[rows[-d], row] / d.

        Of each of the `rows` the `FOLLOWERS` with the largest sums count: a popular item is followed by thousands.
        """
        scale = 1 / self._weight(time)
        found = [
            (followers.best, scale / distance)
            for distance, earlier in enumerate(reversed(rows[-REACH:]), 1)
            if (followers := self._next.get(earlier))
        ]
        if not found:
            return NOTHING
        return Heard(
            np.concatenate([best.rows for best, _ in found]),
            np.concatenate([best.weights * share for best, share in found]),
        )

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
        for followers in self._next.values():
            followers.scale(factor)
        self._landmark = landmark

    def _entries(self) -> Iterator[tuple[int, int, float]]:
        for earlier, followers in self._next.items():
            for row, weight in followers.sums().items():
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
