import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_rec.ranking import retrieval
from stream_rec.ranking.retrieval import ExactRetriever, best


@given(st.integers(1, 40), st.integers(1, 9_000), st.integers(0, 10))
@settings(max_examples=30, deadline=None)
def test_the_best_of_blocks_are_the_best(k: int, columns: int, seed: int) -> None:
    scores = torch.from_numpy(np.random.default_rng(seed).normal(size=(3, columns)).astype(np.float32))
    values, indices = best(scores, k)
    assert torch.equal(values.sort(descending=True).values, scores.topk(min(k, columns), dim=1).values)
    assert torch.equal(scores.gather(1, indices), values)


@pytest.mark.parametrize("cached", [1, 1_000, retrieval.CACHED])
def test_the_nearest_are_those_with_the_largest_inner_products(cached: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "CACHED", cached)
    torch.manual_seed(0)
    states, outputs = 7 * torch.randn(9, 8), torch.randn(500, 8)
    barred = torch.rand(500) < 0.3
    near = ExactRetriever(outputs, barred)(states, 20)
    exact = torch.nn.functional.normalize(states) @ outputs.T
    exact.masked_fill_(barred, retrieval.FARTHEST)
    want = exact.topk(20).indices
    assert torch.equal(near.rows.sort().values, want.sort().values)
    answers, rows = torch.tensor([0, 0, 8]), torch.tensor([3, 499, 0])
    assert torch.allclose(near.decoder(answers, rows), exact[answers, rows])


def test_a_small_catalogue_is_near_as_a_whole() -> None:
    near = ExactRetriever(torch.randn(5, 8), torch.zeros(5, dtype=torch.bool))(torch.randn(2, 8), 20)
    assert near.rows.sort().values.tolist() == [[0, 1, 2, 3, 4]] * 2
