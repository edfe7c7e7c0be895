"""The join of events and answers, in whatever order they are read, and in bounded memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_rec.console import live as room
from stream_rec.console.floors import RecentFloors
from stream_rec.console.live import Live, Row
from stream_rec.messages import ERASE, Event, RankedItem, Recommendation


def event(user: str, item: str | None, event_type: str = "view") -> Event:
    return Event(user, event_type, 1_000.0, item)


def answer(user: str, offset: int, *items: str) -> Recommendation:
    ranked = tuple(RankedItem(item, 1.0, 0.1) for item in items)
    return Recommendation(user, offset + 1, offset, 0.0, ranked, {}, (), "test")


def take(live: Live, offset: int, user: str = "u", item: str = "tea") -> Row:
    row = live.event(0, offset, event(user, item), 10.0 + offset)
    assert row is not None
    return row


def test_an_event_is_compared_with_the_newest_answer_before_it() -> None:
    live = Live(RecentFloors())
    first = take(live, 0)
    assert (first.evaluated, first.latency_s) == (False, None)
    assert live.answer(0, answer("u", 0, "cup", "tea", "pot"), 10.5) == [first]
    assert first.latency_s == 0.5
    second = take(live, 1)
    assert (second.rank, second.listed, second.predicted) == (2, 3, ("cup", "tea", "pot"))
    assert take(live, 2, item="milk").rank is None
    assert not take(live, 3, user="other").evaluated


def test_only_what_a_committed_answer_covers_counts_for_the_accuracy() -> None:
    live = Live(RecentFloors())
    take(live, 0)
    live.answer(0, answer("u", 0, "tea"), 10.0)
    take(live, 1)
    take(live, 2, item="spam")
    assert live.tick(0.0).hit_rate is None
    assert live.dead_letter(0, 2, "unknown event type") is live.find(0, 2)
    live.answer(0, answer("u", 2, "cup"), 13.0)  # answers a burst
    point = live.tick(1.0)
    assert (point.hit_rate, live.judged, live.refused, point.answers) == (1.0, 1, 1, 1)


def test_an_erasure_takes_the_held_answer_away() -> None:
    live = Live(RecentFloors())
    live.answer(0, answer("u", 0, "tea"), 10.0)
    assert live.event(0, 1, event("u", None, ERASE), 11.0) is None
    assert not take(live, 2).evaluated


@given(st.lists(st.booleans(), max_size=30))
def test_the_order_in_which_topics_are_read_changes_nothing(early: list[bool]) -> None:
    """An answer may be read before its own event, though not before the events of the answers that are held."""
    live, plain = Live(RecentFloors()), Live(RecentFloors())
    for offset, before in enumerate(early):
        given = answer("u", offset, "tea", f"i{offset}")
        if before:
            live.answer(0, given, 11.0 + offset)
        take(live, offset, item=f"i{offset - 1}")
        if not before:
            live.answer(0, given, 11.0 + offset)
        take(plain, offset, item=f"i{offset - 1}")
        plain.answer(0, given, 11.0 + offset)
    assert list(live.rows) == list(plain.rows)
    assert [row.rank for row in plain.rows] == [None] * bool(early) + [2] * (len(early) - 1)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "USERS", 10)
    live = Live(RecentFloors())
    for offset in range(room.ROWS + 50):
        take(live, offset, user=f"u{offset % 50}")
        if offset % 2:
            live.answer(0, answer(f"u{offset % 50}", offset, "tea"), 0.0)
    assert len(live.rows) == len(live._places) == room.ROWS
    assert max(len(live._answers), len(live._waiting)) == 10
    for offset in range(100):
        take(live, room.ROWS + 50 + offset)
    assert len(live._waiting["u"]) == room.WAITING


def test_a_sent_event_has_the_streams_time() -> None:
    live = Live(RecentFloors())
    assert live.clock(5e8) == 5e8
    take(live, 0)
    assert live.clock(5e8) == 1_000.0
    assert live.clock(1_500.0) == 1_500.0
