import json
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from math import log2
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from stream_rec.evaluation.baselines import BaselineRanks, Baselines
from stream_rec.evaluation.prequential import (
    Bounds,
    Outcome,
    Prequential,
    Tally,
    gain,
    hit,
    in_time,
    rank_of,
    reciprocal,
)
from stream_rec.evaluation.report import Report, refusals, table
from stream_rec.messages import ERASE, RankedItem, Recommendation


def answer(user: str, offset: int, *items: str) -> Recommendation:
    ranked = tuple(RankedItem(item, 0.0, 0.0) for item in items)
    return Recommendation(user, offset + 1, offset, 0.0, ranked, {}, (), "test")


def prequential(start: dict[int, int] | None = None) -> Prequential:
    return Prequential(Baselines(), start)


def test_ranks_and_gains_by_hand() -> None:
    assert rank_of("b", ("a", "b", "c")) == 2
    assert rank_of("z", ("a", "b", "c")) is None
    assert [hit(rank, 5) for rank in (1, 5, 6, None)] == [True, True, False, False]
    assert [gain(rank, 10) for rank in (1, 2, 10, 11, None)] == [1.0, 1 / log2(3), 1 / log2(11), 0.0, 0.0]
    assert [reciprocal(rank) for rank in (1, 4, None)] == [1.0, 0.25, 0.0]


def test_a_tally_averages_over_all_events_it_was_given() -> None:
    tally = Tally()
    assert tally.hit_rate(1) is tally.ndcg(10) is tally.mrr() is None
    for rank in (1, 3, 20, None):
        tally.add(rank)
    assert [tally.hit_rate(k) for k in (1, 5, 10, 20)] == [0.25, 0.5, 0.5, 0.75]
    assert tally.ndcg(10) == (1.0 + 0.5) / 4
    assert tally.mrr() == pytest.approx((1 + 1 / 3 + 1 / 20) / 4)


def test_an_event_is_compared_with_the_answer_before_it_never_with_its_own() -> None:
    join = prequential()
    assert join.event(0, 0, "u", "a", "view", 1.0) == []
    (first,) = join.recommendation(0, answer("u", 0, "a", "b"), 1.25)
    assert first[:4] == ("view", 0.25, False, None)
    join.event(0, 1, "u", "b", "cart", 2.0)
    (second,) = join.recommendation(0, answer("u", 1, "b"), 2.5)
    assert second[:4] == ("cart", 0.5, True, 2)
    assert join.lost() == 0


def test_one_answer_to_a_burst_covers_all_of_it() -> None:
    join = prequential()
    join.event(0, 0, "u", "a", "view", 1.0)
    join.recommendation(0, answer("u", 0, "x", "y", "z"), 1.0)
    for offset, item in enumerate("zyw", start=1):
        join.event(0, offset, "u", item, "view", 1.0 + offset)
    outcomes = join.recommendation(0, answer("u", 3, "w"), 5.0)
    assert [(one.rank, one.latency_s) for one in outcomes] == [(3, 3.0), (2, 2.0), (None, 1.0)]
    assert join.lost() == 0


def test_an_answer_that_comes_after_the_next_event_predicted_nothing() -> None:
    """200 events of 19 users within 5 s, each answered 35 s later: none of the 181 that follow one was predicted."""
    join, report = prequential(), Report()
    for offset in range(200):
        report.add(join.event(0, offset, f"u{offset % 19}", "a", "view", offset / 40))
    for offset in range(200):
        report.add(join.recommendation(0, answer(f"u{offset % 19}", offset, "a"), 35 + offset / 40))
    summary = report.summary(join)
    assert (summary["first_events"], summary["too_late"], summary["evaluated"]) == (19, 181, 0)
    assert summary["hit_rate_at_10"] is summary["floors"]["popularity"] is None
    assert summary["by_event_type"]["view"]["too_late"] == 181
    assert summary["latency_ms"]["p50"] == 35_000


def test_of_one_millisecond_nobody_knows_what_came_first() -> None:
    assert in_time(1.000, 1.001)
    assert not in_time(1.001, 1.001)
    join = prequential()
    for offset, (arrived, answered) in enumerate([(1.0, 2.0), (2.0, 2.5), (2.501, 2.6)]):
        join.event(0, offset, "u", "a", "view", arrived)
        (one,) = join.recommendation(0, answer("u", offset, "b", "a"), answered)
        assert (one.too_late, one.evaluated, one.rank) == (offset == 1, offset == 2, 2 if offset == 2 else None)


def test_an_erasure_forgets_the_answer_and_excuses_what_came_before() -> None:
    join = prequential()
    join.event(0, 0, "u", "a", "view", 1.0)
    join.recommendation(0, answer("u", 0, "b"), 1.0)
    join.event(0, 1, "u", "b", "view", 2.0)
    assert join.lost() == 1
    join.event(0, 2, "u", None, ERASE, 3.0)
    assert join.lost() == 0
    join.event(0, 3, "u", "b", "view", 4.0)
    (only,) = join.recommendation(0, answer("u", 3, "c"), 5.0)
    assert only[:4] == ("view", 1.0, False, None)


def test_an_erasure_forgets_an_answer_after_which_nothing_is_pending() -> None:
    join = prequential()
    join.event(0, 0, "u", "a", "view", 1.0)
    join.recommendation(0, answer("u", 0, "b"), 1.0)
    join.event(0, 1, "u", None, ERASE, 2.0)
    join.event(0, 2, "u", "b", "view", 3.0)
    (only,) = join.recommendation(0, answer("u", 2), 4.0)
    assert not only.evaluated


def test_what_nobody_answers_is_lost_and_a_dead_letter_is_not() -> None:
    join = prequential()
    join.event(0, 0, "u", "a", "view", 1.0)
    join.event(0, 1, "u", "a", "share", 1.0)
    join.unreadable(0, 2)
    join.event(0, 3, "u", None, "view", 1.0)
    join.event(1, 0, "v", "a", "view", 1.0)
    assert (join.events, join.lost()) == (5, 5)
    for offset in (1, 2, 1):
        join.dead_letter(0, offset)
    assert (join.events, join.dead_letters, join.lost()) == (3, 2, 3)
    join.recommendation(1, answer("v", 0), 2.0)
    join.dead_letter(0, 3)
    assert (join.events, join.lost()) == (2, 1)


def test_answers_to_events_before_the_start_do_not_count() -> None:
    join = prequential({0: 10})
    assert join.recommendation(0, answer("u", 9, "a"), 1.0) == []
    join.dead_letter(0, 8)
    assert join.event(0, 9, "u", "a", "view", 1.0) == []
    join.event(0, 10, "u", "a", "view", 1.0)
    (only,) = join.recommendation(0, answer("u", 10, "a"), 2.0)
    assert not only.evaluated
    assert (join.events, join.recommendations, join.dead_letters) == (1, 1, 0)


class Record(NamedTuple):
    """An event of the time of its offset, in seconds, and whether and when it is answered."""

    partition: int
    offset: int
    user: str
    item: str | None
    event_type: str
    refused: bool
    answered: bool
    answered_at: float


PARTITION = {"u": 0, "v": 0, "w": 1}
happenings = st.tuples(
    st.sampled_from(sorted(PARTITION)),
    st.sampled_from("abc"),
    st.sampled_from(["view", "view", "view", "cart", ERASE, "refused", "refused erase"]),
    st.sampled_from([0.5, 0.5, 1.0, 3.5, 100.0, None]),
)
Drawn = list[tuple[str, str, str, float | None]]


def log_of(drawn: Drawn) -> list[Record]:
    ends: Counter[int] = Counter()
    log = []
    for user, item, what, latency_s in drawn:
        partition, refused, erases = PARTITION[user], what.startswith("refused"), what.endswith(ERASE)
        event_type = ERASE if erases else what
        offset = ends[partition]
        answered = latency_s is not None and not refused and not erases
        answered_at = offset + (latency_s or 0.0)
        log.append(
            Record(partition, offset, user, None if erases else item, event_type, refused, answered, answered_at)
        )
        ends[partition] += 1
    return log


def answer_to(record: Record) -> Recommendation:
    """Some list that differs from event to event."""
    turn = record.offset % 3
    return answer(record.user, record.offset, *("abc"[turn:] + "abc"[:turn])[: 1 + record.offset % 2])


def offline(log: list[Record]) -> tuple[Counter[tuple[Any, ...]], int]:
    """The same join with everything at hand: outcomes without the floors, and the number of lost events."""
    outcomes: Counter[tuple[Any, ...]] = Counter()
    lost = 0
    for user in PARTITION:
        own = [one for one in log if one.user == user and not one.refused]
        for at, record in enumerate(own):
            if record.event_type == ERASE:
                continue
            later = own[at:]
            cover = next((one for one in later if one.answered), None)
            erased = next((one for one in later if one.event_type == ERASE), None)
            if cover is None or (erased is not None and erased.offset < cover.offset):
                lost += erased is None
                continue
            since = list(own[:at])
            while any(one.event_type == ERASE for one in since):
                since.pop(0)
            held = next((one for one in reversed(since) if one.answered), None)
            predicted = held is not None and held.answered_at < record.offset
            ranked = [one.item_id for one in answer_to(held).items] if held and predicted else []
            rank = ranked.index(record.item) + 1 if record.item in ranked else None
            too_late = held is not None and not predicted
            outcomes[
                record.event_type, cover.answered_at - record.offset, predicted, rank, too_late, record.offset
            ] += 1
    return outcomes, lost


def drawn_join(log: list[Record], join: Prequential, data: st.DataObject) -> tuple[list[Outcome], int]:
    """Tells `join` of the log's topics in some order, some records twice; the outcomes, and the answers told again."""
    sources: dict[str, list[Record]] = {f"events {p}": [one for one in log if one.partition == p] for p in (0, 1)}
    sources |= {f"answers to {user}": [one for one in log if one.user == user and one.answered] for user in PARTITION}
    schedule = data.draw(st.permutations([name for name, records in sources.items() for _ in records]))
    steps = {name: iter(records) for name, records in sources.items()}
    seen: list[Outcome] = []
    repeats = 0
    for name in schedule:
        record = next(steps[name])
        times = data.draw(st.sampled_from([1, 1, 2]), label="times")
        repeats += (times - 1) * name.startswith("answers")
        for _ in range(times):
            if name.startswith("answers"):
                seen += join.recommendation(record.partition, answer_to(record), record.answered_at)
                continue
            told_first = record.event_type == ERASE or data.draw(st.booleans(), label="dead letter first")
            if record.refused and told_first:
                join.dead_letter(record.partition, record.offset)
            seen += join.event(record.partition, record.offset, record.user, record.item, record.event_type,
                               float(record.offset))  # fmt: skip
            if record.refused and not told_first:
                join.dead_letter(record.partition, record.offset)
    return seen, repeats


@given(st.lists(happenings, min_size=3, max_size=25), st.data())
def test_any_interleaving_of_the_topics_gives_the_offline_join(drawn: Drawn, data: st.DataObject) -> None:
    log, join = log_of(drawn), prequential()
    seen, repeats = drawn_join(log, join, data)
    outcomes, lost = offline(log)
    assert Counter((*one[:4], one.too_late, one.offset) for one in seen) == outcomes
    assert (join.lost(), join.repeated) == (lost, repeats)
    assert join.events == sum(not one.refused for one in log)
    assert join.dead_letters == sum(one.refused for one in log)


@given(st.lists(happenings, min_size=3, max_size=25), st.data())
def test_bounds_that_are_never_reached_change_nothing(drawn: Drawn, data: st.DataObject) -> None:
    log, join = log_of(drawn), Prequential(Baselines(), bounds=Bounds(users=3, events=25, answers=25, places=25))
    seen, _ = drawn_join(log, join, data)
    outcomes, lost = offline(log)
    assert Counter((*one[:4], one.too_late, one.offset) for one in seen) == outcomes
    assert join.lost() == lost


@given(st.lists(happenings, max_size=60), st.data())
def test_memory_is_bounded(drawn: Drawn, data: st.DataObject) -> None:
    bounds = Bounds(users=2, events=3, answers=2, places=4)
    log, join = log_of(drawn), Prequential(Baselines(), bounds=bounds)
    drawn_join(log, join, data)
    assert len(join._users) <= bounds.users
    assert max(len(join._uncovered), len(join._dead)) <= bounds.places
    for state in join._users.values():
        assert len(state.pending) <= bounds.events + 1  # and the mark of an erasure
        assert len(state.waiting) <= bounds.answers


def brute_force(history: list[tuple[str, str]], user: str, item: str, depth: int) -> BaselineRanks:
    known = list(dict.fromkeys(one for _, one in history))
    count = Counter(one for _, one in history)
    own = [one for who, one in history if who == user]
    follows: Counter[str] = Counter()
    for who in {who for who, _ in history}:
        row = [one for other, one in history if other == who]
        follows.update(b for a, b in pairwise(row) if own and a == own[-1])
    popular = sorted(known, key=lambda one: (-count[one], known.index(one)))
    markov = sorted(known, key=lambda one: (-follows[one], -count[one], known.index(one)))
    return BaselineRanks(rank_of(item, popular[:depth]), rank_of(item, markov[:depth]))


@given(
    st.lists(st.tuples(st.sampled_from("uvw"), st.sampled_from("abcdef")), min_size=20, max_size=60), st.integers(1, 5)
)
def test_the_floors_rank_like_a_brute_force_count_of_the_past(history: list[tuple[str, str]], depth: int) -> None:
    half = len(history) // 2
    floors = Baselines(history[:half], depth)
    for at in range(half, len(history)):
        assert floors.observe(*history[at]) == brute_force(history[:at], *history[at], depth)


def test_the_floors_are_asked_in_the_order_of_the_events_and_before_they_learn() -> None:
    join = prequential()
    for offset, item in enumerate("abab"):
        join.event(0, offset, "u", item, "view", 0.0)
    outcomes = join.recommendation(0, answer("u", 3), 1.0)
    assert [one.floors for one in outcomes] == [(None, None), (None, None), (1, 1), (2, 1)]


def test_an_erased_user_has_no_last_item() -> None:
    floors = Baselines([("u", "a"), ("u", "b"), ("v", "c"), ("v", "c"), ("u", "a")])
    assert brute_force([("u", "a"), ("u", "b"), ("v", "c"), ("v", "c"), ("u", "a")], "u", "b", 20).markov == 1
    floors.forget("u")
    assert floors.observe("u", "b").markov == 3


def test_an_erasure_reaches_the_floors() -> None:
    join = Prequential(Baselines([("v", "c"), ("v", "c"), ("u", "a"), ("u", "b"), ("u", "a")]))
    join.event(0, 0, "u", None, ERASE, 1.0)
    join.event(0, 1, "u", "b", "view", 1.0)
    (only,) = join.recommendation(0, answer("u", 1), 2.0)
    assert only.floors.markov == 3


def outcome(
    event_type: str,
    latency_s: float,
    evaluated: bool,
    rank: int | None,
    floors: BaselineRanks,
    *,
    too_late: bool = False,
) -> Outcome:
    return Outcome(event_type, latency_s, evaluated, rank, floors, too_late, 0, ())


def reported(outcomes: Iterable[Outcome]) -> dict[str, Any]:
    report = Report()
    report.add(outcomes)
    return report.summary(prequential())


def test_the_report_counts_by_event_type_and_leaves_first_events_out() -> None:
    summary = reported(
        [
            outcome("view", 0.010, False, None, BaselineRanks(1, 1)),
            outcome("view", 0.020, True, 1, BaselineRanks(None, 12)),
            outcome("view", 0.030, True, None, BaselineRanks(10, None)),
            outcome("cart", 0.040, True, 10, BaselineRanks(None, 1)),
            outcome("cart", 0.010, False, None, BaselineRanks(1, 1), too_late=True),
        ]
    )
    assert summary["first_events"] == 1
    assert summary["too_late"] == summary["by_event_type"]["cart"]["too_late"] == 1
    assert summary["by_event_type"]["view"]["too_late"] == 0
    assert summary["evaluated"] == 3
    assert summary["hit_rate_at_10"] == pytest.approx(2 / 3)
    assert summary["floors"] == pytest.approx({"popularity": 1 / 3, "markov": 1 / 3})
    assert summary["by_event_type"]["view"]["hit_rate_at_1"] == 0.5
    assert summary["by_event_type"]["cart"]["ndcg_at_10"] == pytest.approx(1 / log2(11))
    assert summary["latency_ms"] == {"p50": 20, "p99": 40}


@given(st.lists(st.integers(0, 50), min_size=1))
def test_percentiles_are_the_nearest_ranks(milliseconds: list[int]) -> None:
    report = Report()
    report.add(outcome("view", ms / 1_000, False, None, BaselineRanks()) for ms in milliseconds)
    ordered = sorted(milliseconds)
    assert report.latency_ms(0.5) == ordered[(len(ordered) + 1) // 2 - 1]
    assert report.latency_ms(1.0) == ordered[-1]


def test_an_empty_report_is_json_and_a_table() -> None:
    summary = reported([])
    assert json.loads(json.dumps(summary))["hit_rate_at_10"] is None
    console = Console(width=160, record=True, quiet=True)
    console.print(table(summary))


def test_the_table_shows_each_event_type() -> None:
    console = Console(width=160)
    with console.capture() as capture:
        late = outcome("wishlist", 0.02, False, None, BaselineRanks(), too_late=True)
        console.print(table(reported([outcome("wishlist", 0.02, True, 2, BaselineRanks(3, None)), *[late] * 77])))
    assert "wishlist" in capture.get()
    assert "77" in capture.get()
    assert "1.000" in capture.get()


def test_updates_a_second_come_from_the_answers_own_timestamps() -> None:
    join = prequential()
    for offset in range(5):
        join.event(0, offset, "u", "a", "view", 0.0)
        join.recommendation(0, answer("u", offset), 100 + offset / 2)
    assert join.updates_per_s == 2.0


def test_a_report_says_how_many_events_were_refused_and_why() -> None:
    join = Prequential(Baselines())
    for offset, reason in enumerate(["duplicate event_id", "broken JSON", "broken JSON"]):
        join.dead_letter(0, offset, reason)
    join.dead_letter(0, 2, "broken JSON")
    summary = Report().summary(join)
    assert summary["refused"] == {"broken JSON": 2, "duplicate event_id": 1}
    assert "3 refused (2 broken JSON, 1 duplicate event_id)" in str(table(summary).caption)
    assert refusals({}) == "0 refused"
