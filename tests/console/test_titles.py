import pytest
from aiokafka.structs import ConsumerRecord

from stream_rec.console import titles as room
from stream_rec.console.titles import LONGEST, Titles
from stream_rec.messages import Item, encode


def record(key: bytes | None, value: bytes | None) -> ConsumerRecord:
    return ConsumerRecord("items", 0, 0, 0, 0, key, value, None, 0, 0, ())


def written(item: Item) -> ConsumerRecord:
    return record(item.item_id.encode(), encode(item))


def test_titles_are_cut_and_a_withdrawn_item_keeps_its_own() -> None:
    titles = Titles()
    titles.take([written(Item("tea", "T" * 1_000, "drinks", vector=[1.0])), record(b"tea", None)])
    assert titles.of(["tea", "cup"]) == {"tea": Item("tea", "T" * LONGEST, "drinks", available=False)}


def test_what_is_no_item_is_left_out() -> None:
    titles = Titles()
    titles.take([record(b"tea", b"{"), record(b"\xff", encode(Item("tea"))), record(None, None), record(b"tea", None)])
    titles.take([record(b"cup", encode(Item("tea")))])
    assert len(titles) == 0


def test_no_more_are_held_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "ITEMS", 2)
    titles = Titles()
    titles.take([written(Item(name, "old")) for name in "abc"])
    titles.take([written(Item("a", "new"))])
    assert {name: item.title for name, item in titles.of("abc").items()} == {"a": "new", "b": "old"}
