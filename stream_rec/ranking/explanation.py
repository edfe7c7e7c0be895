"""Why an answer is what it is: what each part adds to a score, and what each event of the window changes.

Parts are the blend's, so they add up to the score. An event's influence is found by leaving it out (Li, Monroe and
Jurafsky, "Understanding neural networks through representation erasure", 2016): the shorter window is answered by the
same model and the same memory, at the same moment.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from msgspec import Struct
from msgspec.structs import replace
from torch import Tensor

from stream_rec.features.forward_decay import Heard
from stream_rec.messages import Window
from stream_rec.ranking.blend import BARRED, CandidateTable, Ranked, Scored
from stream_rec.ranking.candidate_features import PARTS, FeatureExtractor


class Reason(Struct, frozen=True):
    """Why an item stands where it stands."""

    item_id: str
    score: float
    probability: float
    parts: dict[str, float]
    """What each part adds: its column times its weight. Their sum is the score."""


class Influence(Struct, frozen=True):
    """What an event of the window does to the answer: the answer with it beside the answer without it."""

    item_id: str
    event_type: str
    timestamp: float
    moved: float
    """Share of the probability that lies on other items because of it, 0 to 1 (total variation distance)."""
    gains: tuple[float, ...]
    """What each item of the answer gains by it, in probability."""


class Explanation(Struct, frozen=True):
    user_id: str
    seq: int
    model: str
    items: tuple[Reason, ...]
    """The answer, best first."""
    events: tuple[Influence, ...]
    """The window, oldest first; none where it holds a single event, without which there is no answer."""


class Neighbour(Struct, frozen=True):
    item_id: str
    weight: float


class Neighbours(Struct, frozen=True):
    """What stands near an item, nearest first."""

    followed_by: tuple[Neighbour, ...]
    """Shares of what came after it, within a few events."""
    follows: tuple[Neighbour, ...]
    """Shares of what it came after."""
    similar: tuple[Neighbour, ...]
    """Cosines of the texts' meaning."""
    same_words: tuple[Neighbour, ...]
    """Cosines of the texts' words."""


def shortened(window: Window) -> Iterator[Window]:
    """The window without its first event, without its second one, and so on; none of a single event."""
    if len(window.events) > 1:
        for at in range(len(window.events)):
            yield replace(window, n=window.n - 1, events=window.events[:at] + window.events[at + 1 :])


def reasons(table: CandidateTable, ranked: Ranked, weights: Tensor, ids: Sequence[str]) -> tuple[Reason, ...]:
    """The first answer of `ranked`, taken apart; `table` holds the candidates, `ids` (k,) names the answer's items."""
    mine = table.answers == 0
    place = (table.rows[mine] == ranked.rows[0][:, None]).int().argmax(dim=1)
    added = table.columns[mine][place] * weights.to(table.columns)
    shown = int((ranked.scores[0] > BARRED).sum())
    columns = (ids, ranked.scores[0].tolist(), ranked.probabilities[0].tolist(), added.tolist())
    return tuple(
        Reason(item, score, probability, dict(zip(PARTS, parts, strict=True)))
        for item, score, probability, parts in list(zip(*columns, strict=True))[:shown]
    )


def influences(window: Window, scored: Scored, ranked: Ranked) -> tuple[Influence, ...]:
    """`scored` holds all candidates of the window and of each of the `shortened` ones, in this order."""
    rows, place = torch.unique(scored.rows, return_inverse=True)
    chances = scored.probabilities.new_zeros(len(place), len(rows)).scatter_add_(1, place, scored.probabilities)
    change = chances[0] - chances[1:]
    gains = change[:, torch.searchsorted(rows, ranked.rows[0])]
    return tuple(
        Influence(event.item_id, event.event_type, event.timestamp, moved, tuple(gained))
        for event, moved, gained in zip(
            window.events, (change.abs().sum(dim=1) / 2).tolist(), gains.tolist(), strict=False
        )
    )


def around(row: int, evidence: FeatureExtractor, ids: Callable[[Sequence[int]], list[str]], count: int) -> Neighbours:
    """The `count` nearest of each kind; `ids` names rows."""
    known, alike = evidence.memory.transitions, (evidence.items.text, evidence.items.words)
    heard = [Heard(one.rows, one.weights / one.weights.sum()) for one in (known.after(row), known.before(row))]
    heard += [Heard(one.rows[row], one.cosines[row]) for one in alike]
    return Neighbours(*(_nearest(one, ids, count) for one in heard))


def _nearest(heard: Heard, ids: Callable[[Sequence[int]], list[str]], count: int) -> tuple[Neighbour, ...]:
    best = np.argsort(-heard.weights, kind="stable")[:count]
    best = best[heard.weights[best] > 0]
    return tuple(map(Neighbour, ids(heard.rows[best].tolist()), heard.weights[best].tolist()))
