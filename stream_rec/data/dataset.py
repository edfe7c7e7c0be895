"""A log as the windows that serving will see: the same starts, the same tokens, each event a target once."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stream_rec.features.event_tokenizer import Events, Reader
from stream_rec.features.tokens import UNKNOWN, Numbers
from stream_rec.window import start_of


class Dataset(NamedTuple):
    """A log's events, user by user; within a user in the log's order. Arrays (events,), but `begins` (users + 1,)."""

    rows: Numbers
    types: Numbers
    times: NDArray[np.float64]
    order: Numbers
    """The event's place in the log: what came before it has a smaller one."""
    begins: Numbers
    """Where each user's events begin."""

    def in_log_order(self, wanted: NDArray[np.bool_]) -> Numbers:
        """The places of the `wanted` (events,) events in the order of the log."""
        places = np.flatnonzero(wanted)
        return places[np.argsort(self.order[places])]

    def user_of(self, places: Numbers) -> Numbers:
        """The number of the user of the events at `places` (n,), (n,)."""
        found: Numbers = np.searchsorted(self.begins, places, side="right") - 1
        return found

    @property
    def firsts(self) -> NDArray[np.bool_]:
        """Which events are their user's first, (events,)."""
        found = np.zeros(len(self.rows), np.bool_)
        found[self.begins[:-1]] = True
        return found


class Slice(NamedTuple):
    """A served window and the event after it: `length` events from `begin`; targets are those from `first` on."""

    begin: int
    length: int
    first: int


class Batch(NamedTuple):
    """Inputs and targets, padded on the right."""

    numbers: Numbers
    """Of the tokens, as the encoder looks them up, (columns, slices, length)."""
    targets: Numbers
    """At the last token of each event, the place in the dataset of the target behind it; else -1. (slices, length)."""


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


def slices(data: Dataset, capacity: int, stride: int, wanted: NDArray[np.bool_]) -> list[Slice]:
    """Windows whose targets are the `wanted` (events,) events; each of them is the target of one window.

    What is wanted of a user must stand together. A user's first event has no window before it.
    """
    found = []
    for begin, end in zip(data.begins[:-1].tolist(), data.begins[1:].tolist(), strict=True):
        own = np.flatnonzero(wanted[begin:end])
        if not len(own):
            continue
        from_, until = int(own[0]), int(own[-1]) + 1
        for start in range(0, max(1, until - capacity + stride), stride):
            first = max(1 if start == 0 else start + capacity - stride + 1, from_)
            last = min(start + capacity, until - 1)
            if first <= last:
                found.append(Slice(begin + start, last - start + 1, first - start))
    return found


def sizes(data: Dataset, found: Sequence[Slice], read: Reader) -> Numbers:
    """How many tokens the events of each slice are, (slices,)."""
    ends = read(Events(data.rows, data.types, data.times, data.begins[:-1])).ends
    edges = np.concatenate([[0], ends])
    begins, lengths, _ = np.array(found, np.int64).reshape(-1, 3).T
    counts: Numbers = edges[begins + lengths] - edges[begins]
    return counts


def batches(
    found: Sequence[Slice], counts: Numbers, tokens: int, rng: np.random.Generator | None = None
) -> list[list[Slice]]:
    """Slices of like size together, at most `tokens` padded tokens a batch (or one slice); shuffled by `rng`.

    `counts` (slices,) are their `sizes`.
    """
    jitter = rng.random(len(found)) if rng is not None else np.zeros(len(found))
    order = np.argsort(counts + jitter, kind="stable")
    made: list[list[Slice]] = []
    for at in order.tolist():
        if not made or counts[at] * (len(made[-1]) + 1) > tokens:
            made.append([])
        made[-1].append(found[at])
    if rng is not None:
        rng.shuffle(made)
    return made


def batch(data: Dataset, chosen: Sequence[Slice], read: Reader) -> Batch:
    """The padded arrays of `chosen`, each event's tokens as `read` gives them."""
    events = np.array([one.length - 1 for one in chosen])
    stops = events.cumsum()
    places = np.concatenate([np.arange(one.begin, one.begin + one.length - 1) for one in chosen])
    tokens, ends = read(Events(data.rows[places], data.types[places], data.times[places], stops - events))
    aimed = places >= np.repeat([one.begin + one.first - 1 for one in chosen], events)
    targets = np.full(len(tokens), -1)
    targets[ends[aimed] - 1] = places[aimed] + 1
    lengths = np.diff(ends[stops - 1], prepend=0)
    inside = np.arange(lengths.max()) < lengths[:, None]
    out = Batch(np.zeros((len(tokens.numbers), *inside.shape), np.int64), np.full(inside.shape, -1))
    out.numbers[:, inside] = tokens.numbers
    out.targets[inside] = targets
    return out


def crops(data: Dataset, capacity: int, known: NDArray[np.bool_], rng: np.random.Generator) -> list[Slice]:
    """What one epoch trains on: each user's `known` (events,) events, from the first on, in pieces of a window.

    A history longer than a window is cut at other places each time, so that an event is seen behind contexts of all
    lengths. Each event but a user's first is a target once: where one piece ends the next one begins.
    """
    found = []
    for begin, end in zip(data.begins[:-1].tolist(), data.begins[1:].tolist(), strict=True):
        length = int(known[begin:end].sum())
        phase = int(rng.integers(capacity)) if length > capacity + 1 else 0
        cuts = [0, *range(phase or capacity, length - 1, capacity), length - 1]
        found += [Slice(begin + start, stop - start + 1, 1) for start, stop in pairwise(cuts) if stop > start]
    return found


def served(data: Dataset, place: int, capacity: int, stride: int) -> slice:
    """The places of the window that ends before `place`, as it is served: that of the user of the event before."""
    begin = int(data.begins[data.user_of(np.array(place - 1))])
    return slice(begin + start_of(place - begin, capacity, stride), place)


def _numbers(column: pl.Series, number_of: Mapping[str, int]) -> Numbers:
    distinct = column.unique()
    numbers = [number_of.get(value, UNKNOWN) for value in distinct.to_list()]
    mapped = column.replace_strict(distinct, pl.Series(numbers, dtype=pl.Int64), return_dtype=pl.Int64)
    return mapped.to_numpy().astype(np.int64)
