"""The decoder's candidates: the items whose output vectors are nearest to a user's state, from all or from an index."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

NEAREST = 150
"""Items that are asked for."""
CACHED = 1 << 19
"""Scores that are worked on at a time: they stay in the processor's cache while they are read twice."""
FARTHEST = -1e9
"""The decoder's score of what may not be recommended."""
WIDE = 8
"""Columns whose maximum stands for them in `best`: far apart, so that many maxima are taken at once."""


class Retrieved(NamedTuple):
    """What is near to some states (batch, width)."""

    rows: Tensor
    """(batch, any); the unknown item for none."""
    decoder: Callable[[Tensor, Tensor], Tensor]
    """The decoder's scores of `answers` (n,) for `rows` (n,), (n,)."""

    def at(self, places: Tensor) -> "Retrieved":
        """What is near to the states at `places` (n,)."""
        return Retrieved(self.rows[places], lambda answers, rows: self.decoder(places[answers], rows))


class Retriever(Protocol):
    """Finds what is near; `count` items, or all."""

    def __call__(self, states: Tensor, count: int) -> Retrieved: ...


class ExactRetriever(NamedTuple):
    """Scores the whole catalogue."""

    outputs: Tensor
    """(rows, width)"""
    barred: Tensor
    """(rows,) bool"""

    def __call__(self, states: Tensor, count: int) -> Retrieved:
        asked = torch.nn.functional.normalize(states, dim=1)
        scores = (asked @ self.outputs.T).index_fill_(1, self.barred.nonzero()[:, 0], FARTHEST)
        parts = torch.split(scores, max(1, CACHED // len(self.outputs)))
        rows = torch.cat([best(part, count)[1] for part in parts])
        places = scores.view(-1)  # by one index, which is several times as fast as by two
        return Retrieved(rows, lambda answers, rows: places.index_select(0, answers * len(self.outputs) + rows))


def best(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` best of `scores` (batch, columns), in no order, and their columns; (batch, k), or all columns.

    The k best columns lie in the k blocks of columns with the highest maxima, so that most scores are looked at once.
    """
    batch, columns = scores.shape
    blocks = columns // WIDE
    whole = blocks * WIDE
    if columns < 4 * k * WIDE:
        values, indices = scores.topk(min(k, columns), dim=1, sorted=False)
        return values, indices
    highest = scores[:, :whole].view(batch, WIDE, blocks).amax(dim=1).topk(k, dim=1, sorted=False).indices
    inside = (highest[:, None] + torch.arange(0, whole, blocks, device=scores.device)[:, None]).flatten(1)
    rest = torch.arange(whole, columns, device=scores.device).expand(batch, -1)
    looked_at = torch.cat([inside, rest], dim=1)
    top = scores.gather(1, looked_at).topk(k, dim=1, sorted=False)
    return top.values, looked_at.gather(1, top.indices)
