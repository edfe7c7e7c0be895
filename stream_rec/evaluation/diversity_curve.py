"""What diversity costs: how right the first items are when maximal marginal relevance chooses them."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from stream_rec.evaluation import metrics
from stream_rec.evaluation.metrics import CUT, MISSED, Lists, Ranks
from stream_rec.features.tokens import UNKNOWN, Numbers
from stream_rec.ranking.blend import BARRED, Scored, Table
from stream_rec.ranking.diversity import diverse
from stream_rec.ranking.ranker import POOL, Choice

STRENGTHS = (0.1, 0.2, 0.3, 0.5, 0.7)
"""Of `diversity`, the setting; 0 is the blend's own list."""
Varied = Mapping[float, Numbers]
"""The first items of each answer by strength, (answers, CUT) each."""


def vary(table: Table, values: Tensor, outputs: Tensor, strengths: Sequence[float]) -> Varied:
    """Chooses by the candidates' `values` (candidates,), as serving does; `outputs` (rows, width)."""
    scores, rows = table.spread(values, BARRED), table.spread(table.rows, UNKNOWN)
    best = scores.topk(min(POOL * Choice().top_k, scores.shape[1]), dim=1)
    unused = scores.new_zeros(len(scores), 0)
    pool = Scored(rows.gather(1, best.indices), best.values, best.values, unused, unused.sum(dim=1))
    return {strength: _shown(diverse(pool, outputs, CUT, strength)) for strength in strengths}


def _shown(chosen: Scored) -> Numbers:
    found: Numbers = chosen.rows.masked_fill(chosen.scores <= BARRED, UNKNOWN).numpy()
    return found


def joined(parts: Sequence[Varied]) -> Varied:
    """The lists of all answers in one."""
    return {strength: np.concatenate([part[strength] for part in parts]) for strength in parts[0]}


def figures(
    lists: Numbers, of: Numbers, rows: Numbers, vectors: NDArray[np.float32], available: int
) -> dict[str, float]:
    """Of `lists` (answers, CUT), where `rows` (right,) are right in the answers `of` (right,).

    `vectors` (catalogue rows, dim) are the items'; `available` is how many items there are.
    """
    hit = (lists[of] == rows[:, None]) & (rows != UNKNOWN)[:, None]
    ranks = Ranks(of, np.where(hit.any(axis=1), hit.argmax(axis=1), MISSED), len(lists))
    found, shown = metrics.figures(ranks), Lists(lists)
    kept = {name: found[name] for name in (f"hr_at_{CUT}", f"ndcg_at_{CUT}")}
    told = kept | {"intra_list_diversity": shown.diversity(vectors), "coverage": shown.coverage(available)}
    return {name: round(value, 4) for name, value in told.items()}
