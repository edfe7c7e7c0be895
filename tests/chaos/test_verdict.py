import operator
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from stream_rec.messages import Interest, RankedItem, Recommendation
from tests.chaos.verdict import TOLERANCE, Entry, Faults, compare, numbered, same_answer

WANTED = [Entry(place, place) for place in range(9)]


def judged(found: Sequence[Entry]) -> Faults:
    return compare(WANTED, found, operator.eq)


def test_what_is_as_it_should_be_has_no_fault() -> None:
    assert judged(WANTED) == Faults()


@given(st.lists(st.sampled_from(WANTED), max_size=20))
def test_the_lost_and_the_doubled_are_counted(found: list[Entry]) -> None:
    faults = judged(found)
    assert faults.lost == len(WANTED) - len(set(found))
    assert faults.duplicated == len(found) - len(set(found))
    assert faults.wrong == 0


@given(st.permutations(WANTED))
def test_any_other_order_shows(found: list[Entry]) -> None:
    assert (judged(found).out_of_order > 0) == (found != WANTED)


def test_another_content_and_what_nothing_asked_for_are_wrong() -> None:
    assert judged([*WANTED[:-1], Entry(8, "another")]) == Faults(wrong=1)
    assert judged([*WANTED, Entry(9, 9)]) == Faults(wrong=1)


def test_tombstones_are_told_apart_by_their_number() -> None:
    records = [(b"u", 1, "one"), (b"u", None, None), (b"v", None, None), (b"u", 4, "four"), (b"u", None, None)]
    wanted = numbered(records)
    assert compare(wanted, numbered(records[:-1]), operator.eq) == Faults(lost=1)
    assert compare(wanted, numbered([*records, records[-1]]), operator.eq) == Faults(wrong=1)
    assert compare(wanted, numbered([records[1], records[0], *records[2:]]), operator.eq) == Faults(out_of_order=1)


ANSWER = Recommendation(
    "u",
    3,
    7,
    1.0,
    tuple(RankedItem(name, score, score / 10) for name, score in zip("abcd", (4.0, 3.0, 2.0, 1.0), strict=True)),
    {"view": 0.7, "cart": 0.3},
    (Interest("tea", 0.5),),
    "m",
)


def with_items(*pairs: tuple[str, float]) -> Recommendation:
    return replace(ANSWER, items=tuple(RankedItem(name, score, score / 10) for name, score in pairs))


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (ANSWER, True),
        (with_items(("a", 4.0), ("b", 3.0), ("c", 2.0 + TOLERANCE / 2), ("d", 1.0)), True),
        (with_items(("a", 4.0), ("b", 3.0), ("c", 2.0), ("e", 1.0)), True),  # a tie with the last one
        (with_items(("a", 4.0), ("b", 3.0), ("c", 2.1), ("d", 1.0)), False),
        (with_items(("b", 4.0), ("a", 3.0), ("c", 2.0), ("d", 1.0)), False),
        (with_items(("a", 4.0), ("e", 3.0), ("c", 2.0), ("d", 1.0)), False),
        (with_items(("a", 4.0), ("b", 3.0), ("c", 2.0)), False),
        (replace(ANSWER, seq=4), False),
        (replace(ANSWER, model="n"), False),
        (replace(ANSWER, next_event={"view": 0.6, "cart": 0.4}), False),
        (replace(ANSWER, interests=()), False),
        (None, False),
    ],
)
def test_answers_are_the_same_to_rounding_and_but_for_ties(other: Recommendation | None, same: bool) -> None:
    assert same_answer(ANSWER, other) is same


def test_two_tombstones_are_the_same() -> None:
    assert same_answer(None, None)
