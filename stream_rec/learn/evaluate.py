"""Ranks of what really came next, and the figures made of them."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stream_rec.model.scorer import BARRED, Table

MISSED = 1 << 30
"""The rank of an item that was no candidate."""


class Figures(NamedTuple):
    """Means over predictions."""

    hit_rate_at_10: float
    ndcg_at_10: float
    mrr: float
    predictions: int


def ranks(table: Table, values: Tensor, of: Tensor, truth: Tensor) -> Tensor:
    """0-based rank of each `truth` (right,) by `values` (candidates,), (right,); a tie counts against it.

    A truth is a place in the table; `MISSED` where it is -1, or its value `BARRED`. `of` (right,) are its answers.
    """
    own = values[truth.clamp(min=0)]
    found = (table.spread(values, -torch.inf)[of] >= own[:, None]).sum(dim=1) - 1
    return found.masked_fill((truth < 0) | (own <= BARRED), MISSED)


def figures(found: Tensor) -> Figures:
    """`found` (n,) 0-based ranks."""
    rank = found.double()
    hit = (rank < 10).double()
    ndcg = hit / torch.log2(rank + 2)
    return Figures(hit.mean().item(), ndcg.mean().item(), (1 / (rank + 1)).mean().item(), len(rank))


def type_log_loss(logits: Tensor, truth: Tensor, frequency: NDArray[np.float64]) -> tuple[float, float]:
    """Log loss of the next event's type: of `logits` (n, types), and of the `frequency` (types,) alone."""
    ours = torch.nn.functional.cross_entropy(logits, truth).item()
    floor = -np.log(np.maximum(frequency, 1e-12))[truth.numpy()].mean()
    return ours, float(floor)
