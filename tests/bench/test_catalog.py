import torch

from stream_rec.bench.catalog import SCALE, STEPS, CatalogBenchOptions, catalogue, measure


def test_the_benchmark_compares_an_index_with_scoring_everything() -> None:
    heard: list[None] = []
    figures = measure(2_000, CatalogBenchOptions(width=32, batch=32, runs=1, recalled=64), lambda: heard.append(None))
    assert len(heard) == STEPS
    assert figures["items"] == 2_000
    assert 0.97 < figures["recall_at_20"] <= 1
    for name in ("exact_per_s", "indexed_per_s", "ratio", "build_s", "upsert_ms", "index_mb", "vectors_mb"):
        assert figures[name] > 0


def test_its_vectors_lie_in_clusters_and_its_states_near_items() -> None:
    items, states = catalogue(4_000, 64, 100)
    vectors = items.outputs / SCALE
    assert torch.allclose(vectors.norm(dim=1), torch.ones(4_000), atol=1e-5)
    assert vectors.mean(dim=0).norm() < 0.05
    cosines = torch.nn.functional.normalize(states, dim=1) @ vectors.T
    assert 0.6 < cosines.amax(dim=1).median() < 0.85
    assert cosines.std() < 0.25
    alike = vectors @ vectors.T
    assert alike.fill_diagonal_(0).amax(dim=1).median() > 0.9
