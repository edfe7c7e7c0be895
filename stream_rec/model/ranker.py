"""Chooses items: from all, or from a shortlist where they are many; without what is filtered out; at will diverse."""

from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from stream_rec.model.diversity import diverse
from stream_rec.model.scorer import BARRED, Blend, Candidates, Memory, Ranked, Scored, score_all
from stream_rec.model.tokens import Numbers

if TYPE_CHECKING:
    from stream_rec.model.candidates import Shortlister

MANY = 50_000
"""Catalogue rows from which on a processor is faster with an index, see docs/benchmarks.md."""
FEWEST = 256
"""Items that an index needs: fewer can't be sorted into lists."""
POOL = 5
"""Items that a diverse list is chosen from, for each item in it."""


class Choice(NamedTuple):
    """How items are chosen."""

    top_k: int = 20
    scoring: Literal["auto", "exact", "ann"] = "auto"
    effort: float = 1.0
    """How much more than usual the index reads."""
    diversity: float = 0.0
    """From 0, the order of scores, to 1."""


class Recall(NamedTuple):
    """How much an index found of what it should have, in items."""

    sampled: int = 0
    recalled: int = 0


class Ranker:
    """Ranks a catalogue, which `update` says. `weights` are those of the blend."""

    def __init__(self, weights: Blend, choice: Choice) -> None:
        self._weights = weights
        self._choice = choice
        self._shortlister: Shortlister | None = None

    @property
    def index_bytes(self) -> int:
        """Memory of the index; 0 without one."""
        return self._shortlister.index_bytes if self._shortlister else 0

    def update(self, items: Candidates, changed: Numbers) -> None:
        """The catalogue is now `items`; the vectors of the rows `changed` (n,) are new."""
        self._items = items
        if not self._many(items):
            self._shortlister = None
        elif self._shortlister is None:
            from stream_rec.model.candidates import Shortlister  # loads faiss, which small catalogues do without

            self._shortlister = Shortlister(items, self._choice.effort)
        else:
            self._shortlister.update(items, changed)

    def rank(self, states: Tensor, memory: Memory, seen: Tensor) -> Ranked:
        """The best items for user `states` (batch, width), without the rows `seen` (batch, any) by each user."""
        choice = self._choice
        pool = min(len(self._items.outputs), choice.top_k * (POOL if choice.diversity else 1))
        scored = self._score(states, memory, pool, seen)
        if choice.diversity:
            scored = diverse(scored, self._items, choice.top_k, choice.diversity)
        return scored.ranked(choice.top_k)

    def exact(self, states: Tensor, memory: Memory, seen: Tensor) -> Ranked:
        """The best items by scoring all, before diversity: the same states give the same items."""
        pool = min(len(self._items.outputs), self._choice.top_k)
        return score_all(states, memory, self._items, self._weights, pool, seen).ranked(pool)

    def recall(self, states: Tensor, memory: Memory, seen: Tensor) -> Recall:
        """How many of the best items, before diversity, the index finds for some answers; nothing without an index."""
        if self._shortlister is None or not len(states):
            return Recall()
        exact = self.exact(states, memory, seen)
        found = self._score(states, memory, exact.scores.shape[1], seen)
        real = exact.scores > BARRED
        last = exact.scores.where(real, torch.inf).amin(dim=1, keepdim=True)
        as_good = (found.scores >= last - 1e-5 * last.abs()).sum(dim=1)
        return Recall(int(real.sum()), int(as_good.minimum(real.sum(dim=1)).sum()))

    def _many(self, items: Candidates) -> bool:
        if self._choice.scoring == "auto":
            return items.outputs.device.type == "cpu" and len(items.outputs) > MANY and _enough(items)
        return self._choice.scoring == "ann" and _enough(items)

    def _score(self, states: Tensor, memory: Memory, pool: int, seen: Tensor) -> Scored:
        """By the shortlist; an answer for which it holds too few items is scored in full."""
        if self._shortlister is None:
            return score_all(states, memory, self._items, self._weights, pool, seen)
        scored = self._shortlister.score(states, memory, self._weights, pool, seen)
        lacking = (scored.scores[:, : self._choice.top_k] == BARRED).any(dim=1).nonzero()[:, 0]
        if len(lacking):
            full = score_all(states[lacking], memory.pick(lacking), self._items, self._weights, pool, seen[lacking])
            for column, better in zip(scored, full, strict=True):
                column[lacking] = better
        return scored


def _enough(items: Candidates) -> bool:
    return int((~items.barred).sum()) >= FEWEST
