"""Is an answer through the cache the one that encoding the whole window gives?"""

from math import inf
from typing import NamedTuple

from torch import Tensor

from stream_rec.ranking.blend import Ranked


class Tolerance(NamedTuple):
    """What rounding explains."""

    difference: float
    """Of a user vector's components."""
    tie: float
    """Scores whose relative distance is below this may stand in either order."""


EXACT = Tolerance(difference=1e-4, tie=1e-5)
"""Of keys and values in float32."""
ROUNDED = Tolerance(difference=inf, tie=0.02)
"""Of half precision, where the components' own size decides how far apart rounding brings them."""


class Audit(NamedTuple):
    """What a comparison found."""

    windows: int = 0
    largest: float = 0.0
    """The largest difference in a user vector's components."""
    changed: int = 0
    """Ranked lists that differ other than by ties."""

    def __add__(self, other: "Audit") -> "Audit":  # type: ignore[override]  # both findings, not a longer tuple
        return Audit(self.windows + other.windows, max(self.largest, other.largest), self.changed + other.changed)


def compare(states: Tensor, whole: Tensor, ours: Ranked, theirs: Ranked, tolerance: Tolerance = EXACT) -> Audit:
    """`states` and `ours` through the cache, `whole` and `theirs` without it; `states` and `whole` (windows, width)."""
    apart = (ours.scores - theirs.scores).abs() > tolerance.tie * theirs.scores.abs()
    changed = ((ours.rows != theirs.rows) & apart).any(dim=1)
    return Audit(len(states), float((states - whole).abs().max()), int(changed.sum()))
