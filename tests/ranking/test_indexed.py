from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_rec.bench.catalog import BLEND, World, catalogue, remembering
from stream_rec.features.tokens import UNKNOWN
from stream_rec.messages import Item
from stream_rec.ranking import ranker as ranking
from stream_rec.ranking.ann import ENOUGH, AnnIndex, AnnRetriever
from stream_rec.ranking.blend import BARRED, ItemTower, Ranked
from stream_rec.ranking.candidate_features import AGAIN, PARTS, CandidateFeatures
from stream_rec.ranking.ranker import Ask, Ranker, RankingConfig, Recall
from stream_rec.ranking.retrieval import ExactRetriever, Retrieved
from stream_rec.serving.engine import Engine
from tests.tiny import ITEMS, TEXT_DIM, items, window

EngineOf = Callable[..., Engine]
COUNT, WIDTH, ANSWERS, K = 3_000, 32, 24, 20


@pytest.fixture(scope="module")
def world() -> World:
    return catalogue(COUNT, WIDTH, ANSWERS)


@pytest.fixture(scope="module")
def ask() -> Ask:
    return remembering(COUNT, ANSWERS, seed=0)


def ranker_of(items: ItemTower, scoring: str = "ann", **choice: object) -> Ranker:
    made = Ranker(BLEND, RankingConfig(K, scoring)._replace(**choice))  # type: ignore[arg-type]
    made.update(items, np.arange(len(items.outputs)))
    return made


def decoders(near: Retrieved) -> list[CandidateFeatures]:
    """The decoder's candidates alone."""
    rows = [np.unique(one) for one in near.rows.numpy()]
    return [CandidateFeatures(one, np.zeros((len(one), len(PARTS)), np.float32)) for one in rows]


def seen(rows: list[int], ask: Ask) -> Ask:
    """Every user has seen `rows`, which are candidates too."""

    def made(near: Retrieved) -> list[CandidateFeatures]:
        found = []
        for one in ask(near):
            every = np.union1d(one.rows, np.array(rows, np.int64))
            columns = np.zeros((len(every), len(PARTS)), np.float32)
            columns[np.isin(every, one.rows)] = one.columns
            columns[np.isin(every, rows), AGAIN] = 1
            found.append(CandidateFeatures(every, columns))
        return found

    return made


def barred(items: ItemTower, *rows: int) -> ItemTower:
    more = items.unavailable.clone()
    more[list(rows)] = True
    return items._replace(unavailable=more)


def everything(items: ItemTower) -> ExactRetriever:
    return ExactRetriever(items.outputs, items.unavailable)


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
def test_only_items_that_may_be_recommended_and_as_many_as_asked_for(world, ask, scoring, diversity, gone, known, k):
    order = np.random.default_rng(len(known)).permutation(COUNT).tolist()
    left = barred(world.items, UNKNOWN, *order[:gone])
    ranker = ranker_of(left, scoring, top_k=k, diversity=diversity, exclude_seen=True)
    found = ranker.rank(world.states, seen(known, ask))
    allowed = set((~left.unavailable).nonzero()[:, 0].tolist()) - set(known)
    for rows, scores in zip(found.rows.tolist(), found.scores.tolist(), strict=True):
        real = [row for row, score in zip(rows, scores, strict=True) if score > BARRED]
        assert set(real) <= allowed
        assert len(set(real)) == len(real) == min(k, len(allowed))


@pytest.mark.parametrize("effort", [1.0, 4.0])
def test_an_index_finds_what_scoring_everything_does(world: World, effort: float) -> None:
    near = AnnRetriever(everything(world.items), effort)(world.states, 50)
    exact = everything(world.items)(world.states, 50)
    found = [len(set(ours) & set(theirs)) for ours, theirs in zip(near.rows.tolist(), exact.rows.tolist(), strict=True)]
    assert np.mean(found) > 50 * 0.97
    assert near.rows.shape[1] >= ENOUGH
    answers = torch.arange(ANSWERS).repeat_interleave(50)
    rows = exact.rows.flatten()
    assert torch.allclose(near.decoder(answers, rows), exact.decoder(answers, rows), atol=1e-5)


def test_where_the_index_finds_too_few_everything_is_scored(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    near = AnnRetriever(everything(world.items))
    found = near._index.search(world.states, ENOUGH)
    found[::2, 10:] = -1
    monkeypatch.setattr(AnnIndex, "search", lambda *_: found.clone())
    rows = near(world.states, 50).rows
    exact = everything(world.items)(world.states, 50).rows
    assert [set(one) <= set(other) for one, other in zip(exact[::2].tolist(), rows[::2].tolist(), strict=True)]
    assert torch.equal(rows[1::2], found[1::2])


def test_a_changed_vector_is_found_where_it_is_now(world: World) -> None:
    moved = world.items._replace(outputs=world.items.outputs.clone())
    ranker = ranker_of(moved)
    towards, other = world.states[:1], world.states[1:2]
    away = int(ranker.rank(other, decoders).rows[0, 0])
    moved.outputs[away] = torch.nn.functional.normalize(towards)[0] * moved.outputs[1].norm()
    ranker.update(moved, np.array([away]))
    assert ranker.rank(towards, decoders).rows[0, 0] == away
    assert away not in ranker.rank(other, decoders).rows[0, :3]


def test_a_catalogue_that_grows_and_changes_is_still_found(world: World) -> None:
    draw = np.random.default_rng(0)
    whole = world.items
    ranker = ranker_of(ItemTower(*(column[:400] for column in whole[:3]), whole.labels))
    for count in (600, 1_200, COUNT, COUNT):
        out = draw.choice(count, count // 10, replace=False).tolist()
        now = barred(ItemTower(*(column[:count] for column in whole[:3]), whole.labels), UNKNOWN, *out)
        ranker.update(now, draw.choice(count, 50, replace=False))
        found, exact = (one.rank(world.states, decoders) for one in (ranker, ranker_of(now, "exact")))
        assert share_found(found, exact) > 0.97
    recall = ranker.recall(world.states, decoders)
    assert recall.sampled == ANSWERS * K
    assert 0.97 * recall.sampled < recall.recalled <= recall.sampled


def test_an_index_that_finds_nothing_shows_in_the_recall(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ranker = ranker_of(world.items)
    wrong = torch.arange(1, 301).expand(ANSWERS, -1)
    monkeypatch.setattr(AnnIndex, "search", lambda *_: wrong.clone())
    recall = ranker.recall(world.states, decoders)
    assert recall.recalled < 0.5 * recall.sampled


def test_a_withdrawn_item_never_comes_back_until_it_is_available_again(world: World, ask: Ask) -> None:
    ranker = ranker_of(world.items)
    best = ranker.rank(world.states, ask).rows[:, 0].unique().tolist()
    nothing_new = np.zeros(0, np.int64)
    ranker.update(barred(world.items, *best), nothing_new)
    for _ in range(3):
        found = ranker.rank(world.states, ask)
        assert not set(best) & set(found.rows.flatten().tolist())
        ranker.update(barred(world.items, *best), np.array(best))  # new vectors of withdrawn items
    ranker.update(world.items, nothing_new)
    assert set(ranker.rank(world.states, ask).rows[:, 0].tolist()) == set(best)


def test_small_catalogues_are_scored_whole_unless_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ranker_of(world.items, "auto").index_bytes == 0
    assert ranker_of(world.items, "auto").recall(world.states, decoders) == Recall()
    monkeypatch.setattr(ranking, "MANY", COUNT - 1)
    assert ranker_of(world.items, "auto").index_bytes > 0
    assert ranker_of(world.items, "exact").index_bytes == 0


@pytest.mark.parametrize("scoring", ["exact", "ann"])
def test_more_diversity_means_less_alike(world: World, ask: Ask, scoring: str) -> None:
    plain = ranker_of(world.items, scoring).rank(world.states, ask)
    alike = []
    for diversity in (1e-9, 0.2, 0.5, 0.8, 1.0):
        found = ranker_of(world.items, scoring, diversity=diversity).rank(world.states, ask)
        vectors = torch.nn.functional.normalize(world.items.outputs[found.rows], dim=2)
        alike.append(float((vectors @ vectors.mT).mean()))
        assert torch.equal(found.rows[:, 0], plain.rows[:, 0])
        if diversity < 1e-3:
            assert torch.equal(found.rows, plain.rows)
            assert torch.allclose(found.probabilities, plain.probabilities)
    assert alike == sorted(alike, reverse=True)
    assert alike[-1] < alike[0] - 0.1


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
    index = AnnIndex(outputs, np.arange(COUNT))
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
