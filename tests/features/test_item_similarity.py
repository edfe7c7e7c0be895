import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_rec.features import item_similarity
from stream_rec.features.item_similarity import NEAREST, Compare, NeighbourTable, by_direction, by_words, replaced
from stream_rec.features.tfidf import Tfidf

WIDTH = 6


def vectors_of(count: int, seed: int) -> np.ndarray:
    """Row 0, the unknown item, and some others are like nothing."""
    found = np.random.default_rng(seed).normal(size=(count, WIDTH)).astype(np.float32)
    found[::7] = 0
    return found


def at_once(vectors: np.ndarray) -> NeighbourTable:
    return NeighbourTable.empty(len(vectors)).updated(len(vectors), np.arange(1, len(vectors)), by_direction(vectors))


def neighbours(found: NeighbourTable, row: int) -> dict[int, float]:
    kept = found.cosines[row] > 0
    rows = found.rows[row][kept].tolist()
    assert len(set(rows)) == len(rows)
    assert row not in rows
    return dict(zip(rows, found.cosines[row][kept].tolist(), strict=True))


def naive(vectors: np.ndarray, row: int) -> dict[int, float]:
    norms = np.linalg.norm(vectors, axis=1) + 1e-12
    cosines = (vectors @ vectors[row]) / norms / norms[row]
    return {other: float(one) for other, one in enumerate(cosines) if other != row and one > 1e-6}


def test_the_nearest_are_those_with_the_largest_cosines() -> None:
    vectors = vectors_of(4 * NEAREST, 0)
    found = at_once(vectors)
    for row in range(len(vectors)):
        want = sorted(naive(vectors, row).values(), reverse=True)[:NEAREST]
        assert sorted(neighbours(found, row).values(), reverse=True) == pytest.approx(want, abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    begin=st.integers(1, NEAREST),
    steps=st.lists(st.tuples(st.integers(0, 20), st.sets(st.integers(1, NEAREST - 1))), min_size=1, max_size=6),
    pieces=st.sampled_from([1, 3, 512]),
)
def test_what_is_updated_step_by_step_equals_what_is_computed_at_once(begin, steps, pieces) -> None:
    """As long as every list has room for everything: what a full list dropped can't come back by itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(item_similarity, "AT_ONCE", pieces)
        vectors = vectors_of(begin, 0)
        found = at_once(vectors)
        for number, (more, moved) in enumerate(steps, 1):
            count = min(NEAREST, len(vectors) + more)
            now = vectors_of(count, number)
            fixed = [row for row in range(len(vectors)) if row not in moved]
            now[fixed] = vectors[fixed]
            changed = np.array([*sorted(moved & set(range(len(vectors)))), *range(len(vectors), count)], np.int64)
            found = found.updated(count, changed, by_direction(now))
            vectors = now
            assert len(found.rows) >= count
            for row in range(count):
                assert neighbours(found, row) == pytest.approx(naive(vectors, row), abs=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.sets(st.integers(1, 3 * NEAREST - 1), min_size=1), st.integers(1, 9))
def test_a_changed_row_is_replaced_in_every_list_and_no_list_has_a_row_twice(changed, seed) -> None:
    vectors = vectors_of(3 * NEAREST, 0)
    found = at_once(vectors)
    rows = sorted(changed)
    vectors[rows] = vectors_of(len(vectors), seed)[rows]
    found = found.updated(len(vectors), np.array(rows), by_direction(vectors))
    for row in range(len(vectors)):
        want = naive(vectors, row)
        kept = neighbours(found, row)
        assert all(one == pytest.approx(want.get(other, 0), abs=1e-5) for other, one in kept.items())
        least = min(kept.values()) if len(kept) == NEAREST else 0
        assert all(other in kept or want[other] <= least + 1e-5 for other in changed & want.keys())
        if row in changed:
            assert sorted(kept.values()) == pytest.approx(sorted(want.values())[-NEAREST:], abs=1e-5)


def test_words_are_compared_like_vectors_and_can_be_replaced() -> None:
    texts = ["", "red shoe", "red hat", "blue hat", "blue shoe", "green shoe", "unheard"]
    lexicon = Tfidf.fit(texts)
    lexical = lexicon.rows(texts)
    dense = lexical.toarray()
    every = np.arange(len(texts))
    assert by_words(lexical)(every) == pytest.approx(dense @ dense.T, abs=1e-6)
    assert by_words(lexical)(every) == pytest.approx(by_direction(dense)(every), abs=1e-6)
    now = replaced(lexical, 8, np.array([2, 7]), lexicon.rows(["blue shoe", "red hat"]))
    assert now.toarray().tolist() == lexicon.rows([*texts[:2], "blue shoe", *texts[3:], "red hat"]).toarray().tolist()


@pytest.mark.parametrize(
    "compare",
    [by_direction(np.zeros((3, WIDTH), np.float32)), by_words(Tfidf.fit([]).rows([""] * 3))],
    ids=["text", "words"],
)
def test_what_says_nothing_is_like_nothing(compare: Compare) -> None:
    assert not NeighbourTable.empty(3).updated(3, np.arange(1, 3), compare).cosines.any()
