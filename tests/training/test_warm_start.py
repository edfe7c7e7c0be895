from itertools import islice
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import polars as pl
import pytest
import torch

from stream_rec.data.dataset import slices
from stream_rec.data.simulator.storefront import Storefront
from stream_rec.errors import UserError
from stream_rec.evaluation.predict import teach
from stream_rec.features.online_statistics import OnlineStatistics
from stream_rec.features.text_encoder import TextEncoder
from stream_rec.messages import Event, Item
from stream_rec.models import model_store
from stream_rec.models.model_store import Model
from stream_rec.models.user_encoder import EncoderConfig
from stream_rec.serving.engine import Engine, Limits
from stream_rec.training import lbfgs, train, warm_start
from stream_rec.training.config import TrainConfig
from stream_rec.training.model_card import Origin, card
from stream_rec.training.prepare import reopen
from stream_rec.training.trainer import states_of
from stream_rec.window import append

CAPACITY, STRIDE = 8, 4
CONFIG = TrainConfig(
    EncoderConfig(width=32, layers=1, heads=2, kv_heads=1, inner=64), "full", CAPACITY, STRIDE, epochs=1, refit=False
)
NEW = Item("a new thing", title="a new thing", price=3.0, vector=[11.0, 3.0])


class Shop(NamedTuple):
    past: pl.DataFrame
    whole: pl.DataFrame
    """The past and what came after it: one item more, one type of event more."""
    items: list[Item]
    model: Model
    """Of the past."""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    front = Storefront(seed=1, products=312, shoppers=40)
    items = [msgspec.structs.replace(item, vector=[float(len(item.title)), item.price or 0.0]) for item in front.items]
    rows = [(e.user_id, e.item_id, e.event_type, e.timestamp) for e in islice(front.events(), 600)]
    rows[500:520] = [(user, NEW.item_id, "share", time) for user, _, _, time in rows[500:520]]
    whole = pl.DataFrame(rows, schema=("user", "item", "event", "time"), orient="row")
    folder_of = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as patched:
        hasten(patched)
        trained = train.train(whole[:400], items, CONFIG, TextEncoder("none", folder_of), folder_of, lambda *_: None)
    model_store.save(trained.model, folder_of / "model")
    return Shop(whole[:400], whole, items, model_store.load(folder_of / "model"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hasten(monkeypatch)


def hasten(patched: pytest.MonkeyPatch) -> None:
    """Few validation predictions, coarse weights: what the blend is worth is another test's."""
    patched.setattr(train, "VALIDATION_PREDICTIONS", 20)
    patched.setattr(lbfgs, "ITERATIONS", 3)


def onward(shop: Shop, frame: pl.DataFrame, items: list[Item], out: Path, **changes: object) -> train.Trained:
    model = shop.model
    config = msgspec.structs.replace(CONFIG, encoder=model.config.encoder, continues=model.version, **changes)
    return train.train(frame, items, config, TextEncoder("none", out), out, lambda *_: None, model)


def test_rows_and_event_types_are_only_added(shop: Shop, tmp_path: Path) -> None:
    gone, kept = shop.items[0], shop.items[2:]
    renamed = msgspec.structs.replace(shop.items[1], title="another title")
    texts = TextEncoder("none", tmp_path)
    prepared = warm_start.prepare(shop.model, shop.whole, [renamed, *kept, NEW], CONFIG, texts, lambda *_: None)
    ids = [item.item_id for item in prepared.items]
    assert ids == [*(item.item_id for item in shop.items), NEW.item_id]
    assert (prepared.items[0], prepared.items[1].title) == (gone, "another title")
    assert prepared.event_types == (*shop.model.config.event_types, "share")
    assert len(prepared.vectors) == len(ids) + 1
    for likeness in (prepared.alike.text, prepared.alike.words):
        assert len(likeness.rows) == len(ids) + 1


def test_before_its_first_step_the_grown_encoder_says_what_the_model_says(shop: Shop, tmp_path: Path) -> None:
    texts = TextEncoder("none", tmp_path)
    before = reopen(shop.model, shop.past, texts)
    windows = slices(before.data, CAPACITY, STRIDE, np.ones(len(shop.past), np.bool_))[:5]
    old = shop.model.encoder.residual.weight.detach().clone()
    with torch.no_grad():
        states, _ = states_of(shop.model.encoder, before, windows)
    grown = warm_start.prepare(shop.model, shop.past, [*shop.items, NEW], CONFIG, texts, lambda *_: None)
    assert grown.start is not None
    with torch.no_grad():
        again, _ = states_of(grown.start.eval(), grown, windows)
    assert torch.equal(states, again)
    assert torch.equal(grown.start.residual.weight[:-1], old)
    assert not grown.start.residual.weight[-1].any()  # a new item is what its text says


def test_what_is_validated_is_newer_than_the_model(shop: Shop, tmp_path: Path) -> None:
    data = reopen(shop.model, shop.whole, TextEncoder("none", tmp_path)).data
    since = shop.model.config.trained_until
    for share in (0.01, 0.1, 0.5):
        validation, whole = train.splits(data, msgspec.structs.replace(CONFIG, validation=share), since)
        assert data.times[validation.targets].min() > since
        assert (validation.known & (data.times > since)).sum() >= 99
        assert whole.all()


def test_the_memory_learns_each_event_once(shop: Shop, tmp_path: Path) -> None:
    trained = onward(shop, shop.whole, [*shop.items, NEW], tmp_path)
    assert trained.model.config.goal == shop.model.config.goal == "purchase"
    prepared = reopen(trained.model, shop.whole, TextEncoder("none", tmp_path))
    memory = OnlineStatistics(shop.model.config.horizons)
    teach(prepared, memory, prepared.data.in_log_order(np.ones(len(shop.whole), np.bool_)))
    ours, wanted = OnlineStatistics(shop.model.config.horizons), memory.state()
    ours.load(trained.model.memory)
    assert set(ours.state()) == set(wanted)
    for name, array in ours.state().items():
        assert np.allclose(np.sort(array, axis=0), np.sort(wanted[name], axis=0)), name


def test_the_model_goes_on_and_the_engine_serves_it(shop: Shop, tmp_path: Path) -> None:
    trained = onward(shop, shop.whole, [*shop.items, NEW], tmp_path, refit=True, goal="share")
    version = model_store.save(trained.model, tmp_path / "after")
    assert version != shop.model.version
    assert trained.model.config.trained_until == shop.whole["time"].max()
    moved = trained.model.encoder.project.weight - shop.model.encoder.project.weight
    assert 0 < moved.norm() < 0.5 * shop.model.encoder.project.weight.norm()
    assert len(trained.measured.epochs) == len(trained.measured.refit_losses) == 1
    engine = Engine.load(tmp_path / "after", tmp_path, Limits(stride=STRIDE), "cpu")
    event = Event("u", "share", 1.0, NEW.item_id)
    asked = append(None, event, offset=0, arrived=event.timestamp, capacity=CAPACITY, stride=STRIDE)
    answer = engine.step([asked]).recommendations[0]
    assert "share" in answer.next_event
    assert all(0 < ranked.interest < 1 for ranked in answer.items)  # of the new goal
    origin = Origin("a log", 600, 40, f"model `{shop.model.version}`")
    text = card(trained.model, trained.measured, trained.tune, "prequential", origin)
    assert f"model `{shop.model.version}` trained further" in text


def test_a_log_without_news_is_refused(shop: Shop, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="newer than the model"):
        onward(shop, shop.past, shop.items, tmp_path)


def test_an_item_that_the_model_cannot_take_is_named(shop: Shop, tmp_path: Path) -> None:
    odd = msgspec.structs.replace(NEW, vector=[1.0, 2.0, 3.0])
    with pytest.raises(UserError, match="'a new thing': invalid field"):
        onward(shop, shop.whole, [*shop.items, odd], tmp_path)
