from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from stream_rec.features import online_statistics
from stream_rec.features.online_statistics import HalfLives, OnlineStatistics
from stream_rec.features.tokens import UNKNOWN
from stream_rec.serving import statistics
from tests.damage import damaged
from tests.features.counted import counted, exact

HORIZONS = HalfLives(lasting=3_600.0, recent=600.0)
NAMES = [f"i{number}" for number in range(9)]
LOGS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(NAMES)), max_size=40)

Log = list[tuple[str, str]]


def learn(memory: OnlineStatistics, log: Log, ids: Sequence[str], begin: int = 0) -> None:
    """A log of (user, item), a second an event, as windows of everything; `ids` are those of rows 1, 2, ..."""
    for offset in range(begin, len(log)):
        user = log[offset][0]
        events = [(at, ids.index(item) + 1) for at, (whose, item) in enumerate(log[: offset + 1]) if whose == user]
        memory.learn(user, len(events), offset, [row for _, row in events], [float(at) for at, _ in events])


def followers(memory: OnlineStatistics, ids: Sequence[str]) -> dict[tuple[str, str], float]:
    """Each two items by name, and how much the second followed the first, after 100 seconds."""
    weight = memory.transitions.decay.weight(100.0)
    return {
        (name, ids[row - 1]): total / weight
        for name in NAMES
        for row, total in zip(*memory.transitions.after(ids.index(name) + 1), strict=True)
    }


def counts(memory: OnlineStatistics, ids: Sequence[str]) -> list[float]:
    """Of each item: how popular it is after 100 seconds, and how recent."""
    rows = np.array([ids.index(name) + 1 for name in NAMES])
    return [*counted(memory.popularity, rows, 100.0), *counted(memory.recency, rows, 100.0)]


@given(LOGS, LOGS, st.permutations([*NAMES, "new"]), st.integers(0, 3))
def test_a_memory_goes_on_where_it_was_whatever_rows_items_have(
    log: Log, more: Log, others: list[str], again: int
) -> None:
    memory = OnlineStatistics(HORIZONS)
    learn(memory, log, NAMES)
    packed = statistics.pack(memory, NAMES, b"about")
    assert statistics.about_of(packed) == b"about"
    restored = statistics.unpack(packed, HORIZONS, lambda item: others.index(item) + 1)
    for one, ids in ((memory, NAMES), (restored, others)):
        learn(one, log + more, ids, max(0, len(log) - again))
    assert followers(memory, NAMES) == pytest.approx(followers(restored, others))
    assert counts(memory, NAMES) == pytest.approx(counts(restored, others))
    assert list(memory.known.items()) == list(restored.known.items())
    assert memory.now == restored.now


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(NAMES)), max_size=90))
def test_a_memory_is_the_same_bit_by_bit_also_where_its_bounds_bite(log: Log) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, size in (("FOLLOWERS", 2), ("ASIDE", 2), ("POPULAR", 2)):
            patch.setattr(online_statistics, name, size)
        memory = OnlineStatistics(HORIZONS)
        learn(memory, log[:60], NAMES)
        packed = statistics.pack(memory, NAMES, b"")
        restored = statistics.unpack(packed, HORIZONS, lambda item: NAMES.index(item) + 1)
        for one in (memory, restored):
            learn(one, log, NAMES, 60)
        assert exact(memory) == exact(restored)


def test_an_item_that_is_gone_is_left_out() -> None:
    memory = OnlineStatistics(HORIZONS)
    learn(memory, [("a", "i0"), ("a", "i1"), ("a", "i2")], NAMES)
    there = {"i0": 1, "i2": 2}
    restored = statistics.unpack(statistics.pack(memory, NAMES, b""), HORIZONS, lambda item: there.get(item, UNKNOWN))
    assert counted(restored.popularity, [1, 2], 2.0) == pytest.approx([1, 1], rel=1e-3)
    assert restored.popularity.highest.tolist() == [1, 2]
    assert restored.transitions.after(1).rows.tolist() == [2]


def test_what_a_user_has_taught_today_stays_known() -> None:
    memory = OnlineStatistics(HORIZONS, a_day=2.0)
    assert memory.learn("u", 2, 0, [1, 2], [100.0, 101.0], 101.0) == 0
    packed = statistics.pack(memory, NAMES, b"")
    restored = statistics.unpack(packed, HORIZONS, lambda item: NAMES.index(item) + 1, a_day=2.0)
    assert [one.learn("u", 3, 1, [1, 2, 3], [100.0, 101.0, 102.0], 102.0) for one in (memory, restored)] == [1, 1]
    assert memory.known == restored.known


@pytest.mark.parametrize("taught", [4.0, 1e300, np.inf, np.nan])
def test_a_bound_that_is_lower_than_what_a_user_has_taught_holds_from_then_on(taught: float) -> None:
    memory = OnlineStatistics(HORIZONS, a_day=5.0)
    assert memory.learn("u", 3, 0, [1, 2, 3], [100.0, 101.0, 102.0], 102.0) == 0
    arrays = load(statistics.pack(memory, NAMES, b""))
    arrays["users.times"][0, 1] = taught
    restored = statistics.unpack(save(arrays), HORIZONS, lambda item: NAMES.index(item) + 1, a_day=2.0)
    rows, times = [1, 2, 3, 4, 5, 6, 7], [100.0, 101.0, 102.0, 103.0, 103.0, 103.0, 103.0]
    assert restored.learn("u", 7, 1, rows, times, 103.0) >= 2


def test_a_snapshot_without_what_users_have_taught_is_read() -> None:
    memory = OnlineStatistics(HORIZONS)
    memory.learn("u", 2, 0, [1, 2], [100.0, 101.0], 101.0)
    arrays = load(statistics.pack(memory, NAMES, b""))
    old = save(arrays | {"users.times": arrays["users.times"][:, 0].copy()})
    restored = statistics.unpack(old, HORIZONS, lambda item: NAMES.index(item) + 1)
    assert [(one.n, one.time, one.taught) for one in restored.known.values()] == [(2, 101.0, 0.0)]


def test_what_is_trained_and_who_was_dropped_stay_known() -> None:
    memory = OnlineStatistics(HORIZONS, since=10.0)
    restored = statistics.unpack(statistics.pack(memory, NAMES, b""), HORIZONS, lambda _: UNKNOWN)
    restored.learn("u", 1, 0, [1], [10.0])
    assert not len(restored.popularity.highest)


@given(st.data())
def test_a_damaged_snapshot_is_refused_or_read_and_nothing_else(data: st.DataObject) -> None:
    memory = OnlineStatistics(HORIZONS)
    learn(memory, [("a", "i0"), ("b", "i1"), ("a", "i2")], NAMES)
    body = data.draw(damaged(statistics.pack(memory, NAMES, b"about")))
    try:
        statistics.about_of(body)
        statistics.unpack(body, HORIZONS, lambda item: NAMES.index(item) + 1 if item in NAMES else UNKNOWN)
    except ValueError:
        pass
