from itertools import chain, pairwise, takewhile
from operator import eq

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stream_rec.features.tokens import Numbers, Tokens
from stream_rec.serving.scheduler import (
    BatchLayout,
    ScheduledSequence,
    Span,
    common_prefix_len,
    pack_by_token_budget,
    padded,
    spans,
    tiles,
    waves,
)

IDENTITIES = st.lists(st.integers(1, 3), min_size=1, max_size=6)
SIZES = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 90)), min_size=1, max_size=12)
"""New tokens and kept tokens of each row."""


def window(identities: list[int]) -> Tokens:
    return Tokens(np.array([identities]), np.array(identities))


def arrays(sizes: list[tuple[int, int]]) -> tuple[Numbers, Numbers]:
    """New tokens and lengths, as `calls` and `spans` take them."""
    new, kept = np.array(sizes).T
    return new, new + kept


def answered(rows: list[ScheduledSequence]) -> list[tuple[str, list[tuple[int, int]]]]:
    return [(row.user, row.answers) for row in rows]


@given(st.lists(st.tuples(st.sampled_from("abc"), IDENTITIES), max_size=8), st.integers(1, 3))
def test_each_window_is_answered_once_and_those_of_a_user_in_their_order(
    requests: list[tuple[str, list[int]]], most: int
) -> None:
    seen: dict[str, list[int]] = {user: [] for user, _ in requests}
    for rows in waves([user for user, _ in requests], [window(read) for _, read in requests], most):
        assert 1 <= len(rows) <= most
        assert len({row.user for row in rows}) == len(rows)
        for row in rows:
            assert len(row.tokens) == max(length for _, length in row.answers)
            for request, length in row.answers:
                user, read = requests[request]
                assert (user, read) == (row.user, row.tokens.prefix(length).identities.tolist())
                seen[user].append(request)
    assert seen == {user: [at for at, (other, _) in enumerate(requests) if other == user] for user in seen}


def test_windows_that_extend_each_other_share_a_row() -> None:
    windows = [window([1]), window([5]), window([1, 2]), window([1, 2]), window([1, 2, 3])]
    assert [answered(rows) for rows in waves("abaaa", windows, 2)] == [
        [("a", [(0, 1), (2, 2), (3, 2), (4, 3)]), ("b", [(1, 1)])]
    ]


def test_a_window_that_does_not_extend_the_last_one_waits_and_so_do_those_after_it() -> None:
    windows = [window([1, 2]), window([2]), window([1, 2, 3]), window([2, 9])]
    assert [answered(rows) for rows in waves("aaaa", windows, 4)] == [
        [("a", [(0, 2)])],
        [("a", [(1, 1)])],
        [("a", [(2, 3)])],
        [("a", [(3, 2)])],
    ]


def test_users_beyond_the_most_of_a_round_wait_for_the_next() -> None:
    windows = [window([1]), window([1]), window([1]), window([1, 2]), window([1, 2])]
    assert [answered(rows) for rows in waves("abcac", windows, 2)] == [
        [("a", [(0, 1), (3, 2)]), ("b", [(1, 1)])],
        [("c", [(2, 1), (4, 2)])],
    ]


@given(IDENTITIES, IDENTITIES)
def test_common_is_the_length_of_the_longest_common_prefix(one: list[int], other: list[int]) -> None:
    assert common_prefix_len(np.array(one), np.array(other)) == len(list(takewhile(bool, map(eq, one, other))))


@given(st.lists(IDENTITIES, min_size=1, max_size=4))
def test_padded_rows_end_in_zeros_up_to_the_longest(rows: list[list[int]]) -> None:
    identities, lengths = padded([window(row) for row in rows])
    assert lengths.tolist() == [len(row) for row in rows]
    assert identities.tolist() == [row + [0] * (max(map(len, rows)) - len(row)) for row in rows]


@given(SIZES, st.integers(1, 20))
def test_each_call_takes_the_next_rows_that_its_budget_allows(sizes: list[tuple[int, int]], budget: int) -> None:
    new, lengths = arrays(sizes)
    made = [rows.tolist() for rows in pack_by_token_budget(new, lengths, budget)]
    assert list(chain(*made)) == sorted(range(len(sizes)), key=lambda row: (new[row], lengths[row]))
    for rows in made:
        assert len(rows) == 1 or (rows and new[rows].sum() <= budget)
    for rows, following in pairwise(made):
        assert new[rows].sum() + new[following[0]] > budget


def test_a_row_larger_than_the_budget_is_a_call_of_its_own() -> None:
    new = np.array([9, 2, 3, 9])
    assert [rows.tolist() for rows in pack_by_token_budget(new, new, 5)] == [[1, 2], [0], [3]]


@given(SIZES)
def test_rows_of_a_span_have_equally_many_new_tokens_and_lengths_not_far_apart(sizes: list[tuple[int, int]]) -> None:
    new, lengths = arrays(sorted(sizes))
    found = spans(new, lengths)
    assert [at for span in found for at in range(span.begin, span.end)] == list(range(len(sizes)))
    for begin, end, length in found:
        assert len(set(new[begin:end].tolist())) == 1
        assert length == lengths[begin:end].max() < lengths[begin:end].min() + 32


def test_spans_split_at_each_32_cached_positions_and_where_the_new_tokens_change() -> None:
    new, lengths = np.array([1, 1, 1, 1, 1, 2, 2]), np.array([1, 32, 33, 64, 65, 66, 67])
    assert spans(new, lengths) == [Span(0, 2, 32), Span(2, 4, 64), Span(4, 5, 65), Span(5, 7, 67)]


def layout(sizes: list[tuple[int, int]]) -> BatchLayout:
    """Rows in slots that are not in the order of the rows, of 100 places each."""
    new, lengths = arrays(sizes)
    return BatchLayout(np.arange(len(sizes))[::-1] * 2, lengths - new, lengths, 100)


@given(SIZES)
def test_new_tokens_of_the_rows_follow_one_another(sizes: list[tuple[int, int]]) -> None:
    placed = layout(sizes)
    expected = [
        (slot * 100 + position, position)
        for slot, (new, kept) in zip(placed.slots.tolist(), sizes, strict=True)
        for position in range(kept, kept + new)
    ]
    assert list(zip(placed.write.tolist(), placed.positions.tolist(), strict=True)) == expected
    assert placed.new.tolist() == [new for new, _ in sizes]
    assert placed.begins.tolist() == [sum(new for new, _ in sizes[:row]) for row in range(len(sizes))]


@given(SIZES, st.integers(1, 4))
def test_tiles_cut_each_row_into_groups_of_neighbours(sizes: list[tuple[int, int]], most: int) -> None:
    placed, expected, begin = layout(sizes), [], 0
    for slot, (new, kept) in zip(placed.slots.tolist(), sizes, strict=True):
        expected += [[begin + nth, slot * 100, kept + nth, min(most, new - nth)] for nth in range(0, new, most)]
        begin += new
    assert tiles(placed, most).T.tolist() == expected
