import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from stream_rec.evaluation.proper_scores import binary
from stream_rec.models.user_encoder import EncoderConfig, UserEncoder, new_body
from stream_rec.training import goal_head
from stream_rec.training.goal_head import Contacts

WIDTH, TYPES, ITEMS = 8, 3, 30
TRUE = torch.randn(2 * WIDTH + TYPES, generator=torch.Generator().manual_seed(1)) * 2


def encoder() -> UserEncoder:
    shape = EncoderConfig(width=WIDTH, layers=1, heads=2, kv_heads=2, inner=8)
    return UserEncoder(shape, new_body(shape), ITEMS, 4, TYPES, goal=True).eval()


def world(bias: float, count: int, seed: int) -> tuple[Contacts, torch.Tensor, torch.Tensor]:
    """Contacts whose goals are drawn by the formula, the items' outputs, and the log-odds that were drawn by."""
    draw = torch.Generator().manual_seed(seed)
    users = encoder().users(torch.randn(count, WIDTH, generator=draw), torch.randint(TYPES, (count,), generator=draw))
    outputs = 14 * F.normalize(torch.randn(ITEMS, WIDTH, generator=torch.Generator().manual_seed(2)), dim=1)
    rows = torch.randint(ITEMS, (count,), generator=draw)
    logits = torch.cat([users, F.normalize(outputs[rows], dim=1)], dim=1) @ TRUE + bias
    goals = torch.rand(count, generator=draw) < torch.sigmoid(logits)
    return Contacts(users, rows, goals), outputs, logits


@pytest.mark.parametrize("bias", [-7.0, -4.0, 1.0])
def test_rare_goals_weigh_more_and_yet_the_interest_comes_true_as_often_as_it_says(bias: float) -> None:
    """Without the correction the mean would be near a half."""
    taught, outputs, _ = world(bias, 20_000, 0)
    ours = encoder()
    goal_head.fit(ours, taught, outputs)
    held, _, logits = world(bias, 20_000, 5)
    said = torch.sigmoid(goal_head.logits(ours, held, outputs)).double().numpy()
    goals = held.goals.numpy()
    assert said.mean() == pytest.approx(goals.mean(), rel=0.25)
    found, best = binary(said, goals), binary(torch.sigmoid(logits).double().numpy(), goals)
    constant = binary(np.full(len(goals), goals.mean()), goals)
    assert found["auc"] > best["auc"] - 0.03
    assert found["log_loss"] < 0.3 * constant["log_loss"] + 0.7 * best["log_loss"]


@settings(max_examples=20, deadline=None)
@given(slope=st.floats(0.3, 3), offset=st.floats(-2, 2), seed=st.integers(0, 99))
def test_a_scaling_makes_crooked_log_odds_straight_and_goes_into_the_head(slope, offset, seed) -> None:
    held, outputs, true = world(-2.0, 20_000, seed)
    found = goal_head.scaling((true - offset) / slope, held.goals)
    assert found.slope == pytest.approx(slope, rel=0.2)
    assert found.offset == pytest.approx(offset, abs=0.3)
    ours = encoder()
    before = goal_head.logits(ours, held, outputs)
    goal_head.scale(ours, found)
    after = goal_head.logits(ours, held, outputs)
    assert torch.allclose(after, found.slope * before + found.offset, atol=1e-4)
    scaled = torch.sigmoid(found.slope * (true - offset) / slope + found.offset)
    assert float(scaled.mean()) == pytest.approx(float(held.goals.float().mean()), abs=0.01)


@pytest.mark.parametrize("all_or_none", [False, True])
def test_goals_that_never_or_always_happened_give_probabilities_all_the_same(all_or_none: bool) -> None:
    taught, outputs, _ = world(0.0, 500, 0)
    taught = taught._replace(goals=torch.full((500,), all_or_none))
    ours = encoder()
    goal_head.fit(ours, taught, outputs)
    goal_head.scale(ours, goal_head.scaling(goal_head.logits(ours, taught, outputs), taught.goals))
    said = torch.sigmoid(goal_head.logits(ours, taught, outputs))
    assert ((said > 0.9) if all_or_none else (said < 0.1)).all()
    assert said.isfinite().all()
