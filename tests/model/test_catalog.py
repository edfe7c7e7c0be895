from pathlib import Path

import pytest

from stream_rec.errors import UserError
from stream_rec.messages import Item
from stream_rec.model.catalog import text_vectors
from stream_rec.model.lexicon import Lexicon
from stream_rec.model.text import TextEncoder


def test_vectors_of_different_lengths_are_told_by_their_items(tmp_path: Path) -> None:
    items = [Item("tea", vector=[1.0, 2.0]), Item("cup", vector=[1.0, 2.0, 3.0])]
    with pytest.raises(UserError, match="'cup' has a vector of 3 numbers and item 'tea' one of 2"):
        text_vectors(items, TextEncoder("none", tmp_path), Lexicon.fit(["tea", "cup"]))
