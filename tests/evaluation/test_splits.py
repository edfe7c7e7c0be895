import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from stream_rec.data.dataset import Dataset, dataset
from stream_rec.evaluation.splits import Split

LOGS = st.lists(st.sampled_from("abcd"), min_size=1, max_size=60)


def made_of(users: list[str]) -> Dataset:
    frame = pl.DataFrame({"user": users}).with_columns(item=pl.lit("i"), event=pl.lit("view"), time=pl.lit(0.0))
    return dataset(frame, {"i": 1}, {"view": 1})


def histories(users: list[str]) -> dict[str, list[int]]:
    """Each user's events as their places in the log."""
    found: dict[str, list[int]] = {}
    for place, user in enumerate(users):
        found.setdefault(user, []).append(place)
    return found


@given(LOGS, st.integers(1, 3))
def test_leaving_out_the_last_events_of_each_user(users: list[str], count: int) -> None:
    data = made_of(users)
    split = Split.leave_last_n(data, count)
    own = histories(users).values()
    assert sorted(data.order[split.known].tolist()) == sorted(place for one in own for place in one[:-count])
    assert data.order[split.targets].tolist() == sorted(one[-count] for one in own if len(one) > count)
    assert not split.known[split.targets].any()
    assert not split.online


@given(LOGS, st.data(), st.booleans())
def test_predicting_what_comes_after_a_time(users: list[str], draw, online: bool) -> None:
    data = made_of(users)
    first = draw.draw(st.integers(0, len(users)))
    last = draw.draw(st.integers(first, len(users)))
    split = Split.at_time(data, first, last, online=online)
    begun = {one[0] for one in histories(users).values()}
    assert set(data.order[split.known].tolist()) == set(range(first))
    assert data.order[split.targets].tolist() == [place for place in range(first, last) if place not in begun]
    assert split.online == online


@given(LOGS, st.integers(1, 70), st.integers(0, 3))
def test_a_sample_is_some_of_the_targets_in_their_order(users: list[str], count: int, seed: int) -> None:
    split = Split.leave_last_n(made_of(users), 1)
    sample = split.sample(count, seed)
    assert len(sample.targets) == min(count, len(split.targets))
    at = [split.targets.tolist().index(target) for target in sample.targets.tolist()]
    assert at == sorted(set(at))
    assert np.array_equal(sample.known, split.known)
