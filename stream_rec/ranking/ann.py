"""Retrieves the items nearest to a user state through an approximate index of a large catalogue that changes.

The index is faiss' inverted file with 4-bit codes ("Fast scan", André et al., VLDB 2015; Douze et al., "The Faiss
library", 2024): vectors stand in lists around k-means centroids, each as 4 bits for each of its main directions, and a
query reads the lists whose centroids suit it best. What it finds is scored exactly afterwards, so an error of the index
is an item not found, never a wrong score.
"""

import math
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stream_rec.features.tokens import UNKNOWN, Numbers
from stream_rec.ranking.retrieval import ExactRetriever, Retrieved

KEPT = 0.9
"""Share of the vectors' energy that the directions in the codes must hold."""
STEP = 16
"""Directions are taken in multiples of this: what a scan reads at once."""
PER_LIST = 40
"""Vectors a list that the centroids are learned from."""
AT_ONCE = 1 << 16
"""Vectors that are encoded in one call."""
SPREAD = 0.75
"""How much a list gains by what its vectors differ in, see `Index.search`; measured, between 0 and 1."""


ENOUGH = 160
"""Rows that the index is asked for, at least, at the usual effort: what it finds is sorted by rough codes."""
GROWN = 4
"""An index that has become so many times as big is built anew: its lists have grown too long."""
DOTS_AT_ONCE = 1 << 14
"""Candidates that are scored at a time: their vectors stay in the processor's cache."""


class AnnIndex:
    """Those of `vectors` (any, width) that stand at `rows` (count,), at least 16. Uses torch's threads.

    A query reads 6% of the lists of a million vectors, 12% of those of a hundred thousand; `effort` times as many.
    """

    def __init__(self, vectors: Tensor, rows: Numbers, effort: float = 1.0) -> None:
        faiss.omp_set_num_threads(torch.get_num_threads())
        lists = _lists(len(rows))
        learned = np.random.default_rng(0).choice(rows, min(len(rows), PER_LIST * lists), replace=False)
        sample = _take(vectors, learned)
        self._directions = main_directions(sample)
        width = self._directions.shape[1]
        self._index = faiss.IndexIVFPQFastScan(
            faiss.IndexFlatL2(width), width, lists, width, 4, faiss.METRIC_INNER_PRODUCT
        )
        self._index.by_residual = True
        self._index.nprobe = min(lists, math.ceil(effort * 4 * math.isqrt(lists)))
        self._index.cp.spherical = False
        self._index.cp.min_points_per_centroid = 1
        self._index.train((sample @ self._directions).numpy())
        self._centroids = torch.from_numpy(self._index.quantizer.reconstruct_n(0, lists))
        self._gains = SPREAD * self._centroids.square().sum(dim=1) / 2
        self.add(vectors, rows)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def nbytes(self) -> int:
        """Memory of codes, row numbers and centroids."""
        return len(self) * (int(self._index.code_size) + 8) + self._centroids.nbytes

    def add(self, vectors: Tensor, rows: Numbers) -> None:
        """Adds those of `vectors` that stand at `rows` (n,), none of which is in the index."""
        for begin in range(0, len(rows), AT_ONCE):
            part = rows[begin : begin + AT_ONCE]
            self._index.add_with_ids((_take(vectors, part) @ self._directions).numpy(), part)

    def remove(self, rows: Numbers) -> None:
        """Removes `rows` (n,): they are not found any more. Reads all row numbers, 15 ms a million."""
        lists = faiss.downcast_InvertedLists(self._index.invlists)
        before = [lists.list_size(number) for number in range(self._index.nlist)]
        self._index.remove_ids(rows)
        for number, size in enumerate(before):
            if size > lists.list_size(number):
                _clear(lists, number, size)

    def search(self, states: Tensor, count: int) -> Tensor:
        """The rows (batch, count) that probably have the largest cosines with `states` (batch, width).

        In no order; -1 where the lists that were read hold fewer. Lists are taken by the inner product of their
        centroid less a part of half its square: a short centroid stands for vectors that differ much, the best of which
        lie far above it. With the whole of it, lists stood in the order of Euclidean distance.
        """
        queries = torch.nn.functional.normalize(states.to("cpu", torch.float32)) @ self._directions
        likeness = queries @ self._centroids.T
        chosen = (likeness - self._gains).topk(self._index.nprobe, dim=1).indices
        likeness = likeness.gather(1, chosen)
        found: Numbers = self._index.search_preassigned(queries.numpy(), count, chosen.numpy(), likeness.numpy())[1]
        return torch.from_numpy(found).to(states.device)


def _clear(lists: Any, number: int, before: int) -> None:
    """Zeroes the places that a removal left free in a list, which held `before` vectors.

    faiss adds to a block of codes by a bitwise or, and its removal leaves the old codes behind: what was added later
    would be a mixture, and not be found.
    """
    size, held = lists.list_size(number), lists.n_per_block
    blocks = -(-size // held)
    if blocks:
        codes = faiss.rev_swig_ptr(lists.get_codes(number), blocks * lists.block_size).reshape(blocks, -1)
        nothing = np.zeros(lists.packer.code_size, np.uint8)
        for place in range(size, min(before, blocks * held)):
            lists.packer.pack_1(nothing, place, codes)


def _take(vectors: Tensor, rows: Numbers) -> Tensor:
    """In float32 on the host, which is what faiss reads, and of unit length."""
    return torch.nn.functional.normalize(vectors[torch.from_numpy(rows).to(vectors.device)].to("cpu", torch.float32))


def _lists(count: int) -> int:
    """A power of two near four times the root of `count`: reading centroids costs about what reading lists does."""
    return int(2 ** round(math.log2(4 * math.sqrt(count))))


def main_directions(vectors: Tensor) -> Tensor:
    """The fewest directions (width, some multiple of `STEP`) that hold `KEPT` of the energy of `vectors` (n, width).

    Uncentred principal components: inner products within them are inner products.
    """
    energies: Tensor
    directions: Tensor
    energies, directions = torch.linalg.eigh(vectors.T @ vectors)
    held = energies.flip(0).cumsum(0) / energies.sum()
    needed = int((held < KEPT).sum()) + 1
    return directions.flip(1)[:, : min(len(energies), -(-needed // STEP) * STEP)].contiguous()


class AnnRetriever:
    """Finds by an index over `everything`. `effort` as `AnnIndex` takes it."""

    def __init__(self, everything: ExactRetriever, effort: float = 1.0) -> None:
        self._effort = effort
        self._everything, self._held, self._index = self._built(everything)
        self._built_with = len(self._index)

    @property
    def index_bytes(self) -> int:
        """Memory of the index."""
        return self._index.nbytes

    def update(self, everything: ExactRetriever, changed: Numbers) -> None:
        """The catalogue is now `everything`; the vectors of `changed` (n,) are new. What is barred goes."""
        wanted, held = _allowed(everything), np.zeros(len(everything.outputs), np.bool_)
        held[: len(self._held)] = self._held
        moved = np.zeros(len(held), np.bool_)
        moved[changed] = True
        gone, come = np.flatnonzero(held & (moved | ~wanted)), np.flatnonzero(wanted & (moved | ~held))
        if len(self._index) + len(come) - len(gone) > GROWN * self._built_with:
            self._everything, self._held, self._index = self._built(everything)
            self._built_with = len(self._index)
            return
        if len(gone):
            self._index.remove(gone)
        if len(come):
            self._index.add(everything.outputs, come)
        self._everything, self._held = everything, wanted

    def __call__(self, states: Tensor, count: int) -> Retrieved:
        """As `ExactRetriever` finds it, as far as the index does; where it finds too few, everything is scored."""
        asked = torch.nn.functional.normalize(states, dim=1)
        outputs = self._everything.outputs
        rows = self._index.search(asked, max(math.ceil(self._effort * ENOUGH), count))
        lacking = ((rows >= 0).sum(dim=1) < min(count, len(self._index))).nonzero()[:, 0]
        rows.clamp_(min=UNKNOWN)
        if len(lacking):
            whole = self._everything(states[lacking], rows.shape[1]).rows
            rows[lacking] = torch.nn.functional.pad(whole, (0, rows.shape[1] - whole.shape[1]), value=UNKNOWN)

        def decoder(answers: Tensor, rows: Tensor) -> Tensor:
            pairs = zip(torch.split(answers, DOTS_AT_ONCE), torch.split(rows, DOTS_AT_ONCE), strict=True)
            return torch.cat([(asked[one] * outputs.index_select(0, part)).sum(dim=1) for one, part in pairs])

        return Retrieved(rows, decoder)

    def _built(self, everything: ExactRetriever) -> tuple[ExactRetriever, NDArray[np.bool_], AnnIndex]:
        held = _allowed(everything)
        return everything, held, AnnIndex(everything.outputs, np.flatnonzero(held), self._effort)


def _allowed(everything: ExactRetriever) -> NDArray[np.bool_]:
    allowed: NDArray[np.bool_] = (~everything.barred).cpu().numpy()
    return allowed
