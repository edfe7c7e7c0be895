from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_rec.features import forward_decay, online_statistics
from stream_rec.features.forward_decay import Heard, Largest
from stream_rec.features.online_statistics import (
    DecayedPopularity,
    HalfLives,
    ItemTransitions,
    OnlineStatistics,
    TopSuccessors,
)
from stream_rec.features.tokens import UNKNOWN
from tests.features.counted import counted, exact

DAY = 86_400.0
HORIZONS = HalfLives(lasting=10 * DAY, recent=DAY)
SUMS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 8)), max_size=200)
Pairs = dict[tuple[int, int], float]


def sums(heard: Heard) -> dict[int, float]:
    found = dict(zip(heard.rows.tolist(), heard.weights.tolist(), strict=True))
    assert len(found) == len(heard.rows)
    return found


def totals(added: list[tuple[int, int]]) -> dict[int, float]:
    known: dict[int, float] = defaultdict(float)
    for row, weight in added:
        known[row] += weight
    return dict(known)


def pairs(table: ItemTransitions, rows: range, *, backwards: bool = False) -> Pairs:
    if backwards:
        return {(a, b): weight for b in rows for a, weight in sums(table.before(b)).items()}
    return {(a, b): weight for a in rows for b, weight in sums(table.after(a)).items()}


@given(SUMS, st.integers(1, 12))
def test_the_largest_of_growing_sums_are_kept_exactly(added: list[tuple[int, int]], size: int) -> None:
    kept = Largest(size, {})
    known: dict[int, float] = defaultdict(float)
    for row, weight in added:
        known[row] += weight
        if not kept.raise_by(row, weight):
            kept.offer(row, known[row])
        for one in (kept, Largest(size, known)):
            assert sorted(sums(one.heard).values()) == sorted(known.values())[-size:]
            assert {row: one.place(row) for row in range(10)} == {
                row: sum(total >= known[row] for total in sums(one.heard).values()) if row in one else None
                for row in range(10)
            }
            assert all(known[row] == total for row, total in sums(one.heard).items())


def test_what_has_no_room_among_the_largest_is_given_back() -> None:
    kept = Largest(2, {1: 5.0, 2: 3.0})
    assert kept.offer(3, 3.0) == (3, 3.0)
    assert kept.offer(3, 4.0) == (2, 3.0)
    assert sums(kept.heard) == {1: 5.0, 3: 4.0}
    assert 2 not in kept
    assert not kept.raise_by(2, 1.0)


@given(SUMS)
def test_the_best_followers_are_those_with_the_largest_sums(added: list[tuple[int, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(online_statistics, "FOLLOWERS", 4)
        followers = TopSuccessors({})
        for row, weight in added:
            followers.add(row, float(weight))
        known = totals(added)
        assert sums(followers.heard()) == known
        for one in (followers, TopSuccessors(known)):
            assert sorted(sums(one.best).values()) == sorted(known.values())[-4:]
            assert all(known[row] == total for row, total in sums(one.best).items())


def test_of_very_many_followers_the_smaller_half_aside_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online_statistics, "FOLLOWERS", 4)
    monkeypatch.setattr(online_statistics, "ASIDE", 8)
    followers = TopSuccessors({})
    for row in range(1, 1_000):
        followers.add(row, float(row))
        assert len(followers.heard().rows) <= 4 + 8
    assert sums(followers.best) == {row: row for row in range(996, 1_000)}
    assert set(range(992, 1_000)) <= set(sums(followers.heard()))


def test_an_item_has_128_best_followers_and_at_most_1024_beside_them() -> None:
    followers = TopSuccessors({})
    for row in range(1, 128 + 1_024 + 1):
        followers.add(row, float(row))
    assert len(followers.best.rows) == 128
    assert len(followers.heard().rows) == 128 + 1_024
    followers.add(5_000, 0.5)
    assert set(sums(followers.heard())) == set(range(513, 1_153))  # the best, and the larger half of 1,024


def test_what_followed_is_weighed_by_distance_and_age_both_ways() -> None:
    table = ItemTransitions(half_life=DAY)
    table.add([1, 2, 3], 0.0)
    assert pairs(table, range(4)) == pairs(table, range(4), backwards=True) == {(1, 3): 0.5, (2, 3): 1.0}
    table.add([1, 2, 3, 4, 5, 6, 7], DAY)
    assert sums(table.before(7)) == {6: 2.0, 5: 1.0, 4: 2 / 3, 3: 0.5, 2: 0.4}  # in weights of a day before
    assert table.decay.weight(DAY) == 2


def test_an_unknown_item_teaches_nothing() -> None:
    memory = OnlineStatistics(HORIZONS)
    memory.learn_last([1, 2, online_statistics.UNKNOWN], 0.0)
    assert not pairs(memory.transitions, range(4))
    memory.learn_last([1, online_statistics.UNKNOWN, 3], 0.0)
    assert pairs(memory.transitions, range(4)) == {(1, 3): 0.5}
    assert memory.popularity.highest.tolist() == memory.recency.highest.tolist() == [3]


def test_counts_halve_with_every_half_life() -> None:
    counts = DecayedPopularity(DAY)
    for row, day in ((3, 0), (3, 1), (100, 1)):
        counts.add(row, day * DAY)
    rows = np.array([3, 100, 5, 7_000])
    for day in (1, 2, 3.5, 40):
        age = 2.0 ** (1 - day)
        assert counted(counts, rows, day * DAY) == pytest.approx([1.5 * age, age, 0, 0])
    assert set(counts.highest.tolist()) == {3, 100}


def test_the_64_highest_counts_are_known() -> None:
    counts = DecayedPopularity(DAY)
    for row in [*range(1, 100), *range(1, 65)]:
        counts.add(row, 0.0)
    assert set(counts.highest.tolist()) == set(range(1, 65))
    again = DecayedPopularity(DAY)
    again.load(counts.state())
    assert again.highest.tolist() == counts.highest.tolist()


def test_the_array_of_counts_doubles_or_reaches_to_the_new_row() -> None:
    counts = DecayedPopularity(DAY)
    lengths = []
    for row in (3, 64, 65, 129, 1_000, 1_001):
        counts.add(row, 0.0)
        lengths.append(len(counts.sums))
    assert lengths == [65, 65, 130, 130, 1_001, 2_002]
    assert np.flatnonzero(counts.sums).tolist() == [3, 64, 65, 129, 1_000, 1_001]


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9_000)), min_size=1, max_size=60), st.integers(1, 4))
def test_the_highest_counts_are_the_highest_wherever_the_landmark_is(
    added: list[tuple[int, int]], popular: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(online_statistics, "POPULAR", popular)
        patch.setattr(forward_decay, "HEADROOM", 20.0)
        counts = DecayedPopularity(100.0)
        rows, until = np.arange(1, 10), max(time for _, time in added)
        for row, time in sorted(added, key=lambda one: one[1]):
            counts.add(row, float(time))
        known = np.zeros(9)
        for row, time in added:
            known[row - 1] += 2.0 ** ((time - until) / 100)
        again = DecayedPopularity(100.0)
        again.load(counts.state())
        for one in (counts, again):
            found = np.array(counted(one, rows, float(until)))
            assert found.tolist() == pytest.approx(known.tolist(), rel=1e-9, abs=1e-99)
            best = sorted(found[one.highest - 1].tolist(), reverse=True)
            assert best == pytest.approx(sorted(known.tolist(), reverse=True)[: len(best)], rel=1e-9, abs=1e-99)
            assert len(best) == min(popular, np.count_nonzero(found))


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 900)), min_size=1, max_size=60),
    st.integers(1, 3),
)
def test_what_followed_most_did_so_most_both_ways_wherever_the_landmark_is(
    added: list[tuple[int, int, int]], size: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(online_statistics, "FOLLOWERS", size)
        patch.setattr(forward_decay, "HEADROOM", 20.0)
        table, known = ItemTransitions(10.0), defaultdict[tuple[int, int], float](float)
        until = max(time for *_, time in added)
        for earlier, row, time in sorted(added, key=lambda one: one[2]):
            table.add([earlier, row], float(time))
            known[earlier, row] += 2.0 ** ((time - until) / 10)
        now = table.decay.weight(float(until))
        for way, asked in enumerate((table.after, table.before)):
            for item in range(1, 10):
                wanted = {pair[1 - way]: total for pair, total in known.items() if pair[way] == item}
                found = {row: total / now for row, total in sums(asked(item)).items()}
                assert found == pytest.approx({row: wanted[row] for row in found}, rel=1e-9, abs=1e-99)
                best = sorted(wanted.values(), reverse=True)[:size]
                assert sorted(found.values(), reverse=True) == pytest.approx(best, rel=1e-9, abs=1e-99)


def test_a_time_far_ahead_is_read_like_any_other() -> None:
    counts = DecayedPopularity(1.0)
    counts.add(1, 0.0)
    assert counted(counts, [1], 2 * forward_decay.HEADROOM)[0] == pytest.approx(0, abs=1e-9)


def learn(memory: OnlineStatistics, log: list[tuple[int, int]], begin: int = 0) -> None:
    """A log of (user, row), a second an event, as windows of everything."""
    held: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for offset, (user, row) in enumerate(log):
        held[user].append((row, float(offset)))
        rows, times = zip(*held[user], strict=True)
        if offset >= begin:
            memory.learn(f"u{user}", len(rows), offset, rows, times)


def same(one: OnlineStatistics, other: OnlineStatistics, time: float = 1_000.0) -> bool:
    """Whether two memories say the same at a time, in seconds."""
    rows = np.arange(1, 10)
    for backwards in (False, True):
        ours, theirs = (
            {pair: weight / m.transitions.decay.weight(time) for pair, weight in found.items()}
            for m in (one, other)
            for found in [pairs(m.transitions, range(1, 10), backwards=backwards)]
        )
        if ours != pytest.approx(theirs):
            return False
    return all(
        counted(getattr(one, name), rows, time) == pytest.approx(counted(getattr(other, name), rows, time))
        and set(getattr(one, name).highest.tolist()) == set(getattr(other, name).highest.tolist())
        for name in ("popularity", "recency")
    )


LOGS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=60)


@given(LOGS, st.randoms(use_true_random=False))
def test_the_order_of_users_does_not_matter(log: list[tuple[int, int]], random) -> None:
    memory, other = OnlineStatistics(HORIZONS), OnlineStatistics(HORIZONS)
    learn(memory, log)
    users = list(range(4))
    random.shuffle(users)
    for user in users:
        own = [(offset, row) for offset, (whose, row) in enumerate(log) if whose == user]
        for n, (offset, _) in enumerate(own, 1):
            other.learn(f"u{user}", n, offset, [row for _, row in own[:n]], [float(at) for at, _ in own[:n]])
    assert same(memory, other)


@given(LOGS)
def test_a_state_holds_all_that_was_learned_both_ways(log: list[tuple[int, int]]) -> None:
    memory, again = OnlineStatistics(HORIZONS), OnlineStatistics(HORIZONS)
    learn(memory, log)
    again.load(memory.state())
    assert same(memory, again)
    for one in (memory, again):
        one.learn_last([1, 2, 3], 500.0)
    assert same(memory, again)


TIMED = st.lists(st.tuples(st.lists(st.integers(UNKNOWN, 12), min_size=1, max_size=6), st.integers(0, 9)), max_size=120)


@given(TIMED, TIMED)
def test_a_state_is_the_memory_also_where_its_bounds_bite(before, since) -> None:
    """What is learned after a state was taken up makes the same memory, bit by bit."""
    with pytest.MonkeyPatch.context() as patch:
        for name, size in (("FOLLOWERS", 2), ("ASIDE", 4), ("POPULAR", 2)):
            patch.setattr(online_statistics, name, size)
        patch.setattr(forward_decay, "HEADROOM", 6.0)
        memory, again, now = OnlineStatistics(HalfLives(9.0, 3.0)), OnlineStatistics(HalfLives(9.0, 3.0)), 0.0
        for number, (rows, wait) in enumerate([*before, *since]):
            if number == len(before):
                again.load(memory.state())
            now += wait
            for one in (memory, again) if number >= len(before) else (memory,):
                one.learn_last(rows, now)
        if not since:
            again.load(memory.state())
        assert exact(memory) == exact(again)


@pytest.mark.parametrize("popular_first", [True, False])
def test_all_that_stands_beside_a_popular_item_keeps_it_by_save_and_load(popular_first: bool) -> None:
    popular, others = 1, range(2, 3_098)
    memory, again = OnlineStatistics(HORIZONS), OnlineStatistics(HORIZONS)
    for other in others:
        memory.learn_last([popular, other] if popular_first else [other, popular], float(other))
    again.load(memory.state())
    for one in (memory, again):
        heard = one.transitions.before if popular_first else one.transitions.after
        assert all(sums(heard(other)).keys() == {popular} for other in others)


def test_a_state_of_what_followed_alone_is_read_both_ways() -> None:
    """As models of format 6 and older hold it."""
    memory, again = OnlineStatistics(HORIZONS), OnlineStatistics(HORIZONS)
    learn(memory, [(1, 1), (1, 2), (2, 1), (2, 3), (1, 3)])
    state = {name.replace("transitions.after.", "transitions."): array for name, array in memory.state().items()}
    kept = {name: array for name, array in state.items() if ".before." not in name and not name.endswith("highest")}
    again.load(kept)
    assert same(memory, again)


def test_sums_survive_a_new_landmark() -> None:
    memory = OnlineStatistics(HalfLives(1.0, 1.0))
    late = 2 * forward_decay.HEADROOM
    for row, time in ((2, 0.0), (3, late), (3, late + 1)):
        memory.learn_last([1, row], time)
    again = OnlineStatistics(HalfLives(1.0, 1.0))
    again.load(memory.state())
    for one in (memory, again):
        weight = one.transitions.decay.weight(late + 1)
        found = {row: total / weight for row, total in sums(one.transitions.after(1)).items()}
        assert found == pytest.approx({2: 0, 3: 1.5}, abs=1e-9)
        assert counted(one.recency, [2, 3], late + 1) == pytest.approx([0, 1.5], abs=1e-9)


@given(LOGS, st.data())
def test_no_event_is_learned_twice_nor_lost_when_windows_are_skipped(log: list[tuple[int, int]], data) -> None:
    """Windows come again, after a restart of the reader, or only the last of several (coalesced)."""
    once, often = OnlineStatistics(HORIZONS), OnlineStatistics(HORIZONS)
    learn(once, log)
    held: dict[int, list[tuple[int, int]]] = defaultdict(list)
    seen = []
    for offset, (user, row) in enumerate(log):
        held[user].append((row, offset))
        seen.append((user, offset, list(held[user])))
    last = {user: at for at, (user, _, _) in enumerate(seen)}
    for at, (user, offset, events) in enumerate(seen):
        if last[user] == at or data.draw(st.booleans()):
            rows, times = zip(*events, strict=True)
            for _ in range(data.draw(st.integers(1, 2))):
                often.learn(f"u{user}", len(rows), offset, rows, [float(time) for time in times])
    learn(often, log)
    assert same(once, often)


def test_events_of_a_topic_that_was_made_anew_are_learned() -> None:
    calm, moved = OnlineStatistics(HORIZONS), OnlineStatistics(HORIZONS)
    for n in range(1, 6):
        rows, times = list(range(1, n + 1)), [float(at) for at in range(n)]
        calm.learn("u", n, 100 + n, rows, times)
        moved.learn("u", n, 100 + n if n < 4 else n, rows, times)
    assert same(moved, calm)


def test_one_user_teaches_a_bounded_number_of_events_a_day_and_others_as_ever() -> None:
    memory = OnlineStatistics(HORIZONS, a_day=10.0)
    left_out = [
        memory.learn("busy", n, n, ([1, 2] * 10)[:n], [float(at) for at in range(n)], float(n)) for n in range(1, 21)
    ]
    assert left_out == [0] * 10 + [1] * 10
    assert sum(memory.popularity.sums) == pytest.approx(10, rel=0.01)
    assert memory.learn("calm", 2, 21, [3, 4], [30.0, 31.0], 31.0) == 0
    half_a_day = 43_200.0 + 20  # gives room for five more
    later = [memory.learn("busy", n, 30 + n, [5], [half_a_day], half_a_day) for n in range(21, 28)]
    assert later == [0] * 5 + [1] * 2
    assert memory.now == half_a_day


def test_of_a_window_of_more_events_than_its_user_may_teach_the_first_ones_are_learned() -> None:
    memory = OnlineStatistics(HORIZONS, a_day=2.0)
    assert memory.learn("u", 5, 5, [1, 2, 3, 4, 5], [1.0, 2.0, 3.0, 4.0, 5.0], 5.0) == 3
    assert sorted(memory.popularity.highest) == [1, 2]
    assert memory.learn("u", 5, 5, [1, 2, 3, 4, 5], [1.0, 2.0, 3.0, 4.0, 5.0], 5.0) == 0  # read again


def test_what_was_trained_is_not_learned_again() -> None:
    memory = OnlineStatistics(HORIZONS, since=10.0)
    memory.learn("u", 3, 2, [1, 2, 3], [9.0, 10.0, 11.0])
    assert memory.popularity.highest.tolist() == [3]
    assert pairs(memory.transitions, range(4)) == {(1, 3): 0.5, (2, 3): 1.0}


def test_who_was_erased_begins_anew() -> None:
    memory = OnlineStatistics(HORIZONS)
    memory.learn("u", 5, 4, [1, 1, 1, 1, 1], [0.0] * 5)
    memory.learn("u", 1, 6, [2], [0.0])
    memory.forget("u")
    memory.learn("u", 1, 9, [3], [0.0])
    assert counted(memory.popularity, [1, 2, 3], 0.0) == [5, 1, 1]


def test_of_too_many_users_the_longest_silent_is_dropped_and_never_learned_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(online_statistics, "USERS", 2)
    memory = OnlineStatistics(HORIZONS)
    windows = {user: ([row], [float(row)]) for row, user in enumerate("abcd", 1)}
    for offset, (user, window) in enumerate(windows.items()):
        memory.learn(user, 1, offset, *window)
    memory.learn("a", 1, 0, *windows["a"])  # read again: its place is forgotten, its time isn't
    assert counted(memory.popularity, [1, 2, 3, 4], 4.0) == pytest.approx([1, 1, 1, 1], rel=1e-3)
    memory.learn("a", 2, 9, [1, 9], [1.0, 9.0])
    assert counted(memory.popularity, [1, 9], 9.0) == pytest.approx([1, 1], rel=1e-3)


def test_a_floor_places_an_item_before_it_is_learned() -> None:
    memory, rows = OnlineStatistics(HORIZONS), [1, 2, 1, 2, 1, 3]
    memory.learn("u", len(rows), 9, rows, [0.0] * len(rows))
    nowhere = {"markov": None, "popularity": None, "recent": None}
    assert memory.baselines([1, 2]) == {"markov": 1, "popularity": 2, "recent": 2}
    assert memory.baselines([2, 3]) == {"markov": 2, "popularity": 3, "recent": 3}
    assert memory.baselines([3, 1]) == {"markov": None, "popularity": 1, "recent": 1}
    assert memory.baselines([1]) == {"markov": None, "popularity": 1, "recent": 1}
    assert memory.baselines([1, 7]) == memory.baselines([1, UNKNOWN]) == nowhere


def test_an_event_from_the_future_counts_as_one_of_its_arrival() -> None:
    memory = OnlineStatistics(HORIZONS)
    memory.learn("u", 2, 0, [1, 2], [DAY, 1_000 * DAY], arrived=2 * DAY)
    assert memory.now == memory.known["u"].time == 2 * DAY
    assert counted(memory.recency, [1, 2], 2 * DAY) == [0.5, 1]


def test_now_is_the_latest_time_that_was_trained_or_learned() -> None:
    assert OnlineStatistics(HORIZONS).now == 0
    memory = OnlineStatistics(HORIZONS, since=10.0)
    assert memory.now == memory.since == 10
    memory.learn("u", 1, 0, [1], [30.0])
    memory.learn("v", 1, 1, [1], [20.0])
    assert memory.now == 30
    memory.learn_last([1], 25.0)
    assert memory.now == 30
    memory.learn_last([1], 40.0)
    assert memory.now == 40


def test_a_lower_offset_is_a_repeat_unless_the_window_has_more_and_later_events() -> None:
    memory = OnlineStatistics(HORIZONS)
    memory.learn("u", 2, 100, [1, 2], [0.0, 1.0])
    fewer, earlier = ([1], [9.0]), ([1, 2, 3], [0.0, 0.5, 1.0])
    for offset, (rows, times) in ((100, ([1, 2], [0.0, 9.0])), (99, ([1, 2], [0.0, 9.0])), (99, fewer), (99, earlier)):
        memory.learn("u", len(rows), offset, rows, times)
        assert memory.known["u"].offset == 100
    assert counted(memory.popularity, [1, 2, 3], 1.0) == pytest.approx([1, 1, 0], rel=1e-3)
    memory.learn("u", 3, 3, [1, 2, 3], [0.0, 1.0, 2.0])
    assert memory.known["u"].offset == 3
    assert counted(memory.popularity, [1, 2, 3], 2.0) == pytest.approx([1, 1, 1], rel=1e-3)


def test_as_many_users_are_known_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online_statistics, "USERS", 2)
    memory = OnlineStatistics(HORIZONS, since=1.5)
    memory.learn("a", 1, 0, [1], [2.0])
    memory.learn("b", 1, 1, [2], [1.0])
    assert list(memory.known) == ["a", "b"]
    memory.learn("a", 1, 2, [1], [3.0])
    memory.learn("c", 1, 3, [3], [4.0])
    assert list(memory.known) == ["a", "c"]
    assert "b" not in memory
    assert memory.since == 1.5  # what was dropped is older
    memory.learn("d", 1, 4, [4], [5.0])
    assert memory.since == 3
