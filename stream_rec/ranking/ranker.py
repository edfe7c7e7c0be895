"""Chooses items: the decoder's candidates from all or from an index; of all candidates the best; at will diverse."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from stream_rec.features.tokens import Numbers
from stream_rec.ranking.blend import BARRED, Blend, CandidateTable, ItemTower, Ranked, Scored, score
from stream_rec.ranking.candidate_features import CandidateFeatures
from stream_rec.ranking.diversity import diverse
from stream_rec.ranking.retrieval import NEAREST, ExactRetriever, Retrieved

if TYPE_CHECKING:
    from stream_rec.ranking.ann import AnnRetriever

MANY = 50_000
"""Catalogue rows from which on a processor is faster with an index, see docs/benchmarks.md."""
FEWEST = 256
"""Items that an index needs: fewer can't be sorted into lists."""
MMR_POOL_FACTOR = 5
"""Items that a diverse list is chosen from, for each item in it."""

Ask = Callable[[Retrieved], Sequence[CandidateFeatures]]
"""All candidates of each answer, given the decoder's."""


class RankingConfig(NamedTuple):
    """How items are chosen."""

    top_k: int = 20
    scoring: Literal["auto", "exact", "ann"] = "auto"
    effort: float = 1.0
    """How much more than usual the index reads."""
    diversity: float = 0.0
    """From 0, the order of scores, to 1."""
    exclude_seen: bool = False
    """Whether items in a user's window are left out."""
    window: int = 0
    """Items in the longest window: where they are left out, so many more are looked for."""


class Recall(NamedTuple):
    """How much an index found of what it should have, in items."""

    sampled: int = 0
    recalled: int = 0


class Ranker:
    """Ranks a catalogue, which `update` says, by `blend`."""

    def __init__(self, blend: Blend, choice: RankingConfig) -> None:
        self.blend = blend
        self._choice = choice
        self._indexed: AnnRetriever | None = None

    @property
    def index_bytes(self) -> int:
        """Memory of the index; 0 without one."""
        return self._indexed.index_bytes if self._indexed else 0

    def update(self, items: ItemTower, changed: Numbers) -> None:
        """The catalogue is now `items`; the vectors of the rows `changed` (n,) are new."""
        self._items = items
        self._everything = ExactRetriever(items.outputs, items.unavailable)
        if not self._many(items):
            self._indexed = None
        elif self._indexed is None:
            from stream_rec.ranking.ann import AnnRetriever  # loads faiss, which small catalogues do without

            self._indexed = AnnRetriever(self._everything, self._choice.effort)
        else:
            self._indexed.update(self._everything, changed)

    def rank(self, states: Tensor, ask: Ask) -> Ranked:
        """The best items for user `states` (batch, width)."""
        near = self.nearest(states)
        return self.choose(near, ask(near))

    def choose(self, near: Retrieved, found: Sequence[CandidateFeatures]) -> Ranked:
        """The best items among the candidates `found`, one of them for each answer."""
        choice = self._choice
        scored = self._score(near, lambda _: found, choice.top_k * (MMR_POOL_FACTOR if choice.diversity else 1))
        if choice.diversity:
            scored = diverse(scored, self._items.outputs, choice.top_k, choice.diversity)
        return scored.ranked(choice.top_k)

    def score_all(self, states: Tensor, ask: Ask) -> tuple[CandidateTable, Scored]:
        """All candidates for user `states` (batch, width): the parts of their scores, and all of them by score."""
        near = self.nearest(states)
        table = CandidateTable.of(near, ask(near))
        return table, score(table, self._items, self.blend, len(table.rows), exclude_seen=self._choice.exclude_seen)

    def by_score(self, states: Tensor, ask: Ask) -> Ranked:
        """The best items before diversity, by scoring everything: the same states give the same items."""
        return self._score(self._everything(states, self._near), ask, self._choice.top_k).ranked(self._choice.top_k)

    def recall(self, states: Tensor, ask: Ask) -> Recall:
        """How many of the best items, before diversity, the index finds; nothing without an index."""
        if self._indexed is None or not len(states):
            return Recall()
        found, exact = (
            self._score(nearest(states, self._near), ask, self._choice.top_k)
            for nearest in (self._indexed, self._everything)
        )
        real = exact.scores > BARRED
        last = exact.scores.where(real, torch.inf).amin(dim=1, keepdim=True)
        as_good = (found.scores >= last - 1e-5 * last.abs()).sum(dim=1)
        return Recall(int(real.sum()), int(as_good.minimum(real.sum(dim=1)).sum()))

    @property
    def _near(self) -> int:
        seen = self._choice.window if self._choice.exclude_seen else 0
        return max(NEAREST, 2 * self._choice.top_k) + seen

    def nearest(self, states: Tensor) -> Retrieved:
        """The decoder's candidates for user `states` (batch, width)."""
        return (self._indexed or self._everything)(states, self._near)

    def _score(self, near: Retrieved, ask: Ask, pool: int) -> Scored:
        table = CandidateTable.of(near, ask(near))
        return score(table, self._items, self.blend, pool, exclude_seen=self._choice.exclude_seen)

    def _many(self, items: ItemTower) -> bool:
        if self._choice.scoring == "auto":
            return items.outputs.device.type == "cpu" and len(items.outputs) > MANY and _enough(items)
        return self._choice.scoring == "ann" and _enough(items)


def _enough(items: ItemTower) -> bool:
    return int((~items.unavailable).sum()) >= FEWEST
