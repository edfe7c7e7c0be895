import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_rec.evaluation import proper_scores
from stream_rec.evaluation.proper_scores import Mass, Said
from stream_rec.features.tokens import UNKNOWN

ROWS = 9
CATEGORIES = np.array([0, 1, 1, 2, 2, 2, 3, 0, 3])
"""Of each catalogue row, the unknown item's among them."""


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, ROWS - 1), min_size=1, unique=True), min_size=1, max_size=5),
    st.floats(0.1, 1),
    st.integers(0, 9),
)
def test_all_items_and_all_categories_have_one_probability_between_them(chosen, covered, seed) -> None:
    draw = np.random.default_rng(seed)
    most = max(map(len, chosen))
    shares, rows = torch.zeros(len(chosen), most), torch.full((len(chosen), most), UNKNOWN)
    want = np.zeros((len(chosen), ROWS))
    for answer, candidates in enumerate(chosen):
        of = draw.dirichlet(np.ones(len(candidates))) * (covered if len(candidates) < ROWS - 1 else 1)
        shares[answer, : len(of)], rows[answer, : len(of)] = torch.from_numpy(of).float(), torch.tensor(candidates)
        want[answer, 1:] = (1 - of.sum()) / max(1, ROWS - 1 - len(of))
        want[answer, candidates] = of
    truth = draw.integers(1, ROWS, len(chosen))
    found = Mass.of(shares, rows, truth, CATEGORIES)
    every = np.arange(len(chosen))
    assert found.item.truth == pytest.approx(want[every, truth], abs=1e-5)
    by_category = np.stack([want[:, at == CATEGORIES].sum(axis=1) for at in range(4)], axis=1)
    assert by_category.sum(axis=1) == pytest.approx(np.ones(len(chosen)))
    assert found.category.truth == pytest.approx(by_category[every, CATEGORIES[truth]], abs=1e-5)
    assert found.category.top == pytest.approx(by_category.max(axis=1), abs=1e-5)


def test_who_knows_the_frequencies_is_surer_than_who_knows_nothing() -> None:
    truth = np.random.default_rng(0).choice(3, 4_000, p=[0.7, 0.2, 0.1])
    frequency = proper_scores.smoothed(truth, 3)
    assert frequency == pytest.approx([0.7, 0.2, 0.1], abs=0.02)
    known, uniform = (Said.always(one, truth).figures() for one in (frequency, np.full(3, 1 / 3)))
    assert known["log_loss"] == pytest.approx(-(frequency * np.log(frequency)).sum(), abs=0.01)
    assert uniform["log_loss"] == pytest.approx(np.log(3))
    assert known["calibration_error"] < 0.02 < uniform["calibration_error"]
    told = Said.of(np.tile(frequency, (len(truth), 1)), truth)
    assert told.figures() == pytest.approx(known)


def test_a_constant_ranks_nothing_and_a_prophet_everything() -> None:
    happened = np.random.default_rng(0).random(1_000) < 0.2
    constant = proper_scores.binary(np.full(1_000, happened.mean()), happened)
    assert constant["auc"] == 0.5
    assert constant["calibration_error"] == pytest.approx(0)
    prophet = proper_scores.binary(happened.astype(float), happened)
    assert prophet["auc"] == 1
    assert prophet["log_loss"] == pytest.approx(0, abs=1e-5)
    assert "auc" not in proper_scores.binary(np.full(3, 0.5), np.zeros(3, bool))
