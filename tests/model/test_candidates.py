from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stream_rec.bench.catalog import BLEND, World, catalogue, nothing, remembered
from stream_rec.messages import Item
from stream_rec.model import ranker as ranking
from stream_rec.model import scorer
from stream_rec.model.candidates import SAMPLE, shortlist
from stream_rec.model.counters import NOTHING, Heard
from stream_rec.model.engine import Engine
from stream_rec.model.index import Index
from stream_rec.model.ranker import Choice, Ranker, Recall
from stream_rec.model.scorer import BARRED, Candidates, Memory, Ranked
from tests.tiny import ITEMS, TEXT_DIM, items, window

EngineOf = Callable[..., Engine]
COUNT, WIDTH, ANSWERS, K = 3_000, 32, 24, 20


@pytest.fixture(scope="module")
def world() -> World:
    return catalogue(COUNT, WIDTH, ANSWERS)


@pytest.fixture(scope="module")
def memory() -> Memory:
    return remembered(COUNT, ANSWERS, seed=0)


def ranker_of(items: Candidates, scoring: str = "ann", **choice: object) -> Ranker:
    made = Ranker(BLEND, Choice(K, scoring)._replace(**choice))  # type: ignore[arg-type]
    made.update(items, np.arange(len(items.outputs)))
    return made


def seen(*rows: int, answers: int = ANSWERS) -> Tensor:
    """Every user has seen `rows`."""
    return torch.tensor(rows, dtype=torch.int64).expand(answers, -1)


def barred(items: Candidates, *rows: int) -> Candidates:
    more = items.barred.clone()
    more[list(rows)] = True
    return items._replace(barred=more)


def share_found(found: Ranked, exact: Ranked) -> float:
    pairs = zip(found.rows.tolist(), exact.rows.tolist(), strict=True)
    return float(np.mean([len(set(ours) & set(theirs)) / len(theirs) for ours, theirs in pairs]))


@settings(max_examples=25, deadline=None)
@given(
    scoring=st.sampled_from(["exact", "ann"]),
    diversity=st.sampled_from([0.0, 0.3, 1.0]),
    gone=st.sampled_from([0, 30, COUNT - 400, COUNT - 40, COUNT]),
    known=st.lists(st.integers(0, COUNT - 1), max_size=60),
    k=st.sampled_from([1, 20, 60]),
)
def test_only_items_that_may_be_recommended_and_as_many_as_asked_for(world, memory, scoring, diversity, gone, known, k):
    order = np.random.default_rng(len(known)).permutation(COUNT).tolist()
    left = barred(world.items, 0, *order[:gone])
    found = ranker_of(left, scoring, top_k=k, diversity=diversity).rank(world.states, memory, seen(*known))
    allowed = set((~left.barred).nonzero()[:, 0].tolist()) - set(known)
    for rows, scores in zip(found.rows.tolist(), found.scores.tolist(), strict=True):
        real = [row for row, score in zip(rows, scores, strict=True) if score > BARRED]
        assert set(real) <= allowed
        assert len(set(real)) == len(real) == min(k, len(allowed))


def test_a_shortlist_of_everything_is_the_blend_of_everything(world: World, memory: Memory) -> None:
    asked = scorer.queries(world.states, BLEND)
    everything = torch.arange(COUNT).expand(ANSWERS, -1)
    short = shortlist(asked, everything, memory, world.items, BLEND)
    whole = scorer.rank(world.states, memory, world.items, BLEND, K)
    values, at = scorer.best(short.scores, K)
    assert torch.equal(short.rows.gather(1, at), whole.rows)
    assert torch.allclose(values, whole.scores, atol=1e-4)


def test_what_the_memory_names_is_found_however_far_it_is(world: World) -> None:
    far = (world.states @ world.items.outputs.T).argmin(dim=1).tolist()
    named = Memory.of([Heard.of({row: 1e30}) for row in far], [1] * ANSWERS, torch.device("cpu"))
    found = ranker_of(world.items).rank(world.states, named, seen())
    assert found.rows[:, 0].tolist() == far
    assert torch.allclose(found.scores, ranker_of(world.items, "exact").rank(world.states, named, seen()).scores)


def test_probabilities_are_exact_where_the_sample_holds_the_rest(world: World, memory: Memory) -> None:
    assert COUNT < SAMPLE
    ours, exact = (ranker_of(world.items, how).rank(world.states, memory, seen(5, 6)) for how in ("ann", "exact"))
    same = ours.rows == exact.rows
    assert same.float().mean() > 0.95
    assert torch.allclose(ours.probabilities[same], exact.probabilities[same], rtol=1e-3)
    assert torch.allclose(ours.interests, exact.interests, atol=1e-4)


def test_probabilities_are_near_where_the_rest_is_estimated() -> None:
    large = catalogue(6 * SAMPLE, WIDTH, 128)
    known = remembered(6 * SAMPLE, 128, seed=1)
    ours, exact = (ranker_of(large.items, how).rank(large.states, known, seen(answers=128)) for how in ("ann", "exact"))
    error = ours.probabilities[:, 0] / exact.probabilities[:, 0] - 1
    assert error.abs().median() < 0.05
    assert error.mean().abs() < 0.03
    assert (ours.interests - exact.interests).abs().amax(dim=1).median() < 0.02


def test_a_withdrawn_item_never_comes_back_until_it_is_available_again(world: World, memory: Memory) -> None:
    ranker = ranker_of(world.items)
    best = ranker.rank(world.states, memory, seen()).rows[:, 0].unique().tolist()
    nothing_new = np.zeros(0, np.int64)
    ranker.update(barred(world.items, *best), nothing_new)
    for _ in range(3):
        found = ranker.rank(world.states, memory, seen())
        assert not set(best) & set(found.rows.flatten().tolist())
        ranker.update(barred(world.items, *best), np.array(best))  # new vectors of withdrawn items
    ranker.update(world.items, nothing_new)
    assert set(ranker.rank(world.states, memory, seen()).rows[:, 0].tolist()) == set(best)


def test_a_changed_vector_is_found_where_it_is_now(world: World) -> None:
    moved = world.items._replace(outputs=world.items.outputs.clone())
    ranker = ranker_of(moved)
    towards, away = world.states[0], int(ranker.rank(world.states[1:2], nothing(1), seen(answers=1)).rows[0, 0])
    moved.outputs[away] = scorer.queries(towards[None], BLEND)[0] / BLEND.decoder * moved.outputs[1].norm()
    ranker.update(moved, np.array([away]))
    assert ranker.rank(towards[None], nothing(1), seen(answers=1)).rows[0, 0] == away
    assert away not in ranker.rank(world.states[1:2], nothing(1), seen(answers=1)).rows[0, :3]


def test_a_catalogue_that_grows_and_changes_is_still_found(world: World, memory: Memory) -> None:
    draw = np.random.default_rng(0)
    whole = world.items
    begin = Candidates(*(column[:400] for column in whole[:3]), whole.labels)
    ranker = ranker_of(begin)
    for count in (600, 1_200, COUNT, COUNT):
        out = draw.choice(count, count // 10, replace=False).tolist()
        now = barred(Candidates(*(column[:count] for column in whole[:3]), whole.labels), 0, *out)
        ranker.update(now, draw.choice(count, 50, replace=False))
        few = Memory.of([NOTHING] * ANSWERS, [1] * ANSWERS, torch.device("cpu"))
        found, exact = (r.rank(world.states, few, seen()) for r in (ranker, ranker_of(now, "exact")))
        assert share_found(found, exact) > 0.97
    recall = ranker.recall(world.states, nothing(ANSWERS), seen())
    assert recall.sampled == ANSWERS * K
    assert 0.97 * recall.sampled < recall.recalled <= recall.sampled


def test_an_index_that_finds_nothing_shows_in_the_recall(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ranker = ranker_of(world.items)
    wrong = torch.arange(1, 301).expand(ANSWERS, -1)
    monkeypatch.setattr(type(ranker._shortlister._index), "search", lambda *_: wrong)
    recall = ranker.recall(world.states, nothing(ANSWERS), seen())
    assert recall.recalled < 0.5 * recall.sampled


def test_small_catalogues_are_scored_whole_unless_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ranker_of(world.items, "auto").index_bytes == 0
    assert ranker_of(world.items, "auto").recall(world.states, nothing(ANSWERS), seen()) == Recall()
    monkeypatch.setattr(ranking, "MANY", COUNT - 1)
    assert ranker_of(world.items, "auto").index_bytes > 0
    assert ranker_of(world.items, "exact").index_bytes == 0


@pytest.mark.parametrize("scoring", ["exact", "ann"])
def test_more_diversity_means_less_alike(world: World, memory: Memory, scoring: str) -> None:
    plain = ranker_of(world.items, scoring).rank(world.states, memory, seen())
    alike = []
    for diversity in (1e-9, 0.2, 0.5, 0.8, 1.0):
        found = ranker_of(world.items, scoring, diversity=diversity).rank(world.states, memory, seen())
        vectors = torch.nn.functional.normalize(world.items.outputs[found.rows], dim=2)
        alike.append(float((vectors @ vectors.mT).mean()))
        assert torch.equal(found.rows[:, 0], plain.rows[:, 0])
        if diversity < 1e-3:
            assert torch.equal(found.rows, plain.rows)
            assert torch.allclose(found.probabilities, plain.probabilities)
    assert alike == sorted(alike, reverse=True)
    assert alike[-1] < alike[0] - 0.1


@given(st.integers(1, 40), st.integers(1, 9_000), st.integers(0, 10))
@settings(max_examples=30, deadline=None)
def test_the_best_of_blocks_are_the_best(k: int, columns: int, seed: int) -> None:
    scores = torch.from_numpy(np.random.default_rng(seed).normal(size=(3, columns)).astype(np.float32))
    values, indices = scorer.best(scores, k)
    assert torch.equal(values, scores.topk(min(k, columns), dim=1).values)
    assert torch.equal(scores.gather(1, indices), values)


def test_many_answers_over_many_items_are_scored_in_blocks(
    world: World, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = scorer.rank(world.states, memory, world.items, BLEND, K)
    monkeypatch.setattr(scorer, "BLOCK", 7 * COUNT)
    monkeypatch.setattr(scorer, "CACHED", 2 * COUNT)
    parts = scorer.rank(world.states, memory, world.items, BLEND, K)
    assert torch.equal(parts.rows, whole.rows)
    assert torch.allclose(parts.interests, whole.interests, atol=1e-6)


def test_an_engine_leaves_out_what_was_seen_and_foreign_categories(engine_of: EngineOf) -> None:
    engine = engine_of(top_k=ITEMS, exclude_seen=True, categories=frozenset({"c1", "c2"}), recall_share=1.0)
    new = [Item("new", category="c7", vector=[0.1] * TEXT_DIM)]
    engine.upsert(new, engine.read(new))
    step = engine.step([window("u", 3, ["i1", "i2", "nobody knows it"]), window("v", 1, ["i4"])])
    ours, theirs = ({ranked.item_id for ranked in answer.items} for answer in step.recommendations)
    shown = {item.item_id for item in items() if item.category in ("c1", "c2")}
    assert (ours, theirs) == (shown - {"i1", "i2"}, shown - {"i4"})
    assert {interest.label for interest in step.recommendations[0].interests if interest.weight} == {"c1", "c2"}
    assert step.recall == Recall()


def test_an_engine_with_an_index_answers_as_one_without(engine_of: EngineOf) -> None:
    draw = np.random.default_rng(0)
    more = [Item(f"n{n}", category=f"c{n % 3}", vector=draw.normal(size=TEXT_DIM).tolist()) for n in range(400)]
    asked = [window(f"u{n}", 2, [f"i{n}", f"n{n}"]) for n in range(10)]
    answers = []
    for scoring in ("exact", "ann"):
        engine = engine_of(scoring=scoring, recall_share=1.0)
        engine.upsert(more, engine.read(more))
        step = engine.step(asked)
        assert (step.recall.sampled > 0) == (engine.ranker.index_bytes > 0) == (scoring == "ann")
        assert step.recall.recalled >= 0.95 * step.recall.sampled
        answers.append([{ranked.item_id for ranked in answer.items} for answer in step.recommendations])
    found = [len(ours & theirs) for ours, theirs in zip(*answers, strict=True)]
    assert sum(found) >= 0.95 * 20 * len(asked)


def test_what_is_removed_and_added_again_is_found_as_before(world: World) -> None:
    draw, outputs = np.random.default_rng(0), world.items.outputs
    index = Index(outputs, np.arange(COUNT))
    before = index.search(world.states, 50).tolist()
    for _ in range(4):
        moved = draw.choice(COUNT, COUNT // 3, replace=False)
        index.remove(moved)
        assert len(index) == COUNT - len(moved)
        assert not np.isin(index.search(world.states, 50).numpy(), moved).any()
        index.add(outputs, draw.permutation(moved))
    after = index.search(world.states, 50).tolist()
    same = [len(set(one) & set(other)) for one, other in zip(before, after, strict=True)]
    assert np.mean(same) > 49.5  # equal codes may stand in either order at the edge
