"""A log as the windows that serving will see: the same starts, the same tokens, each event a target once."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stream_rec.model.tokens import UNKNOWN, Numbers, gap_buckets


class Dataset(NamedTuple):
    """A log's events, user by user; within a user in the log's order. Arrays (events,), but `begins` (users + 1,)."""

    rows: Numbers
    types: Numbers
    times: NDArray[np.float64]
    order: Numbers
    """The event's place in the log: what came before it has a smaller one."""
    begins: Numbers
    """Where each user's events begin."""

    def in_log_order(self) -> Numbers:
        """Places of the events in the order of the log, (events,)."""
        return np.argsort(self.order)


class Slice(NamedTuple):
    """A served window and the event after it: `length` events from `begin`; targets are those from `first` on."""

    begin: int
    length: int
    first: int


class Batch(NamedTuple):
    """Inputs and targets, (slices, length) each, padded on the right; `targets` is -1 where nothing is predicted."""

    rows: Numbers
    types: Numbers
    gaps: Numbers
    targets: Numbers
    """Place of the target in the dataset."""


def dataset(frame: pl.DataFrame, row_of: Mapping[str, int], type_of: Mapping[str, int]) -> Dataset:
    """`frame` has the columns user, item, event and time, in the log's order."""
    grouped = frame.select("user", "item", "event", "time").with_row_index("order").sort("user", maintain_order=True)
    counts = grouped.select(pl.col("user").rle()).unnest("user")["len"].to_numpy()
    return Dataset(
        rows=_numbers(grouped["item"], row_of),
        types=_numbers(grouped["event"], type_of),
        times=grouped["time"].to_numpy().astype(np.float64),
        order=grouped["order"].to_numpy().astype(np.int64),
        begins=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
    )


def slices(data: Dataset, capacity: int, stride: int, low: int, high: int) -> list[Slice]:
    """Windows whose targets stand at `low <= order < high` in the log; each such event is the target of one of them."""
    found = []
    for begin, end in zip(data.begins[:-1].tolist(), data.begins[1:].tolist(), strict=True):
        order = data.order[begin:end]
        from_, until = (int(place) for place in np.searchsorted(order, (low, high)))
        for start in range(0, max(1, end - begin - capacity + stride), stride):
            first = max(1 if start == 0 else start + capacity - stride + 1, from_)
            last = min(start + capacity, until - 1)
            if first <= last:
                found.append(Slice(begin + start, last - start + 1, first - start))
    return found


def batches(found: Sequence[Slice], tokens: int, rng: np.random.Generator | None = None) -> list[list[Slice]]:
    """Slices of like length together, at most `tokens` padded tokens a batch (or one slice); shuffled by `rng`."""
    jitter = rng.random(len(found)) if rng is not None else np.zeros(len(found))
    order = np.argsort([one.length for one in found] + jitter, kind="stable")
    made: list[list[Slice]] = []
    for at in order.tolist():
        one = found[at]
        if not made or one.length * (len(made[-1]) + 1) > tokens:
            made.append([])
        made[-1].append(one)
    if rng is not None:
        rng.shuffle(made)
    return made


def batch(data: Dataset, chosen: Sequence[Slice]) -> Batch:
    """The padded arrays of `chosen`."""
    longest = max(one.length for one in chosen) - 1
    out = Batch(*(np.full((len(chosen), longest), fill, np.int64) for fill in (UNKNOWN, UNKNOWN, 0, -1)))
    for line, (begin, length, first) in enumerate(chosen):
        inputs = slice(begin, begin + length - 1)
        out.rows[line, : length - 1] = data.rows[inputs]
        out.types[line, : length - 1] = data.types[inputs]
        out.gaps[line, : length - 1] = gap_buckets(data.times[inputs])
        out.targets[line, first - 1 : length - 1] = np.arange(begin + first, begin + length)
    return out


def history(data: Dataset, reach: int) -> Iterator[tuple[int, Numbers]]:
    """Each event in the log's order: its place, and the rows of its user's last `reach` events up to and with it."""
    first = np.repeat(data.begins[:-1], np.diff(data.begins))
    for place in data.in_log_order().tolist():
        yield place, data.rows[max(int(first[place]), place - reach + 1) : place + 1]


def _numbers(column: pl.Series, number_of: Mapping[str, int]) -> Numbers:
    distinct = column.unique()
    numbers = [number_of.get(value, UNKNOWN) for value in distinct.to_list()]
    mapped = column.replace_strict(distinct, pl.Series(numbers, dtype=pl.Int64), return_dtype=pl.Int64)
    return mapped.to_numpy().astype(np.int64)
