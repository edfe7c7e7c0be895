from itertools import islice
from pathlib import Path

import msgspec
import polars as pl
import pytest
import torch
from safetensors import safe_open

from stream_rec.data.simulator.storefront import Storefront
from stream_rec.features.event_template import EventTemplate
from stream_rec.features.text_encoder import TextEncoder
from stream_rec.messages import Event, Item
from stream_rec.models import model_store
from stream_rec.models.pretrained import PretrainedBackbone, load_backbone
from stream_rec.models.user_encoder import EncoderConfig, WordInputs
from stream_rec.serving.engine import Engine, Limits
from stream_rec.training import train
from stream_rec.training.config import TrainConfig, Tune
from stream_rec.training.model_card import Origin, card
from stream_rec.training.train import Trained
from stream_rec.window import append
from tests.language import tiny_language_model

CAPACITY, STRIDE = 8, 4
Shop = tuple[pl.DataFrame, list[Item]]


@pytest.fixture(scope="module")
def shop() -> Shop:
    front = Storefront(seed=1, products=312, shoppers=40)
    items = [msgspec.structs.replace(item, vector=[float(len(item.title)), item.price or 0.0]) for item in front.items]
    rows = [(e.user_id, e.item_id, e.event_type, e.timestamp) for e in islice(front.events(), 300)]
    return pl.DataFrame(rows, schema=("user", "item", "event", "time"), orient="row"), items


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_language_model(tmp_path_factory.mktemp("language"))


@pytest.fixture(scope="module")
def base(language: Path) -> PretrainedBackbone:
    return load_backbone(str(language), None, 64)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few validation predictions: what the blend's weights are worth is another test's."""
    monkeypatch.setattr(train, "VALIDATION_PREDICTIONS", 20)


def config(language: Path, tune: Tune, words: EventTemplate | None = None) -> TrainConfig:
    encoder = EncoderConfig(base=str(language), dropout=0.1, residual_dropout=0, words=words)
    return TrainConfig(encoder, tune, CAPACITY, STRIDE, epochs=2, refit=False)


def run(shop: Shop, chosen: TrainConfig, out: Path, progress=lambda *_: None) -> Trained:
    return train.train(*shop, chosen, TextEncoder("none", out), out, progress)


def changed(trained: Trained, base: PretrainedBackbone) -> set[str]:
    """Names of the body's weights that training changed."""
    after, before = trained.model.encoder.body.state_dict(), base.body.state_dict()
    assert set(after) == set(before)
    return {name for name, weight in before.items() if not torch.equal(weight, after[name])}


@pytest.mark.parametrize(
    ("tune", "words"),
    [("lora", None), ("lora", EventTemplate(limit=8)), ("frozen", EventTemplate(limit=8)), ("full", None)],
    ids=["lora-items", "lora-words", "frozen-words", "full-items"],
)
def test_only_what_is_to_be_trained_changes_and_the_engine_serves_it(
    shop: Shop, language: Path, base: PretrainedBackbone, tmp_path: Path, tune: Tune, words: EventTemplate | None
) -> None:
    trained = run(shop, config(language, tune, words), tmp_path)
    matrices = {name for name in base.body.state_dict() if "proj" in name}
    norms = {name for name in base.body.state_dict() if "norm" in name}
    assert changed(trained, base) == {"frozen": set(), "lora": matrices, "full": matrices | norms}[tune]
    inputs = trained.model.encoder.inputs
    assert isinstance(inputs, WordInputs) == (words is not None)
    if isinstance(inputs, WordInputs):
        assert torch.equal(inputs.table, base.table)
    model_store.save(trained.model, tmp_path / "model")
    engine = Engine.load(tmp_path / "model", tmp_path, Limits(stride=STRIDE), "cpu")
    window = None
    for offset, (user, item, event, time) in enumerate(shop[0].head(12).rows()):
        window = append(
            window, Event("u", event, time, item), offset=offset, arrived=time, capacity=CAPACITY, stride=STRIDE
        )
        assert (engine.states([window]) - engine.full([window])).abs().max() <= 1e-4, user


def test_an_interrupted_training_of_adapters_goes_on_to_the_very_same_model(
    shop: Shop, language: Path, tmp_path: Path
) -> None:
    chosen = config(language, "lora", EventTemplate(limit=8))
    whole = run(shop, chosen, tmp_path / "whole")

    def interrupt(what: str, done: float, total: float) -> None:
        if what.startswith("training, epoch 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(shop, chosen, tmp_path / "cut", interrupt)
    with safe_open(tmp_path / "cut" / "checkpoint-fit.safetensors", "pt") as kept:
        names = set(kept.keys())
    assert any("lora_A" in name for name in names)
    assert not any("base_layer" in name or "table" in name for name in names)  # what isn't trained isn't kept
    resumed = run(shop, chosen, tmp_path / "cut")
    again = resumed.model.encoder.state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in whole.model.encoder.state_dict().items())


def test_the_card_says_what_was_trained_and_read(shop: Shop, language: Path, tmp_path: Path) -> None:
    trained = run(shop, config(language, "frozen", EventTemplate("{event} {title}", limit=8)), tmp_path)
    text = card(trained.model, trained.measured, trained.tune, "prequential", Origin("a log", 300, 40))
    assert "| trained | nothing of the body; the item side" in text
    assert "at most 8 tokens: `{event} {title}`" in text
