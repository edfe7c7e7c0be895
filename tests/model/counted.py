"""What a decayed count is at a time."""

from collections.abc import Sequence

from stream_rec.model.counters import Counts


def counted(counts: Counts, rows: Sequence[int], time: float) -> list[float]:
    """The counts of `rows` at `time`; 0 for a row that was never met."""
    weight = counts.decay.weight(time)  # first: it may rescale the sums
    return [float(counts.sums[row]) / weight if row < len(counts.sums) else 0.0 for row in rows]
