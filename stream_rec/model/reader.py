"""Windows to tokens."""

from collections.abc import Sequence

import numpy as np

from stream_rec.messages import Window
from stream_rec.model.catalog import Catalog
from stream_rec.model.tokens import UNKNOWN, Tokens, event_type_numbers, gap_buckets, item_tokens


class ItemReader:
    """Reads an event as one token: its item, its type and the time since the event before."""

    def __init__(self, catalog: Catalog, event_types: Sequence[str]) -> None:
        self._catalog = catalog
        self._number_of = event_type_numbers(event_types)

    def read(self, windows: Sequence[Window], rows: Sequence[Sequence[int]]) -> list[Tokens]:
        """The tokens of each window; `rows` are the catalogue rows of each one's events."""
        number = self._number_of
        lengths = np.array([len(window.events) for window in windows])
        ends = lengths.cumsum()
        events = [event for window in windows for event in window.events]
        read = item_tokens(
            np.fromiter((row for one in rows for row in one), np.int64, len(events)),
            np.fromiter((number.get(event.event_type, UNKNOWN) for event in events), np.int64, len(events)),
            gap_buckets(np.fromiter((event.timestamp for event in events), np.float64, len(events)), ends - lengths),
            self._catalog.stamps,
            len(number) + 1,
        )
        return [
            Tokens(read.numbers[:, end - length : end], read.identities[end - length : end])
            for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)
        ]
