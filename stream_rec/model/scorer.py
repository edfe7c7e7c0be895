"""User states to ranked items: the blend of the score's parts, the top k, probabilities and interests.

    score(j) = w_decoder * the decoder's score, which is a log-probability up to a constant
             + w_transitions * log(1 + 5 * what the online memory says of j after the last events)
             + w_repeat * [j is the last item]

The weights come from a softmax regression on validation, so that the softmax of the blend is the probability. A
constant added to all scores of an answer changes nothing, so the decoder's own normaliser is never computed.

Here every item of the catalogue is scored; `candidates` scores the likeliest ones of a big catalogue alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from msgspec import Struct
from msgspec.structs import astuple
from torch import Tensor

from stream_rec.model.counters import NOTHING, Heard

TRANSITION_SCALE = 5.0
BARRED = -1e9
"""The score of what may not be recommended; with infinity a catalogue without available items had no distribution."""
BLOCK = 1 << 26
"""Scores that are held at a time (256 MB): all of a small catalogue's batch, 64 answers over a million items."""
CACHED = 1 << 19
"""Scores that are worked on at a time: they stay in the processor's cache while they are read four times."""
WIDE = 32
"""Columns whose maximum stands for them in `best`."""


class Blend(Struct, frozen=True):
    """The weight of each part of the score."""

    decoder: float = 1.0
    transitions: float = 0.0
    repeat: float = 0.0


class Memory(NamedTuple):
    """What the online memory says for a batch, as sparse entries, none twice: each array (entries,)."""

    answers: Tensor
    """Ascending."""
    rows: Tensor
    weights: Tensor
    """log(1 + TRANSITION_SCALE * sum)."""
    last: Tensor
    """The last item's row of each answer, (batch,)."""

    @classmethod
    def of(cls, after: Sequence[Heard], last: Sequence[int], device: torch.device) -> "Memory":
        """`after` as `Transitions.after` gives it, one an answer; `last` the row of each answer's last item."""
        answers = np.repeat(np.arange(len(after)), [len(found.rows) for found in after])
        rows = np.concatenate([NOTHING.rows, *(found.rows for found in after)])
        wide = int(rows.max(initial=0)) + 1
        keys, entries = np.unique(answers * wide + rows, return_inverse=True)
        sums = np.bincount(entries, np.concatenate([NOTHING.weights, *(found.weights for found in after)]), len(keys))
        weights = np.log1p(TRANSITION_SCALE * sums).astype(np.float32)
        columns = (keys // wide, keys % wide, weights, np.array(last, np.int64))
        return cls(*(torch.from_numpy(column).to(device) for column in columns))

    def pick(self, which: Tensor) -> "Memory":
        """The memory of the answers `which` (n,), ascending, alone; renumbered."""
        place = torch.full_like(self.last, -1)
        place[which] = torch.arange(len(which), device=which.device)
        kept = place[self.answers] >= 0
        return Memory(place[self.answers[kept]], self.rows[kept], self.weights[kept], self.last[which])


class Ranked(NamedTuple):
    """The best items of each answer: `rows`, `scores`, `probabilities` (batch, k); `interests` (batch, categories).

    Where fewer than k may be recommended, the last ones have the score `BARRED`.
    """

    rows: Tensor
    scores: Tensor
    probabilities: Tensor
    interests: Tensor

    def pick(self, which: Tensor) -> "Ranked":
        """The answers `which` (n,) alone."""
        return Ranked(*(column[which] for column in self))


class Candidates(NamedTuple):
    """The catalogue as the scorer sees it."""

    outputs: Tensor
    """Unit item vectors times the decoder's scale, (rows, width)."""
    barred: Tensor
    """Rows that may not be recommended, (rows,) bool; the unknown item among them."""
    categories: Tensor
    """The category number of each row, (rows,)."""
    labels: tuple[str, ...]
    """The name of each category."""


class Scored(NamedTuple):
    """The items of each answer that a choice is made from, best first."""

    rows: Tensor
    """(batch, pool)."""
    scores: Tensor
    """(batch, pool); `BARRED` where fewer items may be recommended."""
    log_mass: Tensor
    """Of all items that may be recommended, (batch, 1): the logarithm of the sum of exp(score)."""
    interests: Tensor
    """Each category's share of it, (batch, categories)."""

    def ranked(self, k: int) -> Ranked:
        """The first `k`."""
        rows, scores = self.rows[:, :k], self.scores[:, :k]
        return Ranked(rows, scores, (scores - self.log_mass).exp(), self.interests)


def add(decoder: Tensor, memory: Memory, weights: Tensor) -> Tensor:
    """The blend's scores (batch, rows): `decoder` (batch, rows), `weights` (3,) in the order of `Blend`."""
    return _remember(decoder * weights[0], memory, weights)


def rank(states: Tensor, memory: Memory, items: Candidates, weights: Blend, k: int) -> Ranked:
    """The `k` best items (all of them, where the catalogue has fewer) for user `states` (batch, width)."""
    return score_all(states, memory, items, weights, k, memory.last.new_zeros(len(states), 0)).ranked(k)


def score_all(states: Tensor, memory: Memory, items: Candidates, weights: Blend, pool: int, seen: Tensor) -> Scored:
    """The `pool` best items for user `states` (batch, width) among all.

    The rows `seen` (batch, any) by each user are left out of the pool, not of the distribution: what a user will do and
    what is worth showing are two questions.
    """
    parts = []
    for which in torch.split(torch.arange(len(states), device=states.device), max(1, BLOCK // len(items.outputs))):
        scores = queries(states[which], weights) @ items.outputs.T
        _remember(scores, memory.pick(which), torch.tensor(astuple(weights), device=states.device))
        scores.masked_fill_(items.barred, BARRED)
        size = max(1, CACHED // len(items.outputs))
        for part, known in zip(torch.split(scores, size), torch.split(seen[which], size), strict=True):
            parts.append(_pool(part, known, items, pool))
    return Scored(*(torch.cat(column) for column in zip(*parts, strict=True)))


def queries(states: Tensor, weights: Blend) -> Tensor:
    """What `states` (batch, width) are multiplied with items by: the inner product is the decoder's part of a score."""
    return torch.nn.functional.normalize(states, dim=1) * weights.decoder


def best(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` best of `scores` (batch, columns), best first, and their columns; (batch, k), or all columns.

    The k best columns lie in the k blocks of columns with the highest maxima, so that most scores are looked at once.
    """
    batch, columns = scores.shape
    whole = columns // WIDE * WIDE
    if columns < 4 * k * WIDE:
        values, indices = scores.topk(min(k, columns), dim=1)
        return values, indices
    blocks = scores[:, :whole].view(batch, -1, WIDE).amax(dim=2).topk(k, dim=1, sorted=False).indices
    inside = (blocks[:, :, None] * WIDE + torch.arange(WIDE, device=scores.device)).flatten(1)
    rest = torch.arange(whole, columns, device=scores.device).expand(batch, -1)
    looked_at = torch.cat([inside, rest], dim=1)
    top = scores.gather(1, looked_at).topk(k, dim=1)
    return top.values, looked_at.gather(1, top.indices)


def _remember(scores: Tensor, memory: Memory, weights: Tensor) -> Tensor:
    """Adds to `scores` (batch, rows), in place, what isn't the decoder's."""
    scores.index_put_((memory.answers, memory.rows), weights[1] * memory.weights, accumulate=True)
    everyone = torch.arange(len(scores), device=scores.device)
    return scores.index_put_((everyone, memory.last), weights[2].expand(len(scores)), accumulate=True)


def _pool(scores: Tensor, seen: Tensor, items: Candidates, pool: int) -> Scored:
    """Of `scores` (part, rows), which it spoils."""
    highest = scores.amax(dim=1, keepdim=True)
    masses = (scores - highest).exp_()
    mass = masses.sum(dim=1, keepdim=True)
    interests = masses.new_zeros(len(scores), len(items.labels)).index_add_(1, items.categories, masses) / mass
    scores.scatter_(1, seen, BARRED)
    values, rows = best(scores, pool)
    return Scored(rows, values, highest + mass.log(), interests)
