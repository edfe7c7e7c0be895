"""Two models on the same windows: how well each foresaw what came next, and where their answers differ.

Both are whole engines, as they would serve: windows are made as the agents make them, one step answers many, and each
model's memory learns every window before it is asked. Nothing is published.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct

from stream_rec.errors import UserError
from stream_rec.evaluation import metrics
from stream_rec.evaluation.metrics import CUT, MISSED, Interval, Ranks, Values
from stream_rec.features.tokens import Numbers
from stream_rec.messages import Event, Rejected, Window
from stream_rec.runtime.progress import Progress
from stream_rec.window import append

if TYPE_CHECKING:
    from stream_rec.serving.engine import Engine

AT_ONCE = 256
"""Windows that are answered before the next are made."""
MOST_CHANGED = 10
"""Users that are named."""
DIGITS = 4
"""Of a share, those that are worth telling."""
MEASURES: dict[str, Callable[[Ranks], Values]] = {
    f"hr_at_{CUT}": lambda ranks: ranks.hits(CUT),
    f"ndcg_at_{CUT}": lambda ranks: ranks.gains(CUT),
    "mrr": Ranks.reciprocal,
}
"""Of a prediction, by the names of the figures: an item that is not in the answer counts 0."""

Pair = tuple["Engine", "Engine"]
Lists = tuple[list[str], list[str]]
"""The items of both answers to one window, best first."""


class Changed(Struct, frozen=True):
    """A user, and what changed."""

    user_id: str
    answers: int
    overlap_at_10: float
    """Mean share of the first ten items that both answers have."""
    predictions: int
    hits_at_10: tuple[int, int]
    """Predictions of which the next item was among the first ten, by model."""


class Comparison(Struct, frozen=True):
    """All figures; those of a pair stand in the order of the models."""

    answers: int
    """Windows that both answered."""
    predictions: int
    """Answers after which an event of the user came."""
    users: int
    accuracy: list[dict[str, float]]
    """Means over the predictions."""
    difference: dict[str, Interval]
    """The second model's less the first's, with 95% of what resampled users give."""
    overlap_at_10: float
    same_first: float
    """Share of the answers with the same first item."""
    most_changed: list[Changed]
    """Users with the smallest overlap; of equal ones, those with the most answers."""


class Ledger:
    """Takes pairs of answers, window by window; compares a window's last event with the answers before it.

    Users are numbered as they come; columns have an entry an answer, or a prediction.
    """

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._held: dict[int, Lists] = {}
        self._answered, self._overlaps, self._same = array("q"), array("d"), array("b")
        self._predicted, self._ranks = array("q"), (array("q"), array("q"))

    def take(self, window: Window, said: Lists) -> None:
        """Both models' answers to `window`; of one user, windows come in their order."""
        user = self._numbers.setdefault(window.user_id, len(self._numbers))
        if before := self._held.get(user):
            self._predicted.append(user)
            for ranks, items in zip(self._ranks, before, strict=True):
                ranks.append(place(window.events[-1].item_id, items))
        self._held[user] = said
        self._answered.append(user)
        self._overlaps.append(overlap(said[0][:CUT], said[1][:CUT]))
        self._same.append(said[0][:1] == said[1][:1])

    def close(self) -> Comparison:
        """Raises `UserError` where no answer can be compared with a next event."""
        if not self._predicted:
            raise UserError(
                f"of {len(self._answered):,} events none is a user's second: there is no next event to compare"
            )
        users = np.array(self._predicted)
        ranks = [Ranks(np.arange(len(users)), np.array(one), len(users)) for one in self._ranks]
        values = {name: [measure(one) for one in ranks] for name, measure in MEASURES.items()}
        return Comparison(
            answers=len(self._answered),
            predictions=len(users),
            users=len(np.unique(users)),
            accuracy=[{name: _rounded(two[at].mean()) for name, two in values.items()} for at in (0, 1)],
            difference={name: metrics.bootstrap(second - first, users) for name, (first, second) in values.items()},
            overlap_at_10=_rounded(np.mean(self._overlaps)),
            same_first=_rounded(np.mean(self._same)),
            most_changed=self._most_changed(users, [one.hits(CUT) for one in ranks]),
        )

    def _most_changed(self, users: Numbers, hits: Sequence[Values]) -> list[Changed]:
        count, names = len(self._numbers), list(self._numbers)
        answers = np.bincount(self._answered, minlength=count)
        overlaps = (np.bincount(self._answered, self._overlaps, count) / answers).round(DIGITS)
        predictions = np.bincount(users, minlength=count)
        right = [np.bincount(users, one, count) for one in hits]
        return [
            Changed(
                names[user],
                int(answers[user]),
                float(overlaps[user]),
                int(predictions[user]),
                (int(right[0][user]), int(right[1][user])),
            )
            for user in np.lexsort((-answers, overlaps))[:MOST_CHANGED].tolist()
        ]


def compare(models: Pair, windows: Iterator[Window], first: int, end: int, progress: Progress) -> Comparison:
    """Has both models answer the `windows` from offset `first` on, and learn those before it; `end` is their end.

    Raises `UserError` where no answer can be compared with a next event.
    """
    ledger = Ledger()
    later = _taught(models, windows, first, progress)
    while asked := list(islice(later, AT_ONCE)):
        for window, one, other in zip(asked, *(_answers(model, asked) for model in models), strict=True):
            ledger.take(window, (one, other))
        progress("answering", asked[-1].offset + 1 - first, end - first)
    progress("resampling users", 0, 1)
    return ledger.close()


def windows_of(events: Iterable[Event], capacity: int, stride: int) -> Iterator[Window]:
    """The window after each event, as the agents make it; an event's offset is its place among `events`.

    An event whose id its user's window holds already makes none.
    """
    held: dict[str, Window] = {}
    for offset, event in enumerate(events):
        with suppress(Rejected):
            held[event.user_id] = window = append(
                held.get(event.user_id),
                event,
                offset=offset,
                arrived=event.timestamp,
                capacity=capacity,
                stride=stride,
            )
            yield window


def place(item: str, items: Sequence[str]) -> int:
    """Of `item` in a list, 0 for the first; `MISSED` where it is not in it."""
    return items.index(item) if item in items else MISSED


def overlap(one: Sequence[str], other: Sequence[str]) -> float:
    """Share of the items that two lists have in common, of the longer one.

    >>> overlap("abcd", "badx"), overlap("ab", "abcd"), overlap("", "")
    (0.75, 0.5, 1.0)
    """
    longer = max(len(one), len(other))
    return len(set(one) & set(other)) / longer if longer else 1.0


def _taught(models: Pair, windows: Iterator[Window], first: int, progress: Progress) -> Iterator[Window]:
    """Teaches both models the windows before offset `first`; the others remain."""
    for window in windows:
        if window.offset >= first:
            yield window
            continue
        for model in models:
            model.learn(window)
        if window.offset % 1_000 == 0:
            progress("learning what came before", window.offset, first)


def _answers(model: "Engine", windows: Sequence[Window]) -> Iterator[list[str]]:
    """The items of the model's answer to each of `windows`, in steps that it can afford."""
    left = list(windows)
    while left:
        count = model.affordable(left)
        step = model.step(left[:count])
        for error in step.failed.values():
            raise error
        for answer in step.recommendations:
            yield [ranked.item_id for ranked in answer.items]
        left = left[count:]


def _rounded(value: float | np.floating) -> float:
    return round(float(value), DIGITS)
