"""User states to ranked items: the blend of the score's parts, the top k, probabilities and interests.

    score(j) = w_decoder * the decoder's score, which is a log-probability up to a constant
             + w_transitions * log(1 + 5 * what the online memory says of j after the last events)
             + w_repeat * [j is the last item]

The weights come from a softmax regression on validation, so that the softmax of the blend is the probability. A
constant added to all scores of an answer changes nothing, so the decoder's own normaliser is never computed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from msgspec import Struct
from msgspec.structs import astuple
from torch import Tensor

TRANSITION_SCALE = 5.0
BARRED = -1e9
"""The score of what may not be recommended; with infinity a catalogue without available items had no distribution."""


class Blend(Struct, frozen=True):
    """The weight of each part of the score."""

    decoder: float = 1.0
    transitions: float = 0.0
    repeat: float = 0.0


class Memory(NamedTuple):
    """What the online memory says for a batch, as sparse entries: each array (entries,)."""

    answers: Tensor
    rows: Tensor
    weights: Tensor
    """log(1 + TRANSITION_SCALE * sum)."""
    last: Tensor
    """The last item's row of each answer, (batch,)."""

    @classmethod
    def of(cls, after: Sequence[dict[int, float]], last: Sequence[int], device: torch.device) -> "Memory":
        """`after` as `Transitions.after` gives it, one an answer; `last` the row of each answer's last item."""
        count = sum(map(len, after))
        answers = np.repeat(np.arange(len(after)), [len(found) for found in after])
        rows = np.fromiter((row for found in after for row in found), np.int64, count)
        sums = np.fromiter((weight for found in after for weight in found.values()), np.float64, count)
        weights = np.log1p(TRANSITION_SCALE * sums).astype(np.float32)
        return cls(
            *(torch.from_numpy(array).to(device) for array in (answers, rows, weights, np.array(last, np.int64)))
        )

    def pick(self, which: Tensor) -> "Memory":
        """The memory of the answers `which` (n,) alone, renumbered in that order."""
        place = torch.full((len(self.last),), -1)
        place[which] = torch.arange(len(which))
        kept = place[self.answers] >= 0
        return Memory(place[self.answers[kept]], self.rows[kept], self.weights[kept], self.last[which])


class Ranked(NamedTuple):
    """The best items of each answer: `rows`, `scores`, `probabilities` (batch, k); `interests` (batch, categories)."""

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


def add(decoder: Tensor, memory: Memory, weights: Tensor) -> Tensor:
    """The blend's scores (batch, rows): `decoder` (batch, rows), `weights` (3,) in the order of `Blend`."""
    scores = decoder * weights[0]
    scores.index_put_((memory.answers, memory.rows), weights[1] * memory.weights, accumulate=True)
    everyone = torch.arange(len(scores), device=scores.device)
    scores.index_put_((everyone, memory.last), weights[2].expand(len(scores)), accumulate=True)
    return scores


def rank(states: Tensor, memory: Memory, items: Candidates, weights: Blend, k: int) -> Ranked:
    """The `k` best items (all of them, where the catalogue has fewer) for user `states` (batch, width)."""
    decoder = torch.nn.functional.normalize(states, dim=1) @ items.outputs.T
    scores = add(decoder, memory, torch.tensor(astuple(weights), device=states.device))
    scores.masked_fill_(items.barred, BARRED)
    top = scores.topk(min(k, int((~items.barred).sum())), dim=1)
    probabilities = torch.softmax(scores, dim=1)
    interests = probabilities.new_zeros(len(scores), len(items.labels)).index_add_(1, items.categories, probabilities)
    return Ranked(top.indices, top.values, probabilities.gather(1, top.indices), interests)
