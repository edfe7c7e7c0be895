"""A big catalogue that changes, kept in an index: what is near is found without scoring everything."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stream_rec.features.tokens import UNKNOWN, Numbers
from stream_rec.ranking.ann import Index
from stream_rec.ranking.retrieval import Everything, Near

ENOUGH = 160
"""Rows that the index is asked for, at least, at the usual effort: what it finds is sorted by rough codes."""
GROWN = 4
"""An index that has become so many times as big is built anew: its lists have grown too long."""
AT_ONCE = 1 << 14
"""Candidates that are scored at a time: their vectors stay in the processor's cache."""


class Indexed:
    """Finds by an index over `everything`. `effort` as `Index` takes it."""

    def __init__(self, everything: Everything, effort: float = 1.0) -> None:
        self._effort = effort
        self._everything, self._held, self._index = self._built(everything)
        self._built_with = len(self._index)

    @property
    def index_bytes(self) -> int:
        """Memory of the index."""
        return self._index.nbytes

    def update(self, everything: Everything, changed: Numbers) -> None:
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

    def __call__(self, states: Tensor, count: int) -> Near:
        """As `Everything` finds it, as far as the index does; where it finds too few, everything is scored."""
        asked = torch.nn.functional.normalize(states, dim=1)
        outputs = self._everything.outputs
        rows = self._index.search(asked, max(math.ceil(self._effort * ENOUGH), count))
        lacking = ((rows >= 0).sum(dim=1) < min(count, len(self._index))).nonzero()[:, 0]
        rows.clamp_(min=UNKNOWN)
        if len(lacking):
            whole = self._everything(states[lacking], rows.shape[1]).rows
            rows[lacking] = torch.nn.functional.pad(whole, (0, rows.shape[1] - whole.shape[1]), value=UNKNOWN)

        def decoder(answers: Tensor, rows: Tensor) -> Tensor:
            pairs = zip(torch.split(answers, AT_ONCE), torch.split(rows, AT_ONCE), strict=True)
            return torch.cat([(asked[one] * outputs.index_select(0, part)).sum(dim=1) for one, part in pairs])

        return Near(rows, decoder)

    def _built(self, everything: Everything) -> tuple[Everything, NDArray[np.bool_], Index]:
        held = _allowed(everything)
        return everything, held, Index(everything.outputs, np.flatnonzero(held), self._effort)


def _allowed(everything: Everything) -> NDArray[np.bool_]:
    allowed: NDArray[np.bool_] = (~everything.barred).cpu().numpy()
    return allowed
