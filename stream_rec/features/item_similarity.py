"""Which items are like which: for each item the nearest ones, kept while items come and change."""

from collections.abc import Callable
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack

from stream_rec.features.tfidf import Tfidf
from stream_rec.features.tokens import Numbers

NEAREST = 50
"""Items that are kept for each item."""
AT_ONCE = 512
"""Items that are compared with all in one go."""

Cosines = NDArray[np.float32]
Compare = Callable[[Numbers], Cosines]
"""The cosines of some rows (n,) with all rows of the catalogue, (n, rows)."""


class NeighbourTable(NamedTuple):
    """Arrays (rows, `NEAREST`); an item isn't its own neighbour, and a cosine of 0 is no neighbour."""

    rows: NDArray[np.int32]
    cosines: Cosines

    @classmethod
    def empty(cls, count: int) -> Self:
        return cls(np.zeros((count, NEAREST), np.int32), np.zeros((count, NEAREST), np.float32))

    def updated(self, count: int, changed: Numbers, compare: Compare) -> "NeighbourTable":
        """The likeness of a catalogue of `count` rows, those `changed` (n, none twice) anew.

        The arrays may be these, or longer.

        Where nothing stood before, everything is compared with everything once.
        """
        found = self._room(count)
        everything = len(changed) >= count - 1
        if not everything:
            found.cosines[np.isin(found.rows, changed)] = 0
        for begin in range(0, len(changed), AT_ONCE):
            part = changed[begin : begin + AT_ONCE]
            cosines = compare(part)
            cosines[:, 0] = 0
            cosines[np.arange(len(part)), part] = 0
            found._keep(part, cosines)
            if not everything:
                cosines[:, changed] = 0  # theirs are kept, all of them
                found._offer(part, cosines)
        return found

    def _room(self, count: int) -> "NeighbourTable":
        if count <= len(self.rows):
            return self
        more = NeighbourTable.empty(max(count, len(self.rows) + len(self.rows) // 4) - len(self.rows))
        return NeighbourTable(np.concatenate([self.rows, more.rows]), np.concatenate([self.cosines, more.cosines]))

    def _keep(self, rows: Numbers, cosines: Cosines) -> None:
        """The nearest of `rows`."""
        if cosines.shape[1] > NEAREST:
            best = np.argpartition(-cosines, NEAREST, axis=1)[:, :NEAREST]
        else:
            best = np.broadcast_to(np.arange(cosines.shape[1]), cosines.shape)
        width = best.shape[1]
        self.rows[rows] = 0
        self.cosines[rows] = 0
        self.rows[rows, :width] = best
        self.cosines[rows, :width] = np.maximum(np.take_along_axis(cosines, best, axis=1), 0)

    def _offer(self, rows: Numbers, cosines: Cosines) -> None:
        """Makes `rows` neighbours of those that they are nearer to than the last neighbour."""
        least = self.cosines[: cosines.shape[1]].min(axis=1)
        for row, near in zip(rows.tolist(), cosines, strict=True):
            better = np.flatnonzero(near > least)
            at = self.cosines[better].argmin(axis=1)
            self.rows[better, at] = row
            self.cosines[better, at] = near[better]
            least[better] = self.cosines[better].min(axis=1)


class ItemSimilarity(NamedTuple):
    """What is like what in a catalogue, by what texts mean and by their words."""

    lexicon: Tfidf
    text: NeighbourTable
    words: NeighbourTable


def by_direction(vectors: NDArray[np.float32]) -> Compare:
    """Cosines of `vectors` (rows, dim); a zero vector is like nothing."""
    norms = np.maximum(np.linalg.norm(vectors, axis=1), 1e-9)

    def compare(rows: Numbers) -> Cosines:
        cosines: Cosines = (vectors[rows] / norms[rows, None]) @ vectors.T / norms
        return cosines

    return compare


def by_words(lexical: csr_matrix) -> Compare:
    """Cosines of rows of unit length or zero."""
    other = lexical.T.tocsr()
    return lambda rows: (lexical[rows] @ other).toarray()


def replaced(lexical: csr_matrix, count: int, rows: Numbers, by: csr_matrix) -> csr_matrix:
    """`lexical` with `count` rows, those at `rows` (n,) replaced or added from `by` (n, terms)."""
    order = np.arange(count)
    order[rows] = lexical.shape[0] + np.arange(len(rows))
    return vstack([lexical, by], format="csr")[order]
