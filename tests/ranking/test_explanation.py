"""Explanations against the engine's own answers: parts add up, and leaving an event out is answering without it."""

from collections.abc import Callable

import pytest
import torch

from stream_rec.ranking.candidate_features import PARTS
from stream_rec.serving.engine import Engine
from tests.tiny import BLEND, CAPACITY, window

EngineOf = Callable[..., Engine]
NAMES = ["i3", "i7", "i3", "i12", "i9"]


@pytest.fixture
def engine(engine_of: EngineOf) -> Engine:
    made = engine_of(top_k=10)
    for n in range(1, 30):
        made.learn(window(f"u{n}", 4, [f"i{(n * step) % 40}" for step in (1, 2, 5, 9)]))
    return made


def test_parts_add_up_to_the_published_score(engine: Engine) -> None:
    asked = window("u", 5, NAMES)
    published = engine.step([asked]).recommendations[0]
    explained = engine.explain(asked)
    assert (explained.user_id, explained.seq, explained.model) == ("u", 5, published.model)
    assert [why.item_id for why in explained.items] == [item.item_id for item in published.items]
    for why, item in zip(explained.items, published.items, strict=True):
        assert sum(why.parts.values()) == pytest.approx(item.score, abs=2e-4)
        assert why.probability == pytest.approx(item.probability, abs=1e-5)
        assert set(why.parts) == set(PARTS)


def test_an_events_influence_is_the_answer_with_it_less_the_answer_without_it(engine: Engine) -> None:
    asked = window("u", 5, NAMES)
    engine.learn(asked)
    explained = engine.explain(asked)
    assert [event.item_id for event in explained.events] == NAMES
    state = torch.nn.functional.normalize(engine.full([asked]), dim=1).detach()
    decoder = dict(
        zip(engine.catalog.ids(range(len(engine.catalog))), (state @ engine.items.outputs.detach().T)[0], strict=True)
    )
    for why in explained.items:
        assert why.parts["decoder"] == pytest.approx(BLEND.decoder * float(decoder[why.item_id]), abs=1e-4)
    without_last = window("other", 4, NAMES[:-1])  # one minute earlier: what decays stands as it stood, nearly
    shorter = {why.item_id: why for why in engine.explain(without_last).items}
    for why, gain in zip(explained.items, explained.events[-1].gains, strict=True):
        if why.item_id in shorter:
            assert gain == pytest.approx(why.probability - shorter[why.item_id].probability, abs=0.01)
    assert all(0 <= event.moved <= 1 for event in explained.events)
    assert max(explained.events, key=lambda event: event.moved) is explained.events[-1]


def test_explaining_teaches_nothing_and_keeps_nobody(engine: Engine) -> None:
    asked = window("u", 5, NAMES)
    before = {name: array.copy() for name, array in engine.memories.extractor(0).memory.state().items()}
    first, second = engine.explain(asked), engine.explain(asked)
    assert first == second
    assert all((engine.memories.extractor(0).memory.state()[name] == array).all() for name, array in before.items())
    assert len(engine.incremental.cache) == 0


def test_neither_budget_nor_long_windows_nor_strangers_change_what_is_explained(engine_of: EngineOf) -> None:
    names = [f"i{n % 7}" for n in range(CAPACITY - 1)] + ["nobody knows it"]
    roomy, tight = (engine_of(token_budget=budget).explain(window("u", CAPACITY, names)) for budget in (4_096, 1))
    assert [why.item_id for why in roomy.items] == [why.item_id for why in tight.items]
    assert len(roomy.events) == CAPACITY
    for one, other in zip(roomy.events, tight.events, strict=True):
        assert one.moved == pytest.approx(other.moved, abs=1e-4)


def test_a_single_event_has_an_answer_and_no_influence(engine: Engine) -> None:
    explained = engine.explain(window("u", 1, ["i3"]))
    assert (len(explained.items), explained.events) == (10, ())


def test_neighbours_are_what_followed_and_what_is_alike(engine: Engine) -> None:
    near = engine.neighbours("i2", count=5)
    assert near is not None
    heard = engine.memories.extractor(0).memory.transitions.after(engine.catalog.row("i2"))
    follower = engine.catalog.ids([int(heard.rows[heard.weights.argmax()])])[0]
    assert near.followed_by[0].item_id == follower
    for neighbours in (near.followed_by, near.follows, near.similar, near.same_words):
        weights = [one.weight for one in neighbours]
        assert 0 < len(weights) <= 5
        assert weights == sorted(weights, reverse=True)
        assert min(weights) > 0
    assert "i2" not in [one.item_id for one in near.similar]
    assert engine.neighbours("nobody knows it") is None
