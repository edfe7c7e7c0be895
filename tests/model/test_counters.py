import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_rec.model import counters
from stream_rec.model.counters import Followers, Heard, Transitions

DAY = 86_400.0


def sums(heard: Heard) -> dict[int, float]:
    found: dict[int, float] = {}
    for row, weight in zip(heard.rows.tolist(), heard.weights.tolist(), strict=True):
        found[row] = found.get(row, 0.0) + weight
    return found


def test_what_followed_is_weighed_by_distance_and_age() -> None:
    memory = Transitions(half_life=DAY)
    memory.learn_last([1, 2, 3], 0.0)
    assert sums(memory.after([2], 0.0)) == {3: 1.0}
    assert sums(memory.after([1], 0.0)) == {3: 0.5}
    assert sums(memory.after([1, 2], 0.0)) == {3: 1.25}
    assert sums(memory.after([2], DAY)) == {3: 0.5}


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 8)), max_size=200))
def test_the_best_followers_are_those_with_the_largest_sums(added: list[tuple[int, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counters, "FOLLOWERS", 4)
        followers = Followers({})
        for row, weight in added:
            followers.add(row, float(weight))
        known: dict[int, float] = {}
        for row, weight in added:
            known[row] = known.get(row, 0.0) + weight
        assert followers.sums() == known
        largest = sorted(known.values(), reverse=True)[:4]
        for one in (followers, Followers(known)):
            assert sorted(one.best.weights.tolist(), reverse=True) == largest
            assert all(known[row] == total for row, total in sums(one.best).items())


def test_an_item_that_thousands_followed_is_asked_in_bounded_time() -> None:
    memory = Transitions(half_life=DAY)
    for row in range(2, 2_000):
        memory.learn_last([1, row], float(row))
    memory.learn_last([1, 2], 2_000.0)
    found = sums(memory.after([1], 2_000.0))
    assert len(found) == counters.FOLLOWERS
    assert max(found, key=found.__getitem__) == 2


def test_sums_survive_a_new_landmark_and_a_saved_state() -> None:
    memory = Transitions(half_life=1.0)
    memory.learn_last([1, 2], 0.0)
    memory.learn_last([1, 3], 2 * counters.HEADROOM)
    memory.learn_last([1, 3], 2 * counters.HEADROOM + 1)
    again = Transitions(half_life=1.0)
    again.load(memory.state())
    for one in (memory, again):
        found = sums(one.after([1], 2 * counters.HEADROOM + 1))
        assert found[3] == pytest.approx(1.5)
        assert found.get(2, 0.0) == pytest.approx(0.0, abs=1e-9)
    assert np.array_equal(memory.state()["pairs"], again.state()["pairs"])
