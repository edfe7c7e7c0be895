"""Events to tokens: one token an event, or its words. Training and serving read by the same functions."""

from collections.abc import Callable, Sequence
from itertools import chain, pairwise, repeat
from operator import attrgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from stream_rec.errors import UserError
from stream_rec.features.catalog import Catalog
from stream_rec.features.event_template import EventTemplate
from stream_rec.features.tokens import UNKNOWN, Numbers, Tokens, event_type_numbers, gap_buckets, item_tokens
from stream_rec.messages import Item, Window

EVENTS, EVENT_TYPE, TIMESTAMP = map(attrgetter, ("events", "event_type", "timestamp"))
PHRASES = 1 << 18
"""Events in words that are kept; where a catalogue has more, they are read anew from time to time."""


class Events(NamedTuple):
    """The events of some windows, one window after the other. Arrays (events,), but `begins`."""

    rows: Numbers
    """Of the catalogue."""
    types: Numbers
    times: NDArray[np.float64]
    """Seconds."""
    begins: Numbers
    """Where each window begins, (windows,)."""


class Read(NamedTuple):
    """Events as tokens, one event after the other."""

    tokens: Tokens
    ends: Numbers
    """The place behind each event's last token, (events,)."""


Reader = Callable[[Events], Read]


class ItemReader:
    """Reads an event as one token: its item, its type and the time since the event before, where `gaps` count."""

    def __init__(self, catalog: Catalog, event_types: Sequence[str], *, gaps: bool = True) -> None:
        self._catalog = catalog
        self._types = len(event_types) + 1
        self._gaps = gaps

    def __call__(self, events: Events) -> Read:
        gaps = gap_buckets(events.times, events.begins) if self._gaps else np.zeros_like(events.rows)
        tokens = item_tokens(events.rows, events.types, gaps, self._catalog.stamps, self._types)
        return Read(tokens, np.arange(1, len(events.rows) + 1))


class WordReader:
    """Reads an event as its words and the end of a line: a window is a text of a line an event.

    A token's identity is its word, so a title that changes makes other tokens, and keeps no prefix behind it.
    """

    def __init__(
        self, catalog: Catalog, event_types: Sequence[str], words: EventTemplate, tokenizer: Tokenizer
    ) -> None:
        tokenizer.encode_special_tokens = True  # what looks like one in a title is text
        self._catalog = catalog
        self._types = ("unknown event", *event_types)
        self._words = words
        self._tokenizer = tokenizer
        self._end = self._ids("\n")[-1:]
        if not len(self._end):
            raise UserError("the model's tokenizer has no word for the end of a line: train with --read items")
        self._phrases: dict[tuple[int, int], tuple[Item, Numbers]] = {}

    def __call__(self, events: Events) -> Read:
        told = [self._phrase(row, kind) for row, kind in zip(events.rows.tolist(), events.types.tolist(), strict=True)]
        ids = np.concatenate(told)
        return Read(Tokens(ids[None], ids + 1), np.cumsum([len(one) for one in told]))

    def _phrase(self, row: int, kind: int) -> Numbers:
        """The words of an event, read once for each version of the item."""
        item = self._catalog.item(row)
        known = self._phrases.get((row, kind))
        if known is not None and known[0] is item:
            return known[1]
        if len(self._phrases) == PHRASES:
            self._phrases.clear()
        ids = self._ids(self._words.render(self._types[kind], item))
        phrase = np.concatenate([ids[: self._words.limit - 1], self._end])
        self._phrases[row, kind] = item, phrase
        return phrase

    def _ids(self, text: str) -> Numbers:
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int64)


class WindowReader:
    """Reads whole windows as `reader` reads their events."""

    def __init__(self, reader: Reader, event_types: Sequence[str]) -> None:
        self._reader = reader
        self._number_of = event_type_numbers(event_types)

    def read(self, windows: Sequence[Window], rows: Sequence[Sequence[int]]) -> list[Tokens]:
        """The tokens of each window; `rows` are the catalogue rows of each one's events."""
        number = self._number_of.get
        lengths = np.array([len(window.events) for window in windows])
        stops = lengths.cumsum()
        events = list(chain.from_iterable(map(EVENTS, windows)))
        tokens, ends = self._reader(
            Events(
                np.fromiter(chain.from_iterable(rows), np.int64, len(events)),
                np.fromiter(map(number, map(EVENT_TYPE, events), repeat(UNKNOWN)), np.int64, len(events)),
                np.fromiter(map(TIMESTAMP, events), np.float64, len(events)),
                stops - lengths,
            )
        )
        edges = [0, *ends[stops - 1].tolist()]
        return [Tokens(tokens.numbers[:, begin:end], tokens.identities[begin:end]) for begin, end in pairwise(edges)]


def reader_of(
    catalog: Catalog,
    event_types: Sequence[str],
    words: EventTemplate | None,
    tokenizer: Tokenizer | None,
    *,
    gaps: bool = True,
) -> ItemReader | WordReader:
    """How a model reads: by its words where it has some, and then a tokenizer too; else with `gaps` in time or not."""
    if words is None:
        return ItemReader(catalog, event_types, gaps=gaps)
    if tokenizer is None:
        raise ValueError("a model that reads words needs its tokenizer")
    return WordReader(catalog, event_types, words, tokenizer)
