"""Ranked rows to recommendations as they stand in the topic: numbers get names, and no digits that say nothing."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from stream_rec.features.catalog import NO_CATEGORY
from stream_rec.messages import Interest, RankedItem, Recommendation, Window
from stream_rec.ranking.blend import BARRED, Ranked


class Names(NamedTuple):
    """What numbers stand for."""

    model: str
    """The model's version."""
    event_types: Sequence[str]
    categories: Sequence[str]
    """The first one, `NO_CATEGORY`, is that of items without."""
    items: Callable[[Sequence[int]], list[str]]
    """Of rows."""


def recommendations(
    windows: Sequence[Window],
    ranked: Ranked,
    types: Tensor,
    interest: Tensor | None,
    names: Names,
    interests: int,
) -> list[Recommendation]:
    """One a window. `types` (windows, event types) and `interest` (windows, k), if any, are probabilities.

    Of the interests by category the `interests` strongest are named.
    """
    named = ranked.interests[:, NO_CATEGORY + 1 :]
    best = named.topk(min(interests, named.shape[1]), dim=1)
    shown = (ranked.scores > BARRED).sum(dim=1)
    counts, rows, labels = (one.cpu().numpy() for one in (shown, ranked.rows, best.indices))  # their `tolist` is fast
    wanted = np.full(ranked.rows.shape, None) if interest is None else _rounded(interest, 5)
    columns = (
        *(counts, rows, _rounded(ranked.scores, 4), _rounded(ranked.probabilities, 6), wanted),
        *(labels + NO_CATEGORY + 1, _rounded(best.values, 4), _rounded(types, 4)),
    )
    return [
        Recommendation(
            user_id=window.user_id,
            seq=window.n,
            offset=window.offset,
            event_time=window.events[-1].timestamp,
            items=tuple(map(RankedItem, names.items(rows[:count]), scores, probabilities, goals)),
            next_event=dict(zip(names.event_types, next_types, strict=True)),
            interests=tuple(map(Interest, map(names.categories.__getitem__, labels), weights)),
            model=names.model,
            topic_id=window.topic_id,
        )
        for window, count, rows, scores, probabilities, goals, labels, weights, next_types in zip(
            windows, *(column.tolist() for column in columns), strict=True
        )
    ]


def _rounded(values: Tensor, digits: int) -> NDArray[np.float64]:
    """What is worth writing: the shortest decimals within float32's precision."""
    return values.cpu().numpy().astype(np.float64).round(digits)
