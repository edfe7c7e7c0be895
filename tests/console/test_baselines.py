"""Floors that know the newest events are the floors of these events."""

from hypothesis import given
from hypothesis import strategies as st

from stream_rec.console.baselines import RecentBaselines
from stream_rec.evaluation.baselines import Baselines

Events = list[tuple[str, str]]
events = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("vwxyz")), max_size=30)


@given(events, st.integers(1, 9))
def test_they_rank_by_one_to_two_times_as_many_events_as_they_are_told(told: Events, most: int) -> None:
    recent = RecentBaselines(most)
    for at, (user, item) in enumerate(told):
        known = told[max(0, at // most - 1) * most : at]
        assert len(known) < 2 * most
        assert recent.observe(user, item) == Baselines(known).observe(user, item)


def test_whoever_is_erased_has_no_last_item() -> None:
    recent = RecentBaselines()
    for user, item in (("u", "tea"), ("u", "cup"), ("other", "jam"), ("u", "tea")):
        recent.observe(user, item)
    recent.forget("u")
    assert recent.observe("u", "cup").markov == recent.observe("stranger", "cup").markov
