"""Windows as the model reads them: cut to its capacity, their items found in the catalogue, their tokens."""

from collections.abc import Sequence
from itertools import starmap
from operator import attrgetter
from typing import NamedTuple

from stream_rec.features.catalog import Catalog
from stream_rec.features.event_tokenizer import WindowReader
from stream_rec.features.tokens import Tokens
from stream_rec.messages import Window
from stream_rec.window import fit, stride_of

ITEM_ID = attrgetter("item_id")

Rows = list[int]
"""Catalogue rows of a window's events."""


class PreparedWindow(NamedTuple):
    """A window as the model reads it."""

    source: Window
    """As it came; held here, so that no other window can have its identity meanwhile."""
    window: Window
    """Cut to the model's capacity."""
    rows: Rows
    tokens: Tokens
    log: int = 0
    """Whose memory learns from it and is asked."""


class Preprocessor:
    """Reads windows for an engine; those of the last call not again.

    `capacity` and `stride` are events; a full window moves by the stride, see `stride_of`.
    """

    def __init__(self, catalog: Catalog, reader: WindowReader, capacity: int, stride: int | None) -> None:
        self._catalog = catalog
        self._reader = reader
        self._capacity = capacity
        self._stride = stride_of(capacity, stride)
        self._taken: dict[int, PreparedWindow] = {}
        """What was read last, by the identity of the window."""

    def prepare(self, windows: Sequence[Window]) -> list[PreparedWindow]:
        """Reads windows, unless it read them a moment ago: a step takes those that were asked to be affordable."""
        new = [window for window in windows if id(window) not in self._taken]
        if new:
            fitted = [self.truncate(window) for window in new]
            rows = [self.rows(window) for window in fitted]
            read = zip(new, fitted, rows, self._reader.read(fitted, rows), strict=True)
            self._taken = self._taken | {id(taken.source): taken for taken in starmap(PreparedWindow, read)}
        found = [self._taken[id(window)] for window in windows]
        self._taken = {id(taken.source): taken for taken in found}
        return found

    def tokens(self, windows: Sequence[Window]) -> list[Tokens]:
        return [taken.tokens for taken in self.prepare(windows)]

    def truncate(self, window: Window) -> Window:
        return fit(window, self._capacity, self._stride)

    def rows(self, window: Window) -> Rows:
        return self._catalog.rows(map(ITEM_ID, window.events))

    def clear(self) -> None:
        """Forgets what it read: a user is erased, or an item has another vector."""
        self._taken.clear()
