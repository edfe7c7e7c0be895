from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_rec.features.tokens import UNKNOWN
from stream_rec.ranking.blend import BARRED, Blend, CandidateTable, ItemTower, Scored, score
from stream_rec.ranking.candidate_features import AGAIN, DECODER, PARTS, REPEAT, CandidateFeatures
from stream_rec.ranking.retrieval import Retrieved

ROWS, CATEGORIES = 12, 3
CHOSEN = st.lists(st.lists(st.integers(0, ROWS - 1), min_size=1, unique=True), min_size=1, max_size=5)
BLEND = Blend(**{part: 0.1 * (at + 1) for at, part in enumerate(PARTS)}, covered=0.8)


def side(*barred: int) -> ItemTower:
    left_out = torch.zeros(ROWS, dtype=torch.bool)
    left_out[[UNKNOWN, *barred]] = True
    return ItemTower(torch.eye(ROWS), left_out, torch.arange(ROWS) % CATEGORIES, ("", "a", "b"))


def table_of(chosen: Sequence[Sequence[int]], seed: int = 0) -> CandidateTable:
    draw = np.random.default_rng(seed)
    found = []
    for rows in chosen:
        columns = draw.normal(size=(len(rows), len(PARTS))).astype(np.float32)
        columns[:, (AGAIN, REPEAT)] = draw.random((len(rows), 2)) < 0.3
        found.append(CandidateFeatures(np.array(rows), columns))
    near = Retrieved(torch.zeros(len(chosen), 0), lambda answers, rows: answers + 0.1 * rows)
    return CandidateTable.of(near, found)


def scored(table: CandidateTable, items: ItemTower, blend: Blend = BLEND, *, exclude_seen: bool = False) -> Scored:
    return score(table, items, blend, ROWS, exclude_seen=exclude_seen)


@settings(max_examples=60, deadline=None)
@given(CHOSEN, st.sets(st.integers(0, ROWS - 1)), st.booleans(), st.integers(0, 5))
def test_the_best_candidates_their_probabilities_and_interests(chosen, barred, exclude_seen, seed) -> None:
    table, items = table_of(chosen, seed), side(*barred)
    found = scored(table, items, exclude_seen=exclude_seen)
    assert found.rows.shape == (len(chosen), max(map(len, chosen)))
    for answer, rows in enumerate(chosen):
        own = table.answers == answer
        values = dict(zip(rows, (table.columns[own] @ BLEND.weights).tolist(), strict=True))
        allowed = {row: value for row, value in values.items() if not items.unavailable[row]}
        mass = sum(np.exp(list(allowed.values())))
        probability = {row: BLEND.covered * np.exp(value) / mass for row, value in allowed.items()}
        seen = {row for row, one in zip(rows, table.seen[own].tolist(), strict=True) if one and exclude_seen}
        want = sorted(((value, row) for row, value in allowed.items() if row not in seen), reverse=True)
        real = int((found.scores[answer] > BARRED).sum())
        assert found.rows[answer, :real].tolist() == [row for _, row in want]
        assert found.scores[answer, :real].tolist() == pytest.approx([value for value, _ in want], abs=1e-5)
        assert found.probabilities[answer, :real].tolist() == pytest.approx(
            [probability[row] for _, row in want], abs=1e-5
        )
        interests = [sum(p for row, p in probability.items() if row % CATEGORIES == at) for at in range(CATEGORIES)]
        assert found.interests[answer].tolist() == pytest.approx(interests, abs=1e-5)
        assert float(found.interests[answer].sum()) == pytest.approx(BLEND.covered if allowed else 0, abs=1e-5)


def test_a_table_has_each_answers_candidates_with_the_decoders_scores() -> None:
    table = table_of([[3, 1], [2], [5, 4, 0]])
    assert table.answers.tolist() == [0, 0, 1, 2, 2, 2]
    assert table.rows.tolist() == [3, 1, 2, 5, 4, 0]
    assert table.columns[:, DECODER].tolist() == pytest.approx([0.3, 0.1, 1.2, 2.5, 2.4, 2.0])
    assert table.spread(table.rows, -1).tolist() == [[3, 1, -1], [2, -1, -1], [5, 4, 0]]


def test_equal_scores_are_all_kept() -> None:
    table = table_of([[4, 2, 3]])
    table.columns[:] = 1
    found = scored(table, side())
    assert sorted(found.rows[0].tolist()) == [2, 3, 4]
    assert found.probabilities[0].tolist() == pytest.approx([BLEND.covered / 3] * 3)


def test_leaving_out_what_was_seen_leaves_the_distribution_alone() -> None:
    table, items = table_of([list(range(ROWS))]), side(7)
    plain, rest = (scored(table, items, exclude_seen=how) for how in (False, True))
    assert torch.equal(plain.interests, rest.interests)
    ours, theirs = (
        dict(zip(one.rows[0].tolist(), one.probabilities[0].tolist(), strict=True)) for one in (plain, rest)
    )
    assert ours == theirs
    shown = {row for row, one in zip(rest.rows[0].tolist(), rest.scores[0].tolist(), strict=True) if one > BARRED}
    assert shown == set(range(ROWS)) - {UNKNOWN, 7} - set(table.rows[table.seen].tolist())
    assert len(shown) < ROWS - 2


def test_a_blend_weighs_each_part_by_its_name() -> None:
    assert Blend().weights.tolist() == [1.0] + [0.0] * (len(PARTS) - 1)
    for at, part in enumerate(PARTS):
        weights = Blend(**{"decoder": 0.0, part: 2.0}).weights
        assert weights.nonzero().tolist() == [[at]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1e30])
def test_a_candidate_without_a_usable_score_leaves_the_others_as_they_are(value: float) -> None:
    calm, spoilt = table_of([[3, 1], [2, 4]]), table_of([[3, 1, 5], [2, 4]])
    spoilt.columns[[0, 1, 3, 4]] = calm.columns
    spoilt.columns[2, AGAIN] = value
    found, want = scored(spoilt, side()), scored(calm, side())
    assert found.unscored.tolist() == [1, 0]
    assert found.scores[:, 2].tolist() == [BARRED, BARRED]
    assert torch.equal(found.rows[:, :2], want.rows)
    assert torch.allclose(found.scores[:, :2], want.scores)
    assert torch.allclose(found.probabilities[:, :2], want.probabilities)
    assert torch.allclose(found.interests, want.interests)
    assert want.unscored.tolist() == [0, 0]


def test_what_is_barred_anyway_is_not_counted_as_without_a_score() -> None:
    table = table_of([[3, 1]])
    table.columns[1] = np.nan
    assert scored(table, side(1)).unscored.tolist() == [0]
