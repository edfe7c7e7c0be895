"""Lists whose items differ: maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998)."""

import torch
from torch import Tensor

from stream_rec.ranking.blend import BARRED, Scored


def diverse(pool: Scored, outputs: Tensor, k: int, diversity: float) -> Scored:
    """The `k` of each answer's pool that maximal marginal relevance takes, in the order in which it takes them.

    Each time it takes the item with the largest (1 - diversity) * relevance - diversity * similarity. Relevance is the
    score, from 0 for the pool's last to 1 for its first; similarity is the cosine with the most similar item that was
    taken, of the item vectors `outputs` (rows, width). `diversity` is between 0 (the order of scores) and 1.
    """
    allowed = pool.scores > BARRED
    low = torch.where(allowed, pool.scores, torch.inf).amin(dim=1, keepdim=True)
    span = (pool.scores[:, :1] - low).clamp(min=1e-9)
    relevance = (pool.scores - low) / span
    vectors = torch.nn.functional.normalize(outputs[pool.rows], dim=2)
    likeness = vectors @ vectors.transpose(1, 2)
    everyone = torch.arange(len(relevance), device=relevance.device)
    nearest = torch.zeros_like(relevance)
    taken: list[Tensor] = []
    for count in range(min(k, relevance.shape[1])):
        gain = torch.where(allowed, (1 - diversity) * relevance - diversity * nearest, BARRED)
        if taken:
            gain.scatter_(1, torch.stack(taken, dim=1), -torch.inf)
        taken.append(gain.argmax(dim=1))
        fresh = likeness[everyone, taken[-1]]
        nearest = torch.maximum(nearest, fresh) if count else fresh
    return pool.take(torch.stack(taken, dim=1))
