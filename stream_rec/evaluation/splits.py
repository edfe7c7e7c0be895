"""What a model may know and what it must predict: the protocols of training's validation and of evaluation."""

from typing import Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from stream_rec.data.dataset import Dataset
from stream_rec.features.tokens import Numbers

Protocol = Literal["leave-one-out", "global-time", "prequential"]
ABOUT: dict[Protocol, str] = {
    "leave-one-out": "each user's last event is predicted; everything else is known, whenever it happened",
    "global-time": "all events after a time are predicted; nothing after it is learned",
    "prequential": "all events after a time are predicted; the online memory learns each of them afterwards",
}

BASKETS = 0.5
"""Share of events at the very time of the one before, from which on what a user does at one time is a basket."""


class Split(NamedTuple):
    """`known` events, `targets` to predict, and whether the memory learns what comes between them."""

    known: NDArray[np.bool_]
    """(events,)"""
    targets: Numbers
    """Places in the dataset, in the log's order, (n,). None is a user's first event."""
    online: bool

    @classmethod
    def at_time(cls, data: Dataset, first: int, last: int, *, online: bool) -> Self:
        """Known is what stands in the log before the place `first`; predicted is the rest up to `last`."""
        wanted = (data.order >= first) & (data.order < last)
        return cls(data.order < first, data.in_log_order(wanted & ~data.firsts), online)

    @classmethod
    def leave_last_n(cls, data: Dataset, count: int) -> Self:
        """Known is all but the last `count` events of each user; predicted is the first of those."""
        lengths = np.diff(data.begins)
        left = np.repeat(data.begins[1:], lengths) - np.arange(len(data.rows))
        return cls(left > count, data.in_log_order((left == count) & ~data.firsts), online=False)

    def sample(self, count: int, seed: int) -> Self:
        """At most `count` targets, drawn at random."""
        if len(self.targets) <= count:
            return self
        drawn = np.random.default_rng(seed).choice(len(self.targets), count, replace=False)
        return self._replace(targets=self.targets[np.sort(drawn)])


def same_time(data: Dataset) -> float:
    """Share of the events at the very time of the same user's event before."""
    gaps = np.diff(data.times, prepend=-1)[~data.firsts]
    return float((gaps == 0).mean()) if len(gaps) else 0.0


def first_of_basket(data: Dataset, targets: Numbers) -> Numbers:
    """Those of the targets that are at another time than the same user's event before."""
    found: Numbers = targets[data.times[targets] != data.times[targets - 1]]
    return found
