"""Online memory: what has followed what, learned from every event as it passes, with exponential decay in event time.

Decay is kept forward (Cormode et al., "Forward decay", ICDE 2009): an event's weight grows with its time and is divided
out when it is read, so learning is one addition, the order of partitions doesn't matter, and nothing is ever swept.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream_rec.model.tokens import UNKNOWN

REACH = 5
"""How many events back a transition is counted from, each at the weight 1 / distance."""
HEADROOM = 500.0
"""Half-lives after the landmark at which the sums are rescaled, far below the largest float (2^1023)."""


class Learned(NamedTuple):
    """Where learning from a user's windows has come to."""

    n: int
    offset: int


class Transitions:
    """M[a, b]: the decayed weight with which b followed a, within `REACH` events of one user.

    `half_life` in seconds of event time. Events at or before `since` (seconds) are part of the trained state already
    and are never learned again.
    """

    def __init__(self, half_life: float, since: float = -np.inf) -> None:
        self.half_life = half_life
        self.since = since
        self._landmark: float | None = None
        self._next: dict[int, dict[int, float]] = {}
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
                followers = self._next.setdefault(earlier, {})
                followers[rows[-1]] = followers.get(rows[-1], 0.0) + weight / distance

    def after(self, rows: Sequence[int], time: float) -> dict[int, float]:
        """What may follow `rows` (oldest first) at `time`: {row: sum over distance d of M[rows[-d], row] / d}."""
        scale = 1 / self._weight(time)
        found: dict[int, float] = {}
        for distance, earlier in enumerate(reversed(rows[-REACH:]), 1):
            for row, weight in self._next.get(earlier, {}).items():
                found[row] = found.get(row, 0.0) + weight * scale / distance
        return found

    def forget(self, user: str) -> None:
        """Forgets where a user's windows stand. Sums over all users can't be told apart by user and stay."""
        self._learned.pop(user, None)

    def _weight(self, time: float) -> float:
        if self._landmark is None:
            self._landmark = time
        if time - self._landmark > HEADROOM * self.half_life:
            self._rescale(time)
        return float(2.0 ** max(-HEADROOM, (time - self._landmark) / self.half_life))

    def _rescale(self, landmark: float) -> None:
        factor = 2.0 ** (((self._landmark or landmark) - landmark) / self.half_life)
        for followers in self._next.values():
            for row in followers:
                followers[row] *= factor
        self._landmark = landmark

    def _entries(self) -> Iterator[tuple[int, int, float]]:
        for earlier, followers in self._next.items():
            for row, weight in followers.items():
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
        self._next = {}
        for (earlier, row), weight in zip(state["pairs"].tolist(), state["weights"].tolist(), strict=True):
            self._next.setdefault(earlier, {})[row] = weight
