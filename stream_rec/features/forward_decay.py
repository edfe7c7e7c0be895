"""Sums that decay exponentially in event time, and the largest of them.

Decay is kept forward (Cormode et al., "Forward decay", ICDE 2009): an event's weight grows with its time and is divided
out when it is read. So nothing is ever swept, and sums only grow.
"""

import heapq
from collections.abc import Callable, Mapping
from math import isnan, nan
from operator import itemgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream_rec.features.tokens import Numbers

HEADROOM = 500.0
"""Half-lives after the landmark at which sums are rescaled, far below the largest float (2^1023)."""

Sums = NDArray[np.float64]


class Heard(NamedTuple):
    """Items and what speaks for them: `rows` and `weights`, (entries,) each."""

    rows: Numbers
    weights: Sums

    @classmethod
    def of(cls, weights: Mapping[int, float]) -> "Heard":
        return cls(np.array(list(weights), np.int64), np.array(list(weights.values()), np.float64))


NOTHING = Heard.of({})


class Decay:
    """The weight of an event by its time. When weights grow too large, `scale` is called to multiply all sums."""

    def __init__(self, half_life: float, scale: Callable[[float], None]) -> None:
        self._half_life = half_life
        self._scale = scale
        self.landmark = nan
        """The time whose weight is 1, in seconds."""

    def weight(self, time: float) -> float:
        if isnan(self.landmark):
            self.landmark = time
        if time - self.landmark > HEADROOM * self._half_life:
            self._scale(2.0 ** ((self.landmark - time) / self._half_life))
            self.landmark = time
        return float(2.0 ** max(-HEADROOM, (time - self.landmark) / self._half_life))


def largest(size: int, sums: Mapping[int, float]) -> dict[int, float]:
    """The `size` largest of `sums`, in their order; of equal ones the first."""
    if len(sums) <= size:
        return dict(sums)
    chosen = dict(heapq.nlargest(size, sums.items(), key=itemgetter(1)))
    return {row: total for row, total in sums.items() if row in chosen}


class Largest:
    """The `size` rows with the largest sums, exactly, as long as sums only grow (decay is divided out on reading)."""

    __slots__ = ("_floor", "_place", "_rows", "_size", "_sums")

    def __init__(self, size: int, sums: Mapping[int, float]) -> None:
        best = largest(size, sums)
        self._size = size
        self._rows, self._sums = Heard.of(best)
        self._place = {row: at for at, row in enumerate(best)}
        self._floor = 0.0
        """No sum here is smaller."""

    def __contains__(self, row: int) -> bool:
        return row in self._place

    @property
    def heard(self) -> Heard:
        return Heard(self._rows[: len(self._place)], self._sums[: len(self._place)])

    def place(self, row: int) -> int | None:
        """1 for the largest sum; among equal ones the last place. None for a row that is not here."""
        at = self._place.get(row)
        return None if at is None else int(np.count_nonzero(self._sums[: len(self._place)] >= self._sums[at]))

    def raise_by(self, row: int, weight: float) -> bool:
        """Adds to the sum of a row; whether the row is here."""
        at = self._place.get(row)
        if at is not None:
            self._sums[at] += weight
        return at is not None

    def offer(self, row: int, total: float) -> tuple[int, float] | None:
        """Takes a row that is not here, if its sum is large enough; returns what has no room then, and its sum."""
        count = len(self._place)
        if count < self._size:
            if count == len(self._rows):
                self._rows = np.concatenate([self._rows, np.zeros(max(4, count), np.int64)])
                self._sums = np.concatenate([self._sums, np.zeros(max(4, count))])
            self._put(count, row, total)
            return None
        if total <= self._floor:  # most are: no need to look
            return row, total
        least = int(self._sums[:count].argmin())
        former = int(self._rows[least]), float(self._sums[least])
        self._floor = former[1]
        if total <= former[1]:
            return row, total
        del self._place[former[0]]
        self._put(least, row, total)
        return former

    def scale(self, factor: float) -> None:
        self._sums *= factor
        self._floor *= factor

    def _put(self, at: int, row: int, total: float) -> None:
        self._place[row], self._rows[at], self._sums[at] = at, row, total
