"""What speaks for an item: the candidates for a user's next one, and each part of their scores but the decoder's.

Candidates are the decoder's nearest items, what the memory knows around the user's last ones, items that are like
those, what is popular now, and the user's own. Only they are scored: a few hundred of any catalogue.
"""

from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from stream_rec.model.catalog import Catalog
from stream_rec.model.counters import REACH, Memory
from stream_rec.model.decay import Heard, Sums
from stream_rec.model.likeness import Likeness
from stream_rec.model.tokens import Numbers

PARTS = (
    "decoder",
    "transitions",
    "reverse",
    "together",
    "text",
    "words",
    "popularity",
    "again",
    "recency",
    "session",
    "category",
    "price",
    "repeat",
)
"""The parts of a score, in the order of all columns and weights.

decoder      the sequence model's log-probability, up to a constant
transitions  log(1 + 5 sum over distance d of M[h_d, j] / d), h_d the d-th last item, M what has followed what
reverse      the same with M transposed
together     log(1 + 20 sum over d of (M[h_d, j] + M[j, h_d]) / sqrt((n_h + 1) (n_j + 1)) / d), n how often
text         log(1 + 10 sum over d of .7^(d-1) cos^3), the meaning of texts
words        log(1 + 10 sum over d of .85^(d-1) cos), the words of texts
popularity   log(1 + n_j)
again        log(1 + how often j is in the window), but not the last item
recency      log(n_j + .05) with a short half-life
session      sum over d of .8^d where h_d is j, but not the last item
category     1 for the last item's category, but not in the window
price        exp(-3 times the distance of log prices to the last item's)
repeat       1 for the last item
"""
DECODER, TRANSITIONS, REVERSE, TOGETHER, TEXT, WORDS, POPULARITY, AGAIN, RECENCY, SESSION, CATEGORY, PRICE, REPEAT = (
    range(len(PARTS))
)
LOGARITHMS = slice(TRANSITIONS, AGAIN + 1)
"""Parts that are the logarithm of one and a sum, times ..."""
SCALES = np.array([5, 5, 20, 10, 10, 1, 1], np.float32)[:, None]
TEXT_DECAY, WORDS_DECAY = 0.7 ** np.arange(3), 0.85 ** np.arange(REACH)
DISTANCES = np.arange(1.0, REACH + 1)
STAYS = 0.8**DISTANCES

Columns = NDArray[np.float32]


class Asked(NamedTuple):
    """A user before the next event."""

    rows: Sequence[int]
    """Of the window's events, oldest first."""
    time: float
    """Of the last one, seconds."""


class Found(NamedTuple):
    """Candidates, none twice."""

    rows: Numbers
    """(candidates,)"""
    columns: Columns
    """(candidates, len(PARTS)); the decoder's is not filled in."""


class Evidence(NamedTuple):
    """What speaks for items, by row; arrays are as long as the catalogue, or longer."""

    memory: Memory
    text: Likeness
    words: Likeness
    categories: Numbers
    prices: NDArray[np.float32]
    """Logarithms, NaN where there is none."""
    mark: NDArray[np.int32]
    """Scratch."""

    @classmethod
    def of(cls, memory: Memory, catalog: Catalog) -> Self:
        mark = np.zeros(len(catalog.stamps), np.int32)
        return cls(memory, catalog.text, catalog.words, catalog.categories, catalog.prices, mark)

    def ask(self, asked: Asked, near: Numbers) -> Found:
        """The candidates, `near` (n,) among them: the decoder's."""
        window = np.array(asked.rows)
        recent = window[: -REACH - 1 : -1]
        heard = self._heard(recent)
        text, words = _alike(self.text, recent, TEXT_DECAY, 3), _alike(self.words, recent, WORDS_DECAY, 1)
        lists = (*(one.rows for one in heard), text.rows, words.rows, near, self.memory.recency.highest, window)
        rows, place = self._distinct(np.concatenate(lists))
        count, own, latest = len(rows), place[-len(window) :], place[: -len(recent) - 1 : -1]
        _, *ends = np.cumsum([0, *map(len, lists[:-3])]).tolist()
        columns = np.zeros((len(PARTS), count))  # not float32 yet: seen from long ago, sums are huge
        columns[TEXT] = np.bincount(place[ends[-3] : ends[-2]], text.weights, count)
        columns[WORDS] = np.bincount(place[ends[-2] : ends[-1]], words.weights, count)
        columns[POPULARITY] = self.memory.popularity.at(rows, asked.time)
        self._follow(columns, heard, place[: ends[-3]], latest, asked.time)
        columns[AGAIN] = np.bincount(own, minlength=count)
        columns[LOGARITHMS] *= SCALES
        np.log1p(columns[LOGARITHMS], out=columns[LOGARITHMS])
        columns[RECENCY] = np.log(self.memory.recency.at(rows, asked.time) + 0.05)
        columns[SESSION] = np.bincount(latest, STAYS[: len(recent)], count)
        columns[CATEGORY] = self.categories[rows] == self.categories[recent[0]]
        columns[CATEGORY, own] = 0
        apart = np.abs(self.prices[rows] - self.prices[recent[0]])
        columns[PRICE] = np.fmax(np.exp(-3 * apart), 0)  # without a price nothing is close
        columns[(SESSION, AGAIN), own[-1]] = 0
        columns[REPEAT, own[-1]] = 1
        return Found(rows, columns.T.astype(np.float32))

    def _heard(self, recent: Numbers) -> list[Heard]:
        """What has followed each of the last items, latest first; then what each has followed."""
        known = self.memory.transitions
        return [*map(known.after, recent.tolist()), *map(known.before, recent.tolist())]

    def _distinct(self, every: Numbers) -> tuple[Numbers, Numbers]:
        """The distinct ones of `every` row (n,), and the place of each among them (n,)."""
        places = np.arange(len(every), dtype=np.int32)
        self.mark[every] = places  # where a row comes twice, one of its places stays: no need to sort
        lead = self.mark[every]
        first = lead == places
        return every[first], (np.cumsum(first) - 1)[lead]

    def _follow(self, columns: Sums, heard: Sequence[Heard], place: Numbers, latest: Numbers, time: float) -> None:
        """What the memory has `heard`, at `place` (n,), as sums; the last items stand at `latest` (last,)."""
        lengths, last, count = [len(one.rows) for one in heard], len(latest), columns.shape[1]
        shares = 1 / self.memory.transitions.decay.weight(time) / DISTANCES[:last]
        weights = np.concatenate([one.weights for one in heard]) * np.concatenate([shares, shares]).repeat(lengths)
        half = sum(lengths[:last])
        columns[TRANSITIONS] = np.bincount(place[:half], weights[:half], count)
        columns[REVERSE] = np.bincount(place[half:], weights[half:], count)
        rare = 1 / np.sqrt(columns[POPULARITY] + 1)
        weights *= np.concatenate([rare[latest], rare[latest]]).repeat(lengths)
        columns[TOGETHER] = rare * np.bincount(place, weights, count)


def _alike(likeness: Likeness, recent: Numbers, decay: NDArray[np.floating], power: int) -> Heard:
    """What is like the last items, latest first: cosines to a power, times the decay."""
    recent = recent[: len(decay)]
    weights = likeness.cosines[recent] ** power * decay[: len(recent), None]
    return Heard(likeness.rows[recent].ravel().astype(np.int64), weights.ravel())
