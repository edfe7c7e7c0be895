"""Ranks of what really came next, among the whole catalogue, and the figures made of them."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Figures(NamedTuple):
    """Means over predictions."""

    hit_rate_at_10: float
    ndcg_at_10: float
    mrr: float
    predictions: int


def ranks(scores: Tensor, truth: Tensor) -> Tensor:
    """0-based rank of `truth` (n,) in each row of `scores` (n, rows); among equals the middle, so ties gain nothing."""
    own = scores.gather(1, truth[:, None])
    above = (scores > own).sum(1)
    equal = (scores == own).sum(1) - 1
    return above + (equal + 1) // 2


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
