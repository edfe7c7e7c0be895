"""ItemSide to ranked items: the blend of the score's parts, the top k, probabilities and interests.

score(j) = sum over the parts of weight * part(j), see `candidate_features`

The weights come from a softmax regression on validation over the candidates, and the share of truths that were among
the candidates is known from there too. So an item's probability is that share times its softmax.
"""

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import numpy as np
import torch
from msgspec import Meta, Struct
from torch import Tensor

from stream_rec.features.tokens import UNKNOWN
from stream_rec.ranking.candidate_features import AGAIN, DECODER, PARTS, REPEAT, CandidateFeatures
from stream_rec.ranking.retrieval import Retrieved

BARRED = -1e9
"""The score of what may not be recommended."""


Weight = Annotated[float, Meta(ge=-1e6, le=1e6)]
"""Of a part of the score. Parts are of the order of 1 to 100, so a score stays far within single precision."""


class Blend(Struct, frozen=True):
    """The weight of each part of the score, see `candidate_features`; the decoder alone by default."""

    decoder: Weight = 1.0
    transitions: Weight = 0.0
    reverse: Weight = 0.0
    together: Weight = 0.0
    text: Weight = 0.0
    words: Weight = 0.0
    popularity: Weight = 0.0
    recency: Weight = 0.0
    session: Weight = 0.0
    again: Weight = 0.0
    category: Weight = 0.0
    price: Weight = 0.0
    repeat: Weight = 0.0
    covered: Annotated[float, Meta(ge=0, le=1)] = 1.0
    """Share of the events whose item was a candidate."""

    @property
    def weights(self) -> Tensor:
        """(len(PARTS),)"""
        return torch.tensor([getattr(self, part) for part in PARTS])


class Ranked(NamedTuple):
    """The best items of each answer: `rows`, `scores`, `probabilities` (batch, k); `interests` (batch, categories).

    Where fewer than k may be recommended, the last ones have the score `BARRED`. `unscored` as `Scored` has it.
    """

    rows: Tensor
    scores: Tensor
    probabilities: Tensor
    interests: Tensor
    unscored: Tensor


class ItemTower(NamedTuple):
    """The catalogue as the scorer sees it."""

    outputs: Tensor
    """Unit item vectors times the decoder's scale, (rows, width)."""
    unavailable: Tensor
    """Rows that may not be recommended, (rows,) bool; the unknown item among them."""
    categories: Tensor
    """The category number of each row, (rows,)."""
    labels: tuple[str, ...]
    """The name of each category."""


class CandidateTable(NamedTuple):
    """The candidates of a batch, one answer's after the other."""

    answers: Tensor
    """Whose candidate it is, ascending, (candidates,)."""
    rows: Tensor
    """(candidates,)"""
    columns: Tensor
    """(candidates, len(PARTS))"""

    @classmethod
    def of(cls, near: Retrieved, found: Sequence[CandidateFeatures]) -> "CandidateTable":
        device = near.rows.device
        counts = [len(one.rows) for one in found]
        answers = torch.from_numpy(np.repeat(np.arange(len(found)), counts)).to(device)
        rows = torch.from_numpy(np.concatenate([one.rows for one in found])).to(device)
        columns = torch.from_numpy(np.concatenate([one.columns for one in found])).to(device)
        columns[:, DECODER] = near.decoder(answers, rows)
        return cls(answers, rows, columns)

    @property
    def seen(self) -> Tensor:
        """Which candidates are in the user's window, (candidates,) bool."""
        return self.columns[:, (AGAIN, REPEAT)].any(dim=1)

    def spread(self, values: Tensor, empty: float) -> Tensor:
        """`values` (candidates,) as (batch, most candidates), padded on the right with `empty`."""
        counts = torch.bincount(self.answers)
        held = torch.arange(int(counts.max()), device=values.device) < counts[:, None]
        return torch.full(held.shape, empty, dtype=values.dtype, device=values.device).masked_scatter_(held, values)


class Scored(NamedTuple):
    """The items of each answer that a choice is made from, best first."""

    rows: Tensor
    """(batch, pool)."""
    scores: Tensor
    """(batch, pool); `BARRED` where fewer items may be recommended."""
    probabilities: Tensor
    """(batch, pool)."""
    interests: Tensor
    """Each category's probability, (batch, categories)."""
    unscored: Tensor
    """How many candidates are left out because their score is no finite number, (batch,)."""

    def take(self, at: Tensor) -> "Scored":
        """The items at the places `at` (batch, any) of the pool."""
        rows, scores, probabilities = (one.gather(1, at) for one in (self.rows, self.scores, self.probabilities))
        return Scored(rows, scores, probabilities, self.interests, self.unscored)

    def ranked(self, k: int) -> Ranked:
        """The first `k`."""
        return Ranked(self.rows[:, :k], self.scores[:, :k], self.probabilities[:, :k], self.interests, self.unscored)


def score(table: CandidateTable, items: ItemTower, blend: Blend, pool: int, *, exclude_seen: bool) -> Scored:
    """The `pool` best candidates of each answer; one whose score is no finite number leaves the others as they are.

    What the user has `seen` can be left out of the pool, not of the distribution: what a user will do and what is worth
    showing are two questions.
    """
    values = table.columns @ blend.weights.to(table.columns)
    barred = items.unavailable[table.rows]
    unscored = ~(values.isfinite() & (values > BARRED) | barred)
    values.masked_fill_(barred | unscored, BARRED)
    scores, rows = table.spread(values, BARRED), table.spread(table.rows, UNKNOWN)
    probabilities = blend.covered * torch.softmax(scores, dim=1).masked_fill(scores <= BARRED, 0)
    interests = scores.new_zeros(len(scores), len(items.labels))
    interests.scatter_add_(1, items.categories[rows], probabilities)
    if exclude_seen:
        scores = table.spread(values.masked_fill(table.seen, BARRED), BARRED)
    best = scores.topk(min(pool, scores.shape[1]), dim=1)
    left_out = table.spread(unscored, False).sum(dim=1)
    return Scored(rows, scores, probabilities, interests, left_out).take(best.indices)
