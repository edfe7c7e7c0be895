import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_rec.evaluation.metrics import MISSED, Ranks, figures
from stream_rec.evaluation.predict import ranks
from stream_rec.ranking.blend import BARRED, Blend, CandidateTable
from stream_rec.ranking.candidate_features import PARTS
from stream_rec.training import blend_fit

REAL = Blend(
    decoder=0.6, transitions=0.4, reverse=-0.3, words=0.8, recency=0.2, category=1.0, repeat=-2.0, covered=0.75
)


def table_of(counts: list[int], seed: int) -> CandidateTable:
    """Random candidates, as many for each answer as `counts` says."""
    draw = torch.Generator().manual_seed(seed)
    answers = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    columns = torch.randn(len(answers), len(PARTS), generator=draw)
    return CandidateTable(answers, torch.arange(len(answers)), columns)


def sampled(count: int) -> tuple[CandidateTable, torch.Tensor]:
    """Truths drawn from the distribution of `REAL`; every fourth was no candidate."""
    table = table_of([20] * count, 0)
    values = (table.columns @ REAL.weights).view(count, 20)
    torch.manual_seed(0)
    truth = torch.softmax(values, dim=1).multinomial(1)[:, 0] + 20 * torch.arange(count)
    truth[::4] = -1
    return table, truth


def test_the_weights_of_sampled_truths_are_found_again() -> None:
    found = blend_fit.fit(*sampled(4_000))
    assert found.covered == REAL.covered
    for part in PARTS:
        assert getattr(found, part) == pytest.approx(getattr(REAL, part), abs=0.15), part


def test_parts_that_are_left_out_weigh_nothing() -> None:
    found = blend_fit.fit(*sampled(400), {"words", "category"})
    assert found.words > 0.3
    assert found.category > 0.3
    assert [part for part in PARTS if getattr(found, part)] == ["words", "category"]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 9))
def test_the_log_of_a_sum_of_exponentials_overflows_nowhere(counts: list[int], seed: int) -> None:
    table = table_of(counts, seed)
    for scale in (1.0, 500.0):
        values = scale * table.columns[:, 0]
        want = [values[table.answers == answer].logsumexp(0).item() for answer in range(len(counts))]
        assert blend_fit.log_mass(values, table.answers, len(counts)).tolist() == pytest.approx(
            want, rel=1e-4, abs=1e-4
        )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 9), st.data())
def test_a_rank_counts_all_that_is_at_least_as_good(counts: list[int], seed: int, draw) -> None:
    table = table_of(counts, seed)
    values = torch.randint(0, 4, (sum(counts),), generator=torch.Generator().manual_seed(seed)).float()
    values[draw.draw(st.lists(st.integers(0, sum(counts) - 1)))] = BARRED
    asked = draw.draw(st.lists(st.integers(0, len(counts) - 1), min_size=1, max_size=12))
    begins = np.cumsum([0, *counts])
    truth = [draw.draw(st.integers(-1, counts[answer] - 1)) for answer in asked]
    places = [int(begins[answer]) + at if at >= 0 else -1 for answer, at in zip(asked, truth, strict=True)]
    found = ranks(table, values, torch.tensor(asked), torch.tensor(places))
    for answer, place, rank in zip(asked, places, found.tolist(), strict=True):
        if place < 0 or values[place] <= BARRED:
            assert rank == MISSED
            continue
        others = [at for at in range(int(begins[answer]), int(begins[answer + 1])) if at != place]
        assert rank == sum(bool(values[at] >= values[place]) for at in others)


def test_the_figures_of_known_ranks() -> None:
    ranked = Ranks(np.arange(4), np.array([0, 9, 10, MISSED]), 4)
    found = figures(ranked)
    assert found["hr_at_10"] == 0.5
    assert found["ndcg_at_10"] == pytest.approx((1 + 1 / math.log2(11)) / 4)
    assert found["mrr"] == pytest.approx((1 + 1 / 10 + 1 / 11) / 4, abs=1e-6)
    assert ranked.predictions == 4
