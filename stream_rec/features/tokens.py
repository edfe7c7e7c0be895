"""What the decoder reads: the numbers of a window's tokens, the same in training and in serving."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

UNKNOWN = 0
"""Row of an item that the catalogue doesn't know, and number of an event type that the model doesn't know."""
GAPS = 34
"""Buckets of the time between two events: log2 of seconds."""

Numbers = NDArray[np.int64]


class Tokens(NamedTuple):
    """A window's tokens, oldest first."""

    numbers: Numbers
    """What the encoder looks up, (columns, length): of an item token its catalogue row, event type and time gap."""
    identities: Numbers
    """A number a token, equal if and only if the encoder sees the same, (length,)."""

    def __len__(self) -> int:
        """Tokens, not fields."""
        return len(self.identities)

    def prefix(self, length: int) -> "Tokens":
        """The first `length` tokens."""
        return Tokens(self.numbers[:, :length], self.identities[:length])


def event_type_numbers(event_types: Sequence[str]) -> dict[str, int]:
    """The number of each event type; those not listed are `UNKNOWN`."""
    return {name: number for number, name in enumerate(event_types, UNKNOWN + 1)}


def gap_buckets(times: NDArray[np.float64], begins: Numbers | None = None) -> Numbers:
    """Time since the event before, `times` (length,) in seconds -> buckets (length,) in 0 .. GAPS - 1.

    0 for the first event and for each of `begins`, where another window begins. Time that runs backwards is no gap.
    """
    seconds = np.diff(times, prepend=times[:1])
    if begins is not None:
        seconds[begins] = 0
    buckets: Numbers = np.minimum(np.log2(1 + np.maximum(seconds, 0)), GAPS - 1).astype(np.int64)
    return buckets


def item_tokens(rows: Numbers, types: Numbers, gaps: Numbers, stamps: Numbers, type_count: int) -> Tokens:
    """One token an event. `rows`, `types` and `gaps` (length,).

    `stamps` (catalogue rows,) tells the versions of an item's vector apart; `type_count` counts the event types,
    `UNKNOWN` included.
    """
    return Tokens(np.stack([rows, types, gaps]), (stamps[rows] * type_count + types) * GAPS + gaps)
