"""What a decayed count is at a time, and all that a memory holds, to be compared bit by bit."""

from collections.abc import Sequence

import numpy as np

from stream_rec.features.online_statistics import DecayedPopularity, OnlineStatistics


def counted(counts: DecayedPopularity, rows: Sequence[int], time: float) -> list[float]:
    """The counts of `rows` at `time`; 0 for a row that was never met."""
    weight = counts.decay.weight(time)  # first: it may rescale the sums
    return [float(counts.sums[row]) / weight if row < len(counts.sums) else 0.0 for row in rows]


def exact(memory: OnlineStatistics) -> dict[str, bytes]:
    """The state of `memory`; how far an array of counts reaches beyond the last row that was met says nothing."""
    return {
        name: (np.trim_zeros(array, "b") if name.endswith("sums") else array).tobytes()
        for name, array in memory.state().items()
    }
