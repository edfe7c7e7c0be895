"""Which windows make the next model calls, and what each call computes. No tensors.

Appends, prefills and moved windows are one thing here: a window is answered by keeping the prefix that its slot holds
and computing the rest. Several windows of one user that extend each other share a row with several answers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from stream_rec.features.tokens import Numbers, Tokens

SHORT = 32
"""Cached positions that a group of appends is split by: beyond that, reading padding costs more than another group."""


class ScheduledSequence(NamedTuple):
    """One user's share of a round: the longest of the windows that it answers, and each one's request and length."""

    user: str
    tokens: Tokens
    answers: list[tuple[int, int]]


@dataclass(frozen=True, eq=False)
class BatchLayout:
    """Where a call's rows stand: their new tokens follow one another. Arrays (rows,)."""

    slots: Numbers
    keep: Numbers
    """Tokens of the row that its slot holds already."""
    lengths: Numbers
    """Tokens of the row."""
    capacity: int
    """Places of a slot."""

    @cached_property
    def new(self) -> Numbers:
        """Tokens to compute."""
        return self.lengths - self.keep

    @cached_property
    def begins(self) -> Numbers:
        """The place of each row's first token in the call."""
        return np.cumsum(self.new) - self.new

    @cached_property
    def positions(self) -> Numbers:
        """Where each token stands in its window, (tokens,)."""
        return np.arange(self.new.sum()) - np.repeat(self.begins - self.keep, self.new)

    @cached_property
    def write(self) -> Numbers:
        """The cache's place of each token, (tokens,)."""
        return np.repeat(self.slots * self.capacity, self.new) + self.positions


class Span(NamedTuple):
    """Rows `begin` to `end` of a call that are computed in one attention over the first `length` cached positions."""

    begin: int
    end: int
    length: int


def waves(users: Sequence[str], tokens: Sequence[Tokens], most: int) -> Iterator[list[ScheduledSequence]]:
    """In a round every user stands once, and at most `most` of them.

    A user's windows are answered in their order: one that doesn't extend the user's last waits for a later round.
    """
    waiting = list(range(len(users)))
    while waiting:
        rows: dict[str, ScheduledSequence] = {}
        closed: set[str] = set()
        later: list[int] = []
        for request in waiting:
            user, read = users[request], tokens[request]
            row = rows.get(user)
            if user in closed or (row is None and len(rows) == most):
                closed.add(user)
                later.append(request)
            elif row is None:
                rows[user] = ScheduledSequence(user, read, [(request, len(read))])
            elif common_prefix_len(row.tokens.identities, read.identities) == len(row.tokens):
                rows[user] = ScheduledSequence(user, read, [*row.answers, (request, len(read))])
            else:
                closed.add(user)
                later.append(request)
        yield list(rows.values())
        waiting = later


def common_prefix_len(one: Numbers, other: Numbers) -> int:
    """How many leading tokens two windows share; identities (length,) each."""
    shorter = min(len(one), len(other))
    differ = one[:shorter] != other[:shorter]
    return int(differ.argmax()) if differ.any() else shorter


def padded(rows: Sequence[Tokens]) -> tuple[Numbers, Numbers]:
    """Identities (rows, width), padded with 0 on the right, and the lengths (rows,)."""
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    filled = np.zeros((len(rows), int(lengths.max())), np.int64)
    filled[np.arange(filled.shape[1]) < lengths[:, None]] = np.concatenate([row.identities for row in rows])
    return filled, lengths


def pack_by_token_budget(new: Numbers, lengths: Numbers, budget: int) -> list[Numbers]:
    """Row numbers of each model call: at most `budget` new tokens in one, or a single row.

    Rows of a call are sorted by their new tokens, then by length, as `spans` wants them. `new` and `lengths` (rows,).
    """
    order = np.lexsort((lengths, new))
    made: list[Numbers] = []
    begin = count = 0
    for end, size in enumerate(new[order].tolist()):
        if end > begin and count + size > budget:
            made.append(order[begin:end])
            begin, count = end, 0
        count += size
    return [*made, order[begin:]]


def spans(new: Numbers, lengths: Numbers) -> list[Span]:
    """Groups of consecutive rows with equally many new tokens, whose lengths are not far apart."""
    change = np.flatnonzero((np.diff(new) != 0) | (np.diff((lengths - 1) // SHORT) != 0)) + 1
    edges = [0, *change.tolist(), len(new)]
    return [Span(begin, end, int(lengths[end - 1])) for begin, end in pairwise(edges)]


def tiles(placed: BatchLayout, most: int) -> Numbers:
    """A call's tokens in groups of at most `most` neighbours of a row, (4, tiles): see `kernel.InPlace`."""
    each = -(-placed.new // most)
    row = np.repeat(np.arange(len(each)), each)
    nth = most * (np.arange(len(row)) - np.repeat(each.cumsum() - each, each))
    count = np.minimum(placed.new[row] - nth, most)
    return np.stack([placed.begins[row] + nth, placed.slots[row] * placed.capacity, placed.keep[row] + nth, count])
