"""Whether what comes still looks like what the model was trained for: population stability indices.

The index of two distributions over the same bins is sum((p - q) ln(p / q)) (Siddiqi, "Credit Risk Scorecards", 2006): 0
where they are equal; by custom more than 0.1 is a shift worth a look, more than 0.25 one that asks for training anew.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

Shares = NDArray[np.float64]

PARTS = 10
"""Bins of equal mass."""
LEAST_SHARE = 1e-3
"""A bin counts as holding this share at least: an empty one would make the index infinite."""
HALF_LIFE = 5_000
"""Events after which an event counts half: the live distribution is that of the last ten thousand or so."""
ENOUGH = 1_000
"""Events before which nothing is said: of fewer, chance alone is seen."""


class Reference(Struct, frozen=True):
    """What the events looked like that the model was validated on: the first ones that its training had not seen."""

    items: tuple[float, ...]
    """Share of each of the `PARTS` bins of items by popularity, and of items that training had not met."""
    event_types: dict[str, float]
    score_edges: tuple[float, ...]
    """Of the first item's probability, ascending."""
    scores: tuple[float, ...]
    """Share of each bin between those edges, below the first and above the last: one more than edges."""


class Population:
    """How observations fall into bins of late, beside the shares (bins,) expected."""

    def __init__(self, expected: Sequence[float]) -> None:
        self._expected = np.array(expected)
        self._counts = np.zeros(len(expected))
        self._seen = 0

    def observe(self, bins: NDArray[np.int64]) -> None:
        """`bins` (n,): the numbers of the bins that n events fell into."""
        self._counts *= 0.5 ** (len(bins) / HALF_LIFE)
        self._counts += np.bincount(bins, minlength=len(self._counts))
        self._seen += len(bins)

    @property
    def index(self) -> float | None:
        """None until `ENOUGH` was seen."""
        return stability(self._expected, self._counts) if self._seen >= ENOUGH else None


class Drift:
    """The indices of a model in service; `popularity` (rows,) are the item counts that its training ended with."""

    def __init__(self, reference: Reference, popularity: Shares) -> None:
        self._bins = by_popularity(popularity)
        self._types = {name: number for number, name in enumerate(reference.event_types)}
        self._edges = np.array(reference.score_edges)
        self._populations = {
            "items": Population(reference.items),
            "event_types": Population([*reference.event_types.values(), 0.0]),  # the last one: others
            "scores": Population(reference.scores),
        }

    def observe(self, rows: Sequence[int], event_types: Iterable[str], scores: NDArray[np.floating[Any]]) -> None:
        """Of n events: their items' catalogue rows, their types, and the first probability of the answers."""
        others = len(self._types)
        populations = self._populations
        populations["items"].observe(bins_of(np.array(rows, np.int64), self._bins))
        populations["event_types"].observe(np.array([self._types.get(name, others) for name in event_types]))
        populations["scores"].observe(np.searchsorted(self._edges, scores, side="right"))

    def indices(self) -> dict[str, float]:
        """By what has drifted; empty until enough was seen."""
        found = {name: population.index for name, population in self._populations.items()}
        return {name: index for name, index in found.items() if index is not None}


def stability(expected: Shares, counts: Shares) -> float:
    """The index of the shares (bins,) expected and those of the `counts` (bins,)."""
    ours, theirs = (np.maximum(shares / shares.sum(), LEAST_SHARE) for shares in (counts, expected))
    return float(((ours - theirs) * np.log(ours / theirs)).sum())


def by_popularity(counts: Shares) -> NDArray[np.int64]:
    """The bin of each row by its count (rows,): `PARTS` of equal mass, the most popular first; uncounted ones last."""
    bins = np.full(len(counts), PARTS)
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    mass = counts[order].cumsum()
    bins[order] = np.minimum(PARTS - 1, PARTS * (mass - counts[order]) / mass[-1:]).astype(np.int64)
    return bins


def bins_of(rows: NDArray[np.int64], bins: NDArray[np.int64]) -> NDArray[np.int64]:
    """The bins of `rows` (n,); a row that `bins` does not know of was never met."""
    found: NDArray[Any] = np.where(rows < len(bins), bins[np.minimum(rows, len(bins) - 1)], PARTS)
    return found


def reference(
    popularity: Shares, rows: NDArray[np.int64], event_types: Sequence[str], types: NDArray[np.int64], scores: Shares
) -> Reference:
    """Of n events that a training with the item counts `popularity` (rows,) had not seen.

    Their items are `rows` (n,), their types the numbers `types` (n,) into `event_types`; `scores` (any,) are the first
    probabilities of answers to some of them.
    """
    items = np.bincount(bins_of(rows, by_popularity(popularity)), minlength=PARTS + 1)
    named = np.bincount(types, minlength=len(event_types))
    edges = np.unique(np.quantile(scores, np.arange(1, PARTS) / PARTS))
    binned = np.bincount(np.searchsorted(edges, scores, side="right"), minlength=len(edges) + 1)
    return Reference(
        items=tuple((items / items.sum()).tolist()),
        event_types=dict(zip(event_types, (named / named.sum()).tolist(), strict=True)),
        score_edges=tuple(edges.tolist()),
        scores=tuple((binned / binned.sum()).tolist()),
    )
