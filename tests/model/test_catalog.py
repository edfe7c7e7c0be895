from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from stream_rec.errors import UserError
from stream_rec.messages import Item
from stream_rec.model.catalog import text_vectors
from stream_rec.model.engine import Engine
from stream_rec.model.lexicon import Lexicon
from stream_rec.model.text import TextEncoder


def test_vectors_of_different_lengths_are_told_by_their_items(tmp_path: Path) -> None:
    items = [Item("tea", vector=[1.0, 2.0]), Item("cup", vector=[1.0, 2.0, 3.0])]
    with pytest.raises(UserError, match="'cup' has a vector of 3 numbers and item 'tea' one of 2"):
        text_vectors(items, TextEncoder("none", tmp_path), Lexicon.fit(["tea", "cup"]))


def test_an_event_finds_the_item_whose_id_a_tool_has_made_a_float(engine_of: Callable[..., Engine]) -> None:
    catalog = engine_of().catalog
    news = [replace(catalog.item(1), item_id=name) for name in ("12", "1", "1.0", "v2")]
    catalog.upsert(news, catalog.read(news))
    assert catalog.ids(catalog.rows(iter(["12.0", "12", "1.0", "1", "v2.0", "13.0", "1.10"]))) == [
        *("12", "12", "1.0", "1"),
        *("?", "?", "?"),
    ]
