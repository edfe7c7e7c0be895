from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest
import torch

from stream_rec.data.simulator.storefront import Storefront
from stream_rec.errors import UserError
from stream_rec.features.text_encoder import TextEncoder
from stream_rec.features.tokens import UNKNOWN
from stream_rec.messages import Event, Item
from stream_rec.models import model_store
from stream_rec.models.user_encoder import EncoderConfig
from stream_rec.serving.engine import Engine, Limits
from stream_rec.training import train
from stream_rec.training.config import TrainConfig
from stream_rec.training.model_card import Origin, card
from stream_rec.window import append

SMALL = TrainConfig(
    encoder=EncoderConfig(width=32, layers=1, heads=2, kv_heads=1, inner=64),
    capacity=16,
    stride=8,
    epochs=3,
    batch_tokens=500,
    refit=False,
)


def frame_of(events: Sequence[Event]) -> pl.DataFrame:
    columns = {"user": "user_id", "item": "item_id", "event": "event_type", "time": "timestamp"}
    return pl.DataFrame({name: [getattr(event, field) for event in events] for name, field in columns.items()})


@pytest.fixture(scope="module")
def shop() -> tuple[pl.DataFrame, list[Item]]:
    """A small storefront whose items bring vectors of their own: these tests are about training, not texts."""
    front = Storefront(seed=1, products=312, shoppers=150)
    draw = np.random.default_rng(0)
    vectors = {category: draw.normal(size=24) for category in {item.category for item in front.items}}
    items = [
        msgspec.structs.replace(item, vector=(vectors[item.category] + 0.5 * draw.normal(size=24)).tolist())
        for item in front.items
    ]
    return frame_of(list(islice(front.events(), 6_000))), items


def run(
    shop: tuple[pl.DataFrame, list[Item]], config: TrainConfig, out: Path, progress=lambda *_: None
) -> train.Trained:
    return train.train(*shop, config, TextEncoder("none", out), out, progress)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few validation predictions: what the blend's weights are worth is another test's."""
    monkeypatch.setattr(train, "VALIDATION_PREDICTIONS", 60)


@pytest.fixture(scope="module")
def whole(shop, tmp_path_factory: pytest.TempPathFactory) -> train.Trained:
    """A training of `SMALL` that nothing interrupted, `quick`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "VALIDATION_PREDICTIONS", 60)
        return run(shop, SMALL, tmp_path_factory.mktemp("whole"))


def weights(trained: train.Trained) -> dict[str, torch.Tensor]:
    return dict(trained.model.encoder.state_dict())


@pytest.mark.usefixtures("quick")
def test_the_seed_decides_the_model(shop, whole, tmp_path: Path) -> None:
    again = run(shop, SMALL, tmp_path / "again")
    assert all(torch.equal(value, weights(again)[name]) for name, value in weights(whole).items())
    assert whole.measured == again.measured
    other = run(shop, msgspec.structs.replace(SMALL, seed=1), tmp_path / "other")
    assert not torch.equal(weights(other)["project.weight"], weights(whole)["project.weight"])


@pytest.mark.usefixtures("quick")
def test_the_unknown_item_is_no_candidate_in_validation(shop, tmp_path: Path, monkeypatch) -> None:
    """It is among the nearest items of a catalogue of fewer than are asked for, and is never recommended."""
    frame, items = shop
    few = items[:20]
    own = frame.filter(pl.col("item").is_in([item.item_id for item in few]))
    tables, fit = [], train.blend_fit.fit
    monkeypatch.setattr(train.blend_fit, "fit", lambda table, *given: tables.append(table) or fit(table, *given))
    trained = run((own, few), msgspec.structs.replace(SMALL, epochs=1), tmp_path)
    assert tables
    assert all((table.rows != UNKNOWN).all() for table in tables)
    assert all(table.columns.abs().max() < 100 for table in tables)
    assert all(len(table.answers.unique()) == table.answers.max() + 1 > 10 for table in tables)
    assert trained.measured.calibration_error < 0.2


@pytest.mark.usefixtures("quick")
def test_an_interrupted_training_goes_on_to_the_very_same_model(shop, whole, tmp_path: Path) -> None:
    def interrupt(what: str, done: float, total: float) -> None:
        if what.startswith("training, epoch 3"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(shop, SMALL, tmp_path / "cut", interrupt)
    epochs = []
    resumed = run(shop, SMALL, tmp_path / "cut", lambda what, *_: epochs.append(what))
    assert not [what for what in epochs if what.startswith(("training, epoch 1", "training, epoch 2"))]
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(whole).items())


@pytest.mark.usefixtures("quick")
def test_a_checkpoint_of_something_else_is_refused(shop, tmp_path: Path) -> None:
    run(shop, msgspec.structs.replace(SMALL, epochs=1), tmp_path)
    with pytest.raises(UserError, match="unfinished training"):
        run(shop, msgspec.structs.replace(SMALL, learning_rate=1e-3), tmp_path)


def test_the_engine_serves_the_trained_model(shop, whole, tmp_path: Path) -> None:
    version = model_store.save(whole.model, tmp_path / "model")
    engine = Engine.load(tmp_path / "model", tmp_path, Limits(stride=8), "cpu")
    frame = shop[0]
    user = frame["user"].mode()[0]
    window = None
    events = frame.filter(pl.col("user") == user).head(20).rows(named=True)
    for offset, row in enumerate(events):
        event = Event(user, row["event"], row["time"], row["item"])
        window = append(window, event, offset=offset, arrived=event.timestamp, capacity=16, stride=8)
        answer = engine.step([window]).recommendations[0]
        assert (engine.states([window]) - engine.full([window])).abs().max() <= 1e-4
    assert answer.model == version
    assert set(answer.next_event) == {"cart", "purchase", "view"}
    assert len(answer.items) == 20
    assert all(0 < ranked.interest < 1 for ranked in answer.items)


@pytest.mark.usefixtures("quick")
def test_the_goal_is_the_purchase_or_what_is_said_and_a_log_of_views_has_none(shop, tmp_path: Path) -> None:
    frame, items = shop
    config = msgspec.structs.replace(SMALL, epochs=1)
    bought = run(shop, config, tmp_path / "a")
    assert bought.model.config.goal == bought.measured.interest.goal == "purchase"
    shown = card(bought.model, bought.measured, "full", "prequential", Origin("a log", 1, 1))
    assert "a contact with an item is a purchase" in shown
    views = frame.filter(pl.col("event") == "view"), items
    viewed = run(views, config, tmp_path / "b")
    assert viewed.model.config.goal is viewed.measured.interest is viewed.model.encoder.theta is None
    assert "tells no interest" in card(viewed.model, viewed.measured, "full", "prequential", Origin("a log", 1, 1))
    with pytest.raises(UserError, match="--goal share: the log's event types are cart, purchase, view"):
        run(shop, msgspec.structs.replace(config, goal="share"), tmp_path / "c")


@pytest.mark.usefixtures("quick")
def test_an_event_type_counts_as_much_as_is_said(shop, tmp_path: Path) -> None:
    shop = shop[0].head(1_500), shop[1]
    config = msgspec.structs.replace(SMALL, epochs=1)
    plain, same, other = (
        run(shop, msgspec.structs.replace(config, weights=counts), tmp_path / str(number))
        for number, counts in enumerate(({}, dict.fromkeys(("view", "cart", "purchase"), 1.0), {"view": 0.0}))
    )
    assert all(torch.equal(value, weights(same)[name]) for name, value in weights(plain).items())
    assert not torch.equal(weights(plain)["residual.weight"], weights(other)["residual.weight"])
    with pytest.raises(UserError, match="--weights share"):
        run(shop, msgspec.structs.replace(config, weights={"share": 2.0}), tmp_path / "d")


def test_the_default_text_encoder_knows_what_is_alike(tmp_path: Path) -> None:
    texts = ["running shoes for trails", "trail running sneaker", "cast iron frying pan"]
    encoder = TextEncoder("sentence-transformers/all-MiniLM-L6-v2", tmp_path)
    read = encoder.encode(texts)
    unit = read / np.linalg.norm(read, axis=1, keepdims=True)
    alike = unit @ unit.T
    assert read.shape == (3, 384)
    assert alike[0, 1] > 0.6 > 0.3 > alike[0, 2]
    cached = TextEncoder("sentence-transformers/all-MiniLM-L6-v2", tmp_path)
    again = cached.encode(texts[::-1])
    assert "_model" not in cached.__dict__  # nothing was loaded
    assert np.array_equal(again[::-1], read)


def test_an_encoder_that_cannot_be_had_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="cannot load the text encoder") as caught:
        TextEncoder(str(tmp_path / "empty"), tmp_path).encode(["a text"])
    assert "\n" not in str(caught.value)
