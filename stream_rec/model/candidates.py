"""A big catalogue, of which each answer scores a shortlist: what an index finds, and what the online memory knows.

The blend adds to the decoder's score only for rows in the memory, and never less than nothing but for the last item. So
the best rows of the blend are among the decoder's best, the rows in the memory, and the last item, all of which are
scored exactly: the answer is that of scoring everything, as far as the index finds the decoder's best.

The probabilities need the sum over all items. What is outside the shortlist is estimated from a fixed random sample of
rows, scored exactly and weighted up: for any shortlist that doesn't depend on the sample the estimate has no bias
(Rastogi and Van Durme, "Sublinear Partition Estimation", 2015).
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from msgspec.structs import astuple
from numpy.typing import NDArray
from torch import Tensor

from stream_rec.model.index import Index
from stream_rec.model.scorer import BARRED, Blend, Candidates, Memory, Scored, best, queries
from stream_rec.model.tokens import UNKNOWN, Numbers

NEAREST = 256
"""Rows that the index is asked for, at least, at the usual effort."""
SAMPLE = 4_096
"""Rows that stand for what is outside the shortlist."""
GROWN = 4
"""An index that has become so many times as big is built anew: its lists have grown too long."""
TOGETHER = 16
"""Answers whose candidates are scored at a time: their vectors stay in the processor's cache."""


class Sample(NamedTuple):
    """Rows drawn at random from those that may be recommended, and an empty one at the end."""

    outputs: Tensor
    """(size + 1, width)."""
    categories: Tensor
    """(size + 1,)."""
    place: Tensor
    """Where each row of the catalogue stands in the sample, (rows,); `size` for those that don't."""

    @classmethod
    def of(cls, items: Candidates, allowed: Numbers) -> "Sample":
        """`allowed`: the rows that may be recommended. The same catalogue gives the same sample."""
        size = min(SAMPLE, len(allowed))
        drawn = np.random.default_rng(0).choice(allowed, size, replace=False, shuffle=False)
        rows = torch.from_numpy(drawn).to(items.outputs.device)
        place = torch.full_like(items.categories, size)
        place[rows] = torch.arange(size, device=rows.device)
        nothing = items.outputs.new_zeros(1, items.outputs.shape[1])
        return cls(torch.cat([items.outputs[rows], nothing]), items.categories[torch.cat([rows, rows[:1]])], place)


class Shortlist(NamedTuple):
    """Candidates of each answer, none twice, with their exact scores; both (batch, width)."""

    rows: Tensor
    scores: Tensor
    """`BARRED` where there is no candidate, or one that may not be recommended."""


class Shortlister:
    """Scores shortlists of a catalogue that changes. `effort` as `Index` takes it."""

    def __init__(self, items: Candidates, effort: float = 1.0) -> None:
        self._effort = effort
        self._held: NDArray[np.bool_] = np.zeros(0, np.bool_)
        self._build(items, _allowed(items))

    @property
    def index_bytes(self) -> int:
        """Memory of the index."""
        return self._index.nbytes

    def update(self, items: Candidates, changed: Numbers) -> None:
        """The catalogue is now `items`; the vectors of `changed` (n,) are new. What may be recommended no more goes."""
        wanted, held = _allowed(items), np.zeros(len(items.outputs), np.bool_)
        held[: len(self._held)] = self._held
        moved = np.zeros(len(held), np.bool_)
        moved[changed] = True
        gone, come = np.flatnonzero(held & (moved | ~wanted)), np.flatnonzero(wanted & (moved | ~held))
        if len(self._index) + len(come) - len(gone) > GROWN * self._built_with:
            self._build(items, wanted)
            return
        if len(gone):
            self._index.remove(gone)
        if len(come):
            self._index.add(items.outputs, come)
        self._keep(items, wanted)

    def score(self, states: Tensor, memory: Memory, weights: Blend, pool: int, seen: Tensor) -> Scored:
        """What `scorer.score_all` gives for all items, from a shortlist of them. Same arguments, less the items."""
        asked = queries(states, weights)
        near = self._index.search(asked, max(math.ceil(self._effort * NEAREST), 2 * pool) + seen.shape[1])
        short = shortlist(asked, near, memory, self._items, weights)
        log_mass, interests = self._spread(asked, short)
        values, at = best(_without(short, seen), pool)
        return Scored(short.rows.gather(1, at), values, log_mass, interests)

    def _build(self, items: Candidates, wanted: NDArray[np.bool_]) -> None:
        self._index = Index(items.outputs, np.flatnonzero(wanted), self._effort)
        self._built_with = len(self._index)
        self._keep(items, wanted)

    def _keep(self, items: Candidates, wanted: NDArray[np.bool_]) -> None:
        self._items, self._held = items, wanted
        self._sample = Sample.of(items, np.flatnonzero(wanted))

    def _spread(self, asked: Tensor, short: Shortlist) -> tuple[Tensor, Tensor]:
        """The logarithm of the mass of all items (batch, 1), and the categories' shares of it (batch, categories)."""
        highest = short.scores.amax(dim=1, keepdim=True)
        masses = (short.scores - highest).exp_()
        place = _at(self._sample.place, short.rows)
        rest = (asked @ self._sample.outputs.T).sub_(highest).exp_().scatter_(1, place, 0)
        rest[:, -1] = 0
        candidates = short.scores > BARRED
        size = len(self._sample.outputs) - 1
        sampled = size - (candidates & (place < size)).sum(dim=1, keepdim=True)
        rest *= (len(self._index) - candidates.sum(dim=1, keepdim=True)) / sampled.clamp(min=1)
        interests = masses.new_zeros(len(asked), len(self._items.labels))
        interests.scatter_add_(1, _at(self._items.categories, short.rows), masses)
        interests.index_add_(1, self._sample.categories, rest)
        mass = masses.sum(dim=1, keepdim=True) + rest.sum(dim=1, keepdim=True)
        return highest + mass.log(), interests / mass


def shortlist(asked: Tensor, near: Tensor, memory: Memory, items: Candidates, weights: Blend) -> Shortlist:
    """The union of `near` (batch, n; -1 for none), the memory's rows and the last item, scored exactly.

    `asked` (batch, width) as `scorer.queries` gives it.
    """
    _, transitions, repeat = astuple(weights)
    rows = torch.cat([near.clamp(min=UNKNOWN), memory.last[:, None]], dim=1).sort(dim=1).values
    pairs = zip(torch.split(rows, TOGETHER), torch.split(asked, TOGETHER), strict=True)
    scores = torch.cat([torch.bmm(one[:, None], _at(items.outputs, part).mT)[:, 0] for part, one in pairs])
    scores += repeat * (rows == memory.last[:, None])
    total = len(items.outputs)
    keys = (rows + torch.arange(len(rows), device=rows.device)[:, None] * total).flatten()
    wanted = memory.rows + memory.answers * total
    at = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    found = keys[at] == wanted
    scores.view(-1)[at[found]] += transitions * memory.weights[found]
    scores.masked_fill_(_at(items.barred, rows), BARRED)
    scores[:, 1:].masked_fill_(rows[:, 1:] == rows[:, :-1], BARRED)
    more = _scored(asked, memory, ~found, items, transitions)
    return Shortlist(torch.cat([rows, more.rows], dim=1), torch.cat([scores, more.scores], dim=1))


def _at(table: Tensor, rows: Tensor) -> Tensor:
    """`table[rows]`, which takes three times as long."""
    return table.index_select(0, rows.flatten()).view(*rows.shape, *table.shape[1:])


def _scored(asked: Tensor, memory: Memory, chosen: Tensor, items: Candidates, transitions: float) -> Shortlist:
    """The memory's `chosen` (entries,) rows, padded on the right to those of the answer that has most."""
    answers, rows = memory.answers[chosen], memory.rows[chosen]
    scores = (_at(items.outputs, rows) * asked[answers]).sum(dim=1) + transitions * memory.weights[chosen]
    counts = torch.bincount(answers, minlength=len(asked))
    place = torch.arange(len(answers), device=answers.device) - (counts.cumsum(0) - counts)[answers]
    shape = (len(asked), int(counts.max()))
    filled = torch.full(shape, UNKNOWN, device=rows.device)
    filled[answers, place] = rows
    values = asked.new_full(shape, BARRED)
    values[answers, place] = torch.where(_at(items.barred, rows), BARRED, scores)
    return Shortlist(filled, values)


def _without(short: Shortlist, seen: Tensor) -> Tensor:
    """The scores of a shortlist with `BARRED` for the rows `seen` (batch, any) by each user."""
    if not seen.shape[1]:
        return short.scores
    seen = seen.sort(dim=1).values
    at = torch.searchsorted(seen, short.rows).clamp(max=seen.shape[1] - 1)
    return short.scores.masked_fill(seen.gather(1, at) == short.rows, BARRED)


def _allowed(items: Candidates) -> NDArray[np.bool_]:
    allowed: NDArray[np.bool_] = (~items.barred).cpu().numpy()
    return allowed
