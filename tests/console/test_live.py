"""The join of events and answers, in whatever order they are read, and in bounded memory."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from stream_rec.console import live as room
from stream_rec.console.baselines import RecentBaselines
from stream_rec.console.live import Live, Row
from stream_rec.evaluation.baselines import Baselines
from stream_rec.evaluation.prequential import Bounds, Prequential
from stream_rec.evaluation.report import Report
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
    live = Live(RecentBaselines())
    first = take(live, 0)
    assert (first.evaluated, first.latency_s) == (False, None)
    assert live.answer(0, answer("u", 0, "cup", "tea", "pot"), 10.5) == [first]
    assert first.latency_s == 0.5
    second = take(live, 1)
    assert (second.rank, second.listed, second.predicted) == (2, 3, ("cup", "tea", "pot"))
    assert take(live, 2, item="milk").rank is None
    assert not take(live, 3, user="other").evaluated


def test_only_what_a_committed_answer_covers_counts_for_the_accuracy() -> None:
    live = Live(RecentBaselines())
    take(live, 0)
    live.answer(0, answer("u", 0, "tea"), 10.0)
    take(live, 1)
    take(live, 2, item="spam")
    assert live.tick(0.0).hit_rate is None
    assert live.dead_letter(0, 2, "unknown event type") is live.find(0, 2)
    live.answer(0, answer("u", 2, "cup"), 13.0)  # answers a burst
    point = live.tick(1.0)
    assert (point.hit_rate, live.judged, live.refused, point.answers) == (1.0, 1, 1, 1)


def test_an_event_that_came_before_the_answer_was_not_predicted() -> None:
    live = Live(RecentBaselines())
    take(live, 0)
    second = take(live, 1)
    assert (second.evaluated, second.too_late) == (False, False)
    live.answer(0, answer("u", 0, "tea"), 45.0)
    third = take(live, 2)
    assert (third.evaluated, third.too_late, third.rank, third.predicted) == (False, True, None, ("tea",))
    live.answer(0, answer("u", 1, "cup"), 46.0)
    assert (second.evaluated, second.too_late, second.predicted, second.latency_s) == (False, True, ("tea",), 35.0)
    live.answer(0, answer("u", 2, "tea"), 47.0)
    assert (third.too_late, third.predicted) == (True, ("cup",))
    assert (live.judged, live.too_late, live.tick(0.0).hit_rate) == (0, 2, None)
    assert live.event(0, 3, event("u", "tea"), 47.001) is not None
    live.answer(0, answer("u", 3, "tea"), 48.0)
    assert (live.judged, live.too_late, live.tick(0.0).hit_rate) == (1, 2, 1.0)


@given(
    st.lists(st.tuples(st.sampled_from("uv"), st.sampled_from("abc"), st.integers(0, 9)), max_size=30).filter(
        lambda log: all(count <= room.BOUNDS.events for count in Counter(user for user, *_ in log).values())
    )
)
def test_the_console_counts_what_the_report_counts(log: list[tuple[str, str, int]]) -> None:
    live, join, report = Live(RecentBaselines()), Prequential(Baselines()), Report()
    for offset, (user, item, _) in enumerate(log):
        live.event(0, offset, event(user, item), float(offset))
        report.add(join.event(0, offset, user, item, "view", float(offset)))
    for offset, (user, _, latency) in enumerate(log):
        given_answer = answer(user, offset, *"abc"[offset % 3 :])
        live.answer(0, given_answer, float(offset + latency))
        report.add(join.recommendation(0, given_answer, float(offset + latency)))
    summary = report.summary(join)
    assert (live.judged, live.too_late) == (summary["evaluated"], summary["too_late"])
    assert live.tick(0.0).hit_rate == summary["hit_rate_at_10"]


def test_a_topic_that_is_made_again_is_shown() -> None:
    live = Live(RecentBaselines())
    take(live, 70)
    live.answer(0, answer("u", 70, "tea"), 81.0)
    again = take(live, 3)
    assert not again.evaluated
    assert live.answer(0, answer("u", 3, "tea"), 14.0) == [again]


def test_an_erasure_takes_the_held_answer_away() -> None:
    live = Live(RecentBaselines())
    live.answer(0, answer("u", 0, "tea"), 10.0)
    assert live.event(0, 1, event("u", None, ERASE), 11.0) is None
    assert not take(live, 2).evaluated


@given(st.lists(st.booleans(), max_size=30))
def test_the_order_in_which_topics_are_read_changes_nothing(early: list[bool]) -> None:
    """An answer may be read before its own event."""
    live, plain = Live(RecentBaselines()), Live(RecentBaselines())
    for offset, before in enumerate(early):
        given = answer("u", offset, "tea", f"i{offset}")
        if before:
            live.answer(0, given, 10.5 + offset)
        take(live, offset, item=f"i{offset - 1}")
        if not before:
            live.answer(0, given, 10.5 + offset)
        take(plain, offset, item=f"i{offset - 1}")
        plain.answer(0, given, 10.5 + offset)
    assert list(live.rows) == list(plain.rows)
    assert [row.rank for row in plain.rows] == [None] * bool(early) + [2] * (len(early) - 1)


def test_memory_is_bounded() -> None:
    live = Live(RecentBaselines(), Bounds(users=10, events=16, answers=2, places=100))
    for offset in range(room.ROWS + 50):
        take(live, offset, user=f"u{offset % 50}")
        if offset % 2:
            live.answer(0, answer(f"u{offset % 50}", offset, "tea"), 0.0)
    assert len(live.rows) == len(live._places) == room.ROWS
    assert len(live._join._users) == 10
    for offset in range(100):
        take(live, room.ROWS + 50 + offset)
    assert len(live._join._users[0, "u"].pending) == 16


def test_a_sent_event_has_the_streams_time() -> None:
    live = Live(RecentBaselines())
    assert live.clock(5e8) == 5e8
    take(live, 0)
    assert live.clock(5e8) == 1_000.0
    assert live.clock(1_500.0) == 1_500.0
