"""Fits the weights of the blend: a softmax regression over the candidates of validation predictions."""

from collections.abc import Collection

import torch
from torch import Tensor

from stream_rec.ranking.blend import Blend, CandidateTable
from stream_rec.ranking.candidate_features import PARTS
from stream_rec.training.lbfgs import minimise

RIDGE = 1e-4
BOUNDS = {"decoder": (0.0, 5.0)}
START = Blend(**dict.fromkeys(PARTS, 0.3))
WIDEST = (-10.0, 10.0)
"""Of a weight, where a log tells things apart perfectly."""


def fit(table: CandidateTable, truth: Tensor, parts: Collection[str] = PARTS, start: Blend = START) -> Blend:
    """Weights of `parts` that make the `truth` (n,) likeliest; the other parts weigh nothing.

    `truth` is a place in the table for each answer, -1 where the right item is no candidate: that tells nothing of
    the weights, and says how often it happens. Weights near those of `start` are found soonest.
    """
    covered = truth >= 0
    used = [at for at, part in enumerate(PARTS) if part in parts]
    columns, right = table.columns[:, used], truth[covered]

    def loss(weights: Tensor) -> Tensor:
        values = columns @ weights
        return (
            log_mass(values, table.answers, len(truth))[covered] - values[right]
        ).mean() + RIDGE * weights.square().sum()

    bounds = [BOUNDS.get(PARTS[at], WIDEST) for at in used]
    with torch.inference_mode(False):
        found = minimise(loss, start.weights[used], bounds).tolist()
    named = {PARTS[at]: round(weight, 4) for at, weight in zip(used, found, strict=True)}
    return Blend(**{"decoder": 0.0, **named}, covered=round(covered.float().mean().item(), 4))


def alone(part: str) -> Blend:
    """A part by itself."""
    return Blend(**{"decoder": 0.0, part: 1.0})


def log_mass(values: Tensor, answers: Tensor, count: int) -> Tensor:
    """The logarithm of the sum of exp(values) of each answer, (count,); `values` and `answers` (candidates,)."""
    highest = values.detach().new_full((count,), -torch.inf).scatter_reduce(0, answers, values.detach(), "amax")
    masses = values.new_zeros(count).index_add(0, answers, (values - highest[answers]).exp())
    return highest + masses.log()
