from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tests.chaos.plan import MOST, USUAL, Kind, plan

seeds, counts = st.integers(0, 2**32), st.integers(1, 300)


@given(seeds, counts)
def test_a_seed_gives_the_same_plan_with_as_many_kills_as_were_asked_for(seed: int, kills: int) -> None:
    steps = plan(seed, kills)
    assert steps == plan(seed, kills)
    assert Counter(step.kind for step in steps)[Kind.KILL] == kills


@given(seeds, st.integers(8, 300))
def test_everything_that_can_happen_does(seed: int, kills: int) -> None:
    kinds = {step.kind for step in plan(seed, kills)}
    assert kinds | {Kind.ADD, Kind.REMOVE} == set(Kind)
    assert kinds & {Kind.ADD, Kind.REMOVE}


@given(seeds, counts)
def test_of_each_role_there_is_always_one_and_never_more_than_the_most(seed: int, kills: int) -> None:
    many = Counter({"agents": USUAL, "worker": USUAL})
    for step in plan(seed, kills):
        many[step.role] += {Kind.ADD: 1, Kind.REMOVE: -1}.get(step.kind, 0)
        assert 1 <= many[step.role] <= MOST


@given(seeds, counts)
def test_who_stands_still_does_so_for_longer_than_the_group_waits_and_the_last_step_is_recovered_from(
    seed: int, kills: int
) -> None:
    steps = plan(seed, kills)
    assert all(step.hold_s >= 8 for step in steps if step.kind is Kind.STOP)
    assert steps[-1].pause_s is None
