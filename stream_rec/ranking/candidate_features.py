"""What speaks for an item: the candidates for a user's next one, and each part of their scores but the decoder's.

Candidates are the decoder's nearest items, what the memory knows around the user's last ones, items that are like
those, what is popular now, and the user's own. Only they are scored: a few hundred of any catalogue.
"""

import contextlib
import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

from stream_rec.features.catalog import NO_CATEGORY, Catalog
from stream_rec.features.forward_decay import Heard, Sums
from stream_rec.features.item_similarity import NeighbourTable
from stream_rec.features.online_statistics import REACH, OnlineStatistics
from stream_rec.features.tokens import Numbers

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
category     1 for the last item's category, if it has one, but not in the window
price        exp(-3 times the distance of log prices to the last item's)
repeat       1 for the last item
"""
DECODER, TRANSITIONS, REVERSE, TOGETHER, TEXT, WORDS, POPULARITY, AGAIN, RECENCY, SESSION, CATEGORY, PRICE, REPEAT = (
    range(len(PARTS))
)
SCALES = ((TRANSITIONS, 5), (REVERSE, 5), (TOGETHER, 20), (TEXT, 10), (WORDS, 10), (POPULARITY, 1), (AGAIN, 1))
"""Parts that are the logarithm of one and a sum, times ..."""

Columns = NDArray[np.float32]
F = TypeVar("F", bound=Callable[..., Any])


class CandidateFeatures(NamedTuple):
    """Candidates, none twice."""

    rows: Numbers
    """(candidates,)"""
    columns: Columns
    """(candidates, len(PARTS)); the decoder's is not filled in."""


class Items(NamedTuple):
    """What the catalogue says of its items, by row; arrays are as long as the catalogue, or longer."""

    text: NeighbourTable
    words: NeighbourTable
    categories: Numbers
    """`NO_CATEGORY` where there is none."""
    prices: NDArray[np.float32]
    """Logarithms, NaN where there is none."""


class FeatureExtractor(NamedTuple):
    """What speaks for items."""

    memory: OnlineStatistics
    items: Items
    mark: NDArray[np.int32]
    """Scratch, as long as the catalogue, or longer."""

    @classmethod
    def of(cls, memory: OnlineStatistics, catalog: Catalog) -> Self:
        items = Items(catalog.text, catalog.words, catalog.categories, catalog.prices)
        return cls(memory, items, np.zeros(len(catalog.stamps), np.int32))

    def extract(self, window: Sequence[int], near: Numbers) -> CandidateFeatures:
        """The candidates for the next item after the rows of a `window`, oldest first; `near` (n,), the decoder's, are
        among them."""
        memory, recent = self.memory, window[: -REACH - 1 : -1]
        tables = (memory.transitions, memory.popularity, memory.recency)
        weights = [table.decay.weight(memory.now) for table in tables]
        heard = [*map(memory.transitions.after, recent), *map(memory.transitions.before, recent)]
        known = StatisticsView(
            Heard(np.concatenate([one.rows for one in heard]), np.concatenate([one.weights for one in heard])),
            np.array([len(one.rows) for one in heard]),
            memory.popularity.sums,
            memory.recency.sums,
            np.array(weights),
            memory.recency.highest,
        )
        return CandidateFeatures(*_found(np.array(window), np.array(recent), near, known, self.items, self.mark))


class StatisticsView(NamedTuple):
    """What the memory knows around a user."""

    heard: Heard
    """What has followed each of the last items, latest first; then what each has followed."""
    lengths: Numbers
    """Of each of these lists, (2 last,)."""
    popularity: Sums
    """(rows,) or fewer."""
    recency: Sums
    """Likewise."""
    weights: Sums
    """Of now: what sums of transitions, popularity and recency are divided by, (3,)."""
    popular: Numbers


def _compiled(function: F) -> F:
    """Compiled when it is called first; kept beside the code, or in the user's cache, for the next process."""
    try:
        compiled = njit(cache=True, nogil=True)(function)
    except RuntimeError:  # neither can be written
        return cast(F, njit(nogil=True)(function))
    stats = getattr(compiled, "stats", None)  # not where numba is switched off
    if stats is not None and stats.cache_path is not None:
        _remove_stale(Path(stats.cache_path))
    return cast(F, compiled)


@functools.cache
def _remove_stale(folder: Path) -> None:
    """Removes from `folder` what was compiled from another version of this file.

    Numba reads an index before it compares the file's stamp, and raises where the index names a class that this version
    does not have (numba issue 6018): after an upgrade, no window would be answered.
    """
    source = Path(__file__)
    stamp = folder / f"{source.stem}.sha256"
    with contextlib.suppress(OSError):
        digest = hashlib.sha256(source.read_bytes()).hexdigest()
        if stamp.exists() and stamp.read_bytes() == digest.encode():
            return
        for compiled in folder.glob(f"{source.stem}.*.nb[ci]"):
            compiled.unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        stamp.write_text(digest)


@_compiled
def _found(
    window: Numbers, recent: Numbers, near: Numbers, known: StatisticsView, items: Items, mark: NDArray[np.int32]
) -> tuple[Numbers, Columns]:
    """The candidates, and their columns but the decoder's."""
    rows = _candidates(window, recent, near, known, items, mark)
    sums = np.zeros((len(rows), len(PARTS)))  # not float32 yet: seen from long ago, sums are huge
    for at, row in enumerate(rows):
        sums[at, POPULARITY] = _count(known.popularity, row) / known.weights[1]
        sums[at, RECENCY] = _count(known.recency, row) / known.weights[2]
    _follow(sums, recent, known, mark)
    _resemble(sums, TEXT, recent[:3], items.text, 0.7, 3, mark)
    _resemble(sums, WORDS, recent, items.words, 0.85, 1, mark)
    for row in window:
        sums[mark[row], AGAIN] += 1
    for distance, row in enumerate(recent, 1):
        sums[mark[row], SESSION] += 0.8**distance
    last = recent[0]
    columns = np.zeros((len(rows), len(PARTS)), np.float32)
    for at, row in enumerate(rows):
        for part, scale in SCALES:
            if sums[at, part]:
                columns[at, part] = np.log(1 + scale * sums[at, part])  # log1p takes twice as long
        columns[at, RECENCY] = np.log(sums[at, RECENCY] + 0.05)
        columns[at, SESSION] = sums[at, SESSION]
        if items.categories[last] != NO_CATEGORY:
            columns[at, CATEGORY] = not sums[at, AGAIN] and items.categories[row] == items.categories[last]
        apart = abs(items.prices[row] - items.prices[last])
        columns[at, PRICE] = 0 if np.isnan(apart) else np.exp(-3 * apart)  # without a price nothing is close
    at = mark[last]
    columns[at, SESSION] = columns[at, AGAIN] = 0
    columns[at, REPEAT] = 1
    return rows, columns


@_compiled
def _candidates(
    window: Numbers, recent: Numbers, near: Numbers, known: StatisticsView, items: Items, mark: NDArray[np.int32]
) -> Numbers:
    """Every candidate once; `mark` says the place of each."""
    lists = (known.heard.rows, near, known.popular, window)
    most = len(recent) * (items.text.rows.shape[1] + items.words.rows.shape[1])
    for one in lists:
        most += len(one)
    rows, count = np.empty(most, np.int64), 0
    for one in lists:
        for row in one:
            count = _enter(rows, count, row, mark)
    for likeness, last in ((items.text, recent[:3]), (items.words, recent)):
        for row in last:
            for entry in range(likeness.rows.shape[1]):
                if likeness.cosines[row, entry] > 0:
                    count = _enter(rows, count, likeness.rows[row, entry], mark)
    return rows[:count].copy()


@_compiled
def _enter(rows: Numbers, count: int, row: int, mark: NDArray[np.int32]) -> int:
    """Adds `row` to the `count` first of `rows` unless it is there; what `mark` says of others may be anything."""
    at = mark[row]
    if at < count and rows[at] == row:
        return count
    rows[count], mark[row] = row, count
    return count + 1


@_compiled
def _count(sums: Sums, row: int) -> float:
    return sums[row] if row < len(sums) else 0.0


@_compiled
def _follow(sums: Sums, recent: Numbers, known: StatisticsView, mark: NDArray[np.int32]) -> None:
    """Adds what the memory has heard."""
    begin = 0
    for number, length in enumerate(known.lengths):
        distance = number % len(recent)
        part = TRANSITIONS if number < len(recent) else REVERSE
        rare = 1 / np.sqrt(sums[mark[recent[distance]], POPULARITY] + 1)
        for entry in range(begin, begin + length):
            at = mark[known.heard.rows[entry]]
            weight = known.heard.weights[entry] / known.weights[0] / (distance + 1)
            sums[at, part] += weight
            sums[at, TOGETHER] += weight * rare / np.sqrt(sums[at, POPULARITY] + 1)
        begin += length


@_compiled
def _resemble(
    sums: Sums, part: int, recent: Numbers, likeness: NeighbourTable, decay: float, power: int, mark: NDArray[np.int32]
) -> None:
    """Adds what is like the last items, latest first: cosines to a power, times the decay."""
    for distance, row in enumerate(recent):
        for entry in range(likeness.rows.shape[1]):
            cosine = likeness.cosines[row, entry]
            if cosine > 0:
                sums[mark[likeness.rows[row, entry]], part] += decay**distance * cosine**power
