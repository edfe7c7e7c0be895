"""Which users, which new tokens and which prefills make the next model call. No tensors.

Appends, prefills and moved windows are one thing here: a window is answered by keeping the prefix that its slot holds
and computing the rest. Several windows of one user that extend each other share a row with several answers.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Identities = NDArray[np.int64]


class Request(NamedTuple):
    """One window to answer."""

    user_id: str
    tokens: Identities
    """The identity of each of its tokens, (length,)."""


class Row(NamedTuple):
    """One user's share of a call: `tokens[keep:]` are computed; `answers` are (request, position) pairs."""

    user_id: str
    tokens: Identities
    keep: int
    answers: tuple[tuple[int, int], ...]

    @property
    def new(self) -> int:
        return len(self.tokens) - self.keep


class Call(NamedTuple):
    """Rows that one forward pass computes together, the longest first; `slots` (rows,) is where their prefixes are."""

    rows: tuple[Row, ...]
    slots: NDArray[np.int64]

    @property
    def padding(self) -> int:
        """Tokens computed for nothing: every row is as long as the longest."""
        return sum(self.rows[0].new - row.new for row in self.rows)


def rounds(requests: Sequence[Request], users: int) -> Iterator[list[Row]]:
    """Rows without a kept prefix yet; in a round every user stands once, and at most `users` of them.

    Requests keep their order for each user: a window that doesn't extend the user's last one waits for a later round.
    """
    waiting = list(range(len(requests)))
    while waiting:
        rows: dict[str, Row] = {}
        closed: set[str] = set()
        later: list[int] = []
        for index in waiting:
            user, tokens = requests[index]
            answer = (index, len(tokens) - 1)
            row = rows.get(user)
            if user in closed or (row is None and len(rows) == users):
                closed.add(user)
                later.append(index)
            elif row is None:
                rows[user] = Row(user, tokens, 0, (answer,))
            elif len(tokens) >= len(row.tokens) and np.array_equal(tokens[: len(row.tokens)], row.tokens):
                rows[user] = Row(user, tokens, 0, (*row.answers, answer))
            else:
                closed.add(user)
                later.append(index)
        yield list(rows.values())
        waiting = later


def pack(
    rows: Sequence[Row], slots: NDArray[np.int64], prefix: Callable[[int, Identities], int], budget: int, waste: float
) -> list[Call]:
    """Rows with their kept prefixes, packed by length into calls of at most `budget` computed tokens (or one row).

    `prefix(slot, tokens)` counts the leading tokens that the slot holds. At least the first answered token is computed:
    its state isn't kept anywhere. `waste` is the largest share of a call that may be padding.
    """
    kept = [
        row._replace(keep=min(prefix(int(slot), row.tokens), row.answers[0][1]))
        for row, slot in zip(rows, slots, strict=True)
    ]
    calls: list[Call] = []
    begin, new = 0, 0
    order = sorted(range(len(kept)), key=lambda at: -kept[at].new)
    for end, at in enumerate(order):
        longest, count = kept[order[begin]].new, end - begin + 1
        new += kept[at].new
        if end > begin and (longest * count > budget or longest * count - new > waste * longest * count):
            calls.append(_call(kept, slots, order[begin:end]))
            begin, new = end, kept[at].new
    if order:
        calls.append(_call(kept, slots, order[begin:]))
    return calls


def _call(rows: Sequence[Row], slots: NDArray[np.int64], chosen: Sequence[int]) -> Call:
    return Call(tuple(rows[at] for at in chosen), slots[list(chosen)])
