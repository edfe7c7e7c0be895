"""Items and their rows, for serving: an upsert is recommendable at once, without retraining.

Row 0 is the unknown item. Rows are only ever added, so whatever holds a row number stays right. Of an item is kept what
the model reads: neither its attributes nor the vector that it came with, but a digest of that, to know the same again.
"""

import hashlib
from collections.abc import Iterable, Sequence
from itertools import repeat

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from stream_rec.errors import UserError
from stream_rec.features.item_features import ItemFeatures, Vectors, prices_of, unit
from stream_rec.features.item_similarity import ItemSimilarity, by_direction, by_words, replaced
from stream_rec.features.text_encoder import Progress, TextEncoder, text_of
from stream_rec.features.tfidf import Tfidf
from stream_rec.features.tokens import UNKNOWN, Numbers
from stream_rec.messages import Item, Rejected, check_vector, without_fraction

NO_CATEGORY = 0
"""The category of the unknown item, and of all items without one."""


def text_vectors(
    items: Sequence[Item], encoder: TextEncoder, lexicon: Tfidf, progress: Progress | None = None
) -> Vectors:
    """What the text of each item means, and its words: two vectors of unit length in one, (len(items), text_dim).

    An item's own vector takes the place of the meaning. Both are zero for an item with neither text nor vector:
    whatever the encoder makes of an empty text says nothing of the item. Raises `UserError` where own vectors differ in
    length, and for one whose direction single precision loses.
    """
    for item in items:
        try:
            if item.vector:
                check_vector(item.vector)
        except Rejected as rejected:
            raise UserError(f"item {item.item_id!r}: {rejected}") from None
    texts = [text_of(item) for item in items]
    encoded = iter(encoder.encode([text for item, text in zip(items, texts, strict=True) if not item.vector], progress))
    meaning = [np.array(item.vector or next(encoded), np.float32) for item in items]
    for item, vector in zip(items, meaning, strict=True):
        if len(vector) != len(meaning[0]):
            raise UserError(
                f"item {item.item_id!r} has a vector of {len(vector)} numbers and item {items[0].item_id!r} one of "
                f"{len(meaning[0])}: give each item one of the same length, or none a vector"
            )
    told = np.array([bool(item.vector or text.strip()) for item, text in zip(items, texts, strict=True)])
    return np.concatenate([unit(np.stack(meaning)) * told[:, None], lexicon.vectors(lexicon.rows(texts))], axis=1)


class Catalog:
    """`items` and their `vectors` (len(items), dim), in the order of their rows 1, 2, ..."""

    def __init__(
        self,
        items: Sequence[Item],
        vectors: Vectors,
        features: ItemFeatures,
        alike: ItemSimilarity,
        encoder: TextEncoder,
    ) -> None:
        self._features = features
        self.encoder = encoder
        self._lexicon = alike.lexicon
        self.text, self.words = alike.text, alike.words
        unknown = Item(item_id="?", title="(unknown item)", available=False)
        self._items: list[Item] = [unknown, *map(_described, items)]
        self._own = {row: digest for row, item in enumerate(items, UNKNOWN + 1) if (digest := _digest(item))}
        """Of the vectors that items came with, by row."""
        self._row_of = {item.item_id: row for row, item in enumerate(self._items) if row != UNKNOWN}
        self._number_of = {"": NO_CATEGORY}
        self.vectors: Vectors = np.concatenate([np.zeros((1, features.dim), np.float32), vectors])
        self.stamps: Numbers = np.arange(len(self._items), dtype=np.int64)
        """A number for each version of each row's vector, never given twice. Like all arrays here it is as long as the
        rows, or longer."""
        self.available: NDArray[np.bool_] = np.array([item.available for item in self._items])
        """Which rows may be recommended."""
        self.categories: Numbers = np.array([self._category(item) for item in self._items], np.int64)
        """The category of each row, as its place in `labels`."""
        self.prices: Vectors = np.log1p(prices_of(self._items))
        """The logarithm of each row's price; NaN for none."""
        self._next_stamp = len(self._items)
        self._lexical: csr_matrix | None = None

    def __len__(self) -> int:
        """Rows, the unknown item included."""
        return len(self._items)

    def row(self, item_id: str) -> int:
        return self._row_of.get(item_id, UNKNOWN)

    def rows(self, item_ids: Iterable[str]) -> list[int]:
        """The rows of the items of some events; `12.0` is the item `12` where no item has that very id."""
        rows = list(map(self._row_of.get, ids := tuple(item_ids), repeat(UNKNOWN)))
        if UNKNOWN in rows:
            pairs = zip(rows, ids, strict=True)
            rows = [row if row != UNKNOWN else self.row(without_fraction(item_id)) for row, item_id in pairs]
        return rows

    def item(self, row: int) -> Item:
        return self._items[row]

    def ids(self, rows: Sequence[int]) -> list[str]:
        items = self._items
        return [items[row].item_id for row in rows]

    def find(self, item_id: str) -> Item | None:
        return self._items[row] if (row := self.row(item_id)) != UNKNOWN else None

    def count_available(self) -> int:
        """Items that may be recommended."""
        return int(self.available[: len(self)].sum())

    @property
    def labels(self) -> list[str]:
        """The categories; the first, `NO_CATEGORY`, is empty."""
        return list(self._number_of)

    def news(self, items: Sequence[Item]) -> list[Item]:
        """Those of `items` that change anything; of one item the last."""
        newest = {item.item_id: item for item in items}
        return [item for item in newest.values() if self._changes(item)]

    def _changes(self, item: Item) -> bool:
        row = self.row(item.item_id)
        return self._items[row] != _described(item) or self._own.get(row) != _digest(item)

    def needs_encoder(self, item: Item) -> bool:
        """Whether `read` has to encode the text of `item`: it has no vector of its own, and its text is new."""
        return not item.vector and not self._means_the_same(item)

    def _means_the_same(self, item: Item) -> bool:
        """Whether what the item's text, or its own vector, makes of it stands in its row already."""
        row = self.row(item.item_id)
        same = row != UNKNOWN and self._own.get(row) == _digest(item)
        return same and text_of(self._items[row]) == text_of(item)

    def read(self, items: Sequence[Item]) -> Vectors:
        """The vectors of `items`, (len(items), dim). Slow where a text is new: keep it off the thread that serves.

        Raises `Rejected` where texts are encoded into vectors of another length than the model was trained on, and
        `UserError` where they can't be encoded.
        """
        self._read_words()
        text = np.zeros((len(items), self._features.components), np.float32)
        new = [at for at, item in enumerate(items) if not self._means_the_same(item)]
        known = [at for at, item in enumerate(items) if self._means_the_same(item)]
        text[known] = self.vectors[[self.row(items[at].item_id) for at in known], : self._features.components]
        if new:
            read = text_vectors([items[at] for at in new], self.encoder, self._lexicon)
            self.check(read)
            text[new] = self._features.text(read)
        return self._features.priced(text, prices_of(items))

    def check(self, texts: Vectors) -> None:
        """Raises `Rejected` for `texts` (items, any) of another length than the model was trained on."""
        if texts.shape[1] != self._features.text_dim:
            raise Rejected(
                "invalid field",
                f"vector is missing: the model was trained on vectors of {self._own_length} numbers, and its text "
                f"encoder gives {texts.shape[1] - self._lexicon.dim}",
            )

    @property
    def _own_length(self) -> int:
        """Numbers of the vector that an item comes with, or that its text is encoded into."""
        return self._features.text_dim - self._lexicon.dim

    def admit(self, item: Item) -> None:
        """Raises `Rejected` for an item whose own vector is not as long as a text vector."""
        if item.vector is not None and len(item.vector) != self._own_length:
            raise Rejected("invalid field", f"vector has {len(item.vector)} numbers, not {self._own_length}")

    def upsert(self, items: Sequence[Item], vectors: Vectors) -> Numbers:
        """Adds or replaces `items`; returns the rows whose vector is new, (changed,).

        Only a vector that really changed gets a new stamp: a new title with the same vector costs no re-encoding.
        """
        changed: list[int] = []
        for item, vector in zip(items, vectors, strict=True):
            row = self.row(item.item_id)
            if row == UNKNOWN:
                row = len(self._items)
                self._row_of[item.item_id] = row
                self._items.append(_described(item))
                self._grow()
            elif np.array_equal(self.vectors[row], vector):
                self._describe(row, item)
                continue
            self._describe(row, item)
            self.vectors[row] = vector
            self.stamps[row] = self._next_stamp
            self._next_stamp += 1
            changed.append(row)
        rows = np.unique(np.array(changed, np.int64))
        self._compare(rows)
        return rows

    def withdraw(self, item_ids: Iterable[str]) -> None:
        """Items that may be recommended no more. Their texts stay: what users did with them stays readable."""
        for row in map(self.row, item_ids):
            self._items[row] = replace(self._items[row], available=False)
            self.available[row] = False

    def _compare(self, changed: Numbers) -> None:
        """Finds what the rows `changed` (n,) are like, and what is like them."""
        if not len(changed):
            return
        count = len(self)
        read = self._lexicon.rows([text_of(self._items[row]) for row in changed.tolist()])
        self._lexical = replaced(self._read_words(), count, changed, read)
        meaning = by_direction(self.vectors[:count, : self._features.components])
        self.text = self.text.updated(count, changed, meaning)
        self.words = self.words.updated(count, changed, by_words(self._lexical))

    def _read_words(self) -> csr_matrix:
        """The words of each row, (rows, terms): slow the first time, hence with `read`."""
        if self._lexical is None:
            self._lexical = self._lexicon.rows([text_of(item) for item in self._items])
        return self._lexical

    def _describe(self, row: int, item: Item) -> None:
        self._items[row] = _described(item)
        self._own.pop(row, None)
        if digest := _digest(item):
            self._own[row] = digest
        self.available[row] = item.available
        self.categories[row] = self._category(item)
        self.prices[row] = np.nan if item.price is None else np.log1p(item.price)

    def _category(self, item: Item) -> int:
        return self._number_of.setdefault(item.category, len(self._number_of))

    def _grow(self) -> None:
        """Room for one more row; doubled, so that many upserts cost little each."""
        if len(self._items) > len(self.stamps):
            room = max(64, len(self.stamps))
            self.vectors = np.concatenate([self.vectors, np.zeros((room, self._features.dim), np.float32)])
            self.stamps = np.concatenate([self.stamps, np.zeros(room, np.int64)])
            self.available = np.concatenate([self.available, np.zeros(room, np.bool_)])
            self.categories = np.concatenate([self.categories, np.zeros(room, np.int64)])
            self.prices = np.concatenate([self.prices, np.full(room, np.nan, np.float32)])


def _described(item: Item) -> Item:
    """What the model reads of an item, and what tells items apart."""
    return replace(item, attributes=None, vector=None)


def _digest(item: Item) -> bytes | None:
    """Of the vector that an item came with; None without one."""
    if not item.vector:
        return None
    return hashlib.blake2b(np.array(item.vector, np.float32).tobytes(), digest_size=16).digest()
