"""Events to tokens: one token an event, the same numbers in training and in serving."""

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
    """A window's tokens, oldest first; each array (length,)."""

    rows: Numbers
    """Catalogue rows."""
    types: Numbers
    """Event types, 1 .. in the model's order."""
    gaps: Numbers
    """Buckets of the time since the event before; 0 for the first."""


def event_type_numbers(event_types: Sequence[str]) -> dict[str, int]:
    """The number of each event type; those not listed are `UNKNOWN`."""
    return {name: number for number, name in enumerate(event_types, UNKNOWN + 1)}


def gap_buckets(times: NDArray[np.float64]) -> Numbers:
    """`times` (length,), seconds -> buckets (length,) in 0 .. GAPS - 1. Time that runs backwards counts as no gap."""
    seconds = np.diff(times, prepend=times[:1])
    buckets: Numbers = np.minimum(np.log2(1 + np.maximum(seconds, 0)), GAPS - 1).astype(np.int64)
    return buckets


def identities(tokens: Tokens, stamps: Numbers, types: int) -> Numbers:
    """A number a token, equal if and only if the encoder sees the same: (length,).

    `stamps` (rows,) tells the versions of an item's vector apart; `types` counts the event types, `UNKNOWN` included.
    """
    numbers: Numbers = (stamps[tokens.rows] * types + tokens.types) * GAPS + tokens.gaps
    return numbers
