"""Figures of ranked lists, from the ranks of what was right."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream_rec.features.tokens import Numbers

Values = NDArray[np.float64]
HIT_RATES, GAINS = (1, 5, 10, 20), (5, 10, 20)
CUT = 10
"""Length of the list that precision, recall and F1 are of."""
RESAMPLED = 2_000
MISSED = 1 << 30
"""The rank of an item that was not listed."""


class Ranks(NamedTuple):
    """Where what was right stood, prediction by prediction."""

    of: Numbers
    """The prediction that a right item belongs to, ascending, (right,)."""
    rank: Numbers
    """Its place in that prediction's list, from 0, (right,)."""
    predictions: int

    def pick(self, which: NDArray[np.bool_]) -> "Ranks":
        """The predictions `which` (predictions,) alone."""
        kept = which[self.of]
        return Ranks((np.cumsum(which) - 1)[self.of[kept]], self.rank[kept], int(which.sum()))

    def total(self, values: Values | NDArray[np.bool_]) -> Values:
        """The sum of `values` (right,) by prediction, (predictions,)."""
        return np.bincount(self.of, values.astype(np.float64), self.predictions).astype(np.float64)

    def hits(self, k: int) -> Values:
        """Whether anything right is among the first k, (predictions,)."""
        return np.minimum(self.total(self.rank < k), 1)

    def gains(self, k: int) -> Values:
        """Normalised discounted cumulative gain (Järvelin and Kekäläinen, 2002) of the first k, (predictions,)."""
        gained = self.total(np.where(self.rank < k, 1 / np.log2(self.rank + 2.0), 0))
        ideal = np.cumsum(1 / np.log2(np.arange(k) + 2.0))
        found: Values = gained / ideal[np.minimum(self._right, k).astype(np.int64) - 1]
        return found

    def reciprocal(self) -> Values:
        """Of the first right item's place, counted from 1, (predictions,)."""
        best = np.full(self.predictions, np.inf)
        np.minimum.at(best, self.of, self.rank)
        return 1 / (best + 1)

    def precision(self, k: int) -> Values:
        return self.total(self.rank < k) / k

    def recall(self, k: int) -> Values:
        return self.total(self.rank < k) / self._right

    @property
    def _right(self) -> Values:
        """Right items of each prediction, (predictions,): at least one."""
        return np.bincount(self.of, minlength=self.predictions).astype(np.float64)


def figures(ranks: Ranks) -> dict[str, float]:
    """Means over the predictions."""
    precision, recall = float(ranks.precision(CUT).mean()), float(ranks.recall(CUT).mean())
    found = {f"hr_at_{k}": ranks.hits(k).mean() for k in HIT_RATES}
    found |= {f"ndcg_at_{k}": ranks.gains(k).mean() for k in GAINS}
    found |= {"mrr": ranks.reciprocal().mean()}
    found |= {f"precision_at_{CUT}": precision, f"recall_at_{CUT}": recall}
    found |= {f"f1_at_{CUT}": 2 * precision * recall / (precision + recall) if precision else 0.0}
    return {name: float(value) for name, value in found.items()}


class Interval(NamedTuple):
    """A mean difference and its 95% interval."""

    mean: float
    low: float
    high: float


def bootstrap(difference: Values, users: Numbers, seed: int = 0) -> Interval:
    """Of `difference` (predictions,) between two methods on the same predictions, by drawing `users` (predictions,)."""
    _, number = np.unique(users, return_inverse=True)
    sums, counts = np.bincount(number, difference), np.bincount(number)
    draw = np.random.default_rng(seed)
    means = []
    for _ in range(RESAMPLED):
        drawn = np.bincount(draw.integers(len(sums), size=len(sums)), minlength=len(sums))
        means.append(drawn @ sums / (drawn @ counts))
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(*(round(float(value), 4) for value in (difference.mean(), low, high)))


class Lists(NamedTuple):
    """What was recommended."""

    rows: Numbers
    """(predictions, k)."""

    def coverage(self, available: int) -> float:
        """Share of the available items that were recommended to anyone."""
        return len(np.unique(self.rows)) / available

    def novelty(self, counts: Values) -> float:
        """Mean information of a recommended item, in bits; `counts` (rows,) say how often each was met before."""
        shares = (counts + 1) / (counts + 1).sum()
        return float(-np.log2(shares[self.rows]).mean())

    def diversity(self, vectors: NDArray[np.float32]) -> float:
        """Mean of 1 - cosine over the pairs of a list; `vectors` (rows, dim). One of zeros is like none."""
        unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
        k = self.rows.shape[1]
        with_themselves = (unit**2).sum(1)
        likeness = [
            ((unit[rows].sum(0) ** 2).sum() - with_themselves[rows].sum()) / (k * (k - 1)) for rows in self.rows
        ]
        return float(1 - np.mean(likeness))


QUALITIES = ("log loss", "AUC", "calibration error")


def qualities(figures: Mapping[str, float]) -> list[str]:
    """The figures of a probability as a person reads them, in the order of `QUALITIES`."""
    return [f"{figures[key]:.4f}" if key in figures else "-" for key in ("log_loss", "auc", "calibration_error")]


class Calibration(NamedTuple):
    """Predicted probabilities against what happened."""

    error: float
    """Expected calibration error (Guo et al., ICML 2017), over bins with as many predictions each."""
    bins: list[tuple[float, float, int]]
    """Mean probability, share that came true, how many."""


def calibration(probabilities: NDArray[np.floating], happened: NDArray[np.bool_], bins: int = 10) -> Calibration:
    """`probabilities` and `happened` (n,)."""
    order = np.argsort(probabilities, kind="stable")
    ascending = probabilities[order]
    firsts = np.searchsorted(ascending, ascending[np.arange(bins) * len(order) // bins])
    parts = np.split(order, np.unique(firsts)[1:])  # what is equally likely stays together
    table = [(float(probabilities[part].mean()), float(happened[part].mean()), len(part)) for part in parts]
    error = sum(abs(said - came) * count for said, came, count in table) / len(order)
    return Calibration(error, table)
