"""Training with differential privacy: a user's gradient is its own, is clipped and drowned in noise, and is counted."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from stream_rec.data import dataset
from stream_rec.data.dataset import Slice
from stream_rec.data.simulator.storefront import Storefront
from stream_rec.features.event_template import EventTemplate
from stream_rec.features.text_encoder import TextEncoder
from stream_rec.messages import Item
from stream_rec.models import model_store
from stream_rec.models.model_store import Privacy
from stream_rec.models.user_encoder import EncoderConfig
from stream_rec.serving.engine import Engine, Limits
from stream_rec.training import train, trainer
from stream_rec.training.checkpoint import trained
from stream_rec.training.config import Private, TrainConfig, tuning
from stream_rec.training.dp_sgd import (
    STEPS,
    Told,
    UserLoss,
    adapted,
    drawn_windows,
    gradients_of,
    in_parts,
    planned,
    private_optimiser,
    step,
    users_of,
)
from stream_rec.training.model_card import Origin, card
from stream_rec.training.prepare import Prepared, prepare
from tests.language import tiny_language_model
from tests.tiny import window

CONFIG = adapted(
    TrainConfig(
        EncoderConfig(width=32, layers=1, heads=2, kv_heads=1, inner=64),
        capacity=8,
        stride=4,
        epochs=2,
        private=Private(epsilon=1.0),
    )
)
Shop = tuple[pl.DataFrame, list[Item]]


@pytest.fixture(scope="module")
def shop() -> Shop:
    front = Storefront(seed=1, products=312, shoppers=40)
    draw = np.random.default_rng(0)
    items = [msgspec.structs.replace(item, vector=draw.normal(size=8).tolist()) for item in front.items]
    rows = [(e.user_id, e.item_id, e.event_type, e.timestamp) for e in islice(front.events(), 400)]
    return pl.DataFrame(rows, schema=("user", "item", "event", "time"), orient="row"), items


def prepared_of(shop: Shop, config: TrainConfig, cache: Path) -> Prepared:
    return prepare(*shop, config, TextEncoder("none", cache), lambda *_: None)


@pytest.fixture(scope="module")
def prepared(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared_of(shop, CONFIG, tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def mapped() -> Iterator[None]:
    with sdpa_kernel(SDPBackend.MATH):
        yield


class Step:
    """A model and windows of all users of a log, ready for a step."""

    def __init__(self, prepared: Prepared, config: TrainConfig = CONFIG) -> None:
        torch.manual_seed(0)
        encoder = trainer.new_encoder(prepared, config).eval()
        encoder.residual.requires_grad_(False)
        self.prepared, self.encoder = prepared, encoder
        self.loss = UserLoss(encoder, prepared.vectors)
        users = users_of(prepared.data, np.ones(len(prepared.data.rows), np.bool_))
        everybody = list(range(len(users.begins)))
        self.windows = drawn_windows(users, everybody, config.capacity, torch.Generator().manual_seed(0))
        self.negatives = torch.arange(1, 40)

    def told(self, windows: list[Slice]) -> Told:
        return Told.of(self.prepared, windows, torch.ones(len(self.prepared.event_types) + 1))

    def alone(self, one: Slice) -> dict[str, torch.Tensor]:
        """The gradient of one user by plain backward, 0 for what it doesn't use."""
        self.loss.zero_grad()
        self.loss(Told(*(part[0] for part in self.told([one]))), self.negatives).backward()
        found = {name: weight.grad for name, weight in trained(self.loss).items()}
        return {name: torch.zeros(()) if value is None else value.clone() for name, value in found.items()}

    def take(self, *, noise: float, clip: float, parts: list[list[Slice]] | None = None) -> dict[str, torch.Tensor]:
        """A step of gradient descent at the rate 1: by how much each weight went down."""
        before = {name: weight.detach().clone() for name, weight in trained(self.loss).items()}
        plan = Privacy(0.0, 0.0, clip, noise, 1.0, 1, len(self.windows))
        inner = torch.optim.SGD(trained(self.loss).values(), lr=1.0)
        optimiser = private_optimiser(inner, plan, torch.Generator().manual_seed(0))
        told = [self.told(part) for part in ([self.windows] if parts is None else parts)]
        step(optimiser, self.loss, told, self.negatives)
        return {name: before[name] - weight.detach() for name, weight in trained(self.loss).items()}


def norm(gradient: dict[str, torch.Tensor]) -> float:
    return float(torch.cat([value.flatten() for value in gradient.values()]).norm())


@pytest.mark.parametrize("read", ["items", "words"])
def test_a_users_gradient_is_what_it_were_without_the_others(
    shop: Shop, prepared: Prepared, read: str, tmp_path: Path
) -> None:
    if read == "words":
        encoder = EncoderConfig(
            base=str(tiny_language_model(tmp_path)), words=EventTemplate("{event} {title}", limit=6)
        )
        config = adapted(msgspec.structs.replace(CONFIG, encoder=encoder, tune="lora"))
        prepared = prepared_of(shop, config, tmp_path)
        given = Step(prepared, config)
    else:
        given = Step(prepared)
    with tuning(given.encoder.body, "lora" if read == "words" else "full"):
        some = sorted(given.windows, key=lambda one: one.length)[::6]
        together, losses = gradients_of(given.loss, given.told(some), given.negatives)
        assert len({one.length for one in some}) > 1  # some are padded
        for at, one in enumerate(some):
            for name, value in given.alone(one).items():
                assert torch.allclose(together[name][at], value, atol=1e-5), name
        assert losses.isfinite().all()
        assert any("lora_A" in name for name in together) == (read == "words")


def test_without_clip_and_noise_it_is_an_ordinary_step(prepared: Prepared) -> None:
    given = Step(prepared)
    alone = [given.alone(one) for one in given.windows]
    went = given.take(noise=0.0, clip=1e9)
    for name, value in went.items():
        assert torch.allclose(value, torch.stack([one[name] for one in alone]).mean(0), atol=1e-5), name
    again = Step(prepared)
    parts = in_parts(again.windows, dataset.sizes(prepared.data, again.windows, prepared.reader), 30)
    assert len(parts) > 2
    for name, value in again.take(noise=0.0, clip=1e9, parts=parts).items():
        assert torch.allclose(value, went[name], atol=1e-5), name


def test_a_user_moves_the_weights_by_no_more_than_the_clip(prepared: Prepared) -> None:
    given = Step(prepared)
    assert all(norm(given.alone(one)) > 0.01 for one in given.windows)
    some = len(given.windows) * norm(given.take(noise=0.0, clip=0.01, parts=[given.windows[:1]]))
    assert some == pytest.approx(0.01, rel=1e-3)


def test_the_noise_is_as_large_as_planned_even_in_a_step_without_users(prepared: Prepared) -> None:
    given = Step(prepared)
    went = torch.cat([value.flatten() for value in given.take(noise=3.0, clip=0.5, parts=[]).values()])
    assert float(went.std()) * len(given.windows) == pytest.approx(1.5, rel=0.05)


def test_more_epochs_and_a_smaller_epsilon_take_more_noise() -> None:
    plan = planned(Private(1.0), 1_000, 2)
    assert (plan.steps, plan.delta, plan.rate) == (2 * STEPS, 1e-4, 1 / STEPS)
    assert planned(Private(1.0), 1_000, 20).noise > plan.noise
    assert planned(Private(0.1), 1_000, 2).noise > 5 * plan.noise


def test_a_private_model_says_what_it_spent_and_holds_no_counts_of_users(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "VALIDATION_PREDICTIONS", 20)
    frame, items = shop
    only_named = pl.DataFrame([("u", "nowhere", "view", 1e9)] * 3, schema=frame.schema, orient="row")
    given = (pl.concat([frame, only_named]), items, CONFIG, TextEncoder("none", tmp_path), tmp_path)

    def interrupt(what: str, done: float, total: float) -> None:
        if "epoch 2" in what:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.train(*given, interrupt)
    made = train.train(*given, lambda *_: None)  # goes on from the first epoch, and counts that too
    config = made.model.config
    assert config.privacy is not None
    assert 0.9 < config.privacy.epsilon <= 1.0
    assert config.privacy.steps == 2 * STEPS
    assert "nowhere" not in [item.item_id for item in made.model.items]
    assert (config.goal, config.reference) == (None, None)
    assert not any(array.any() for name, array in made.model.memory.items() if "landmark" not in name)
    assert not made.model.encoder.residual.weight.any()
    version = model_store.save(made.model, tmp_path / "m")
    assert model_store.load(tmp_path / "m").config.privacy == config.privacy
    told = card(made.model, made.measured, "full", "prequential", Origin("a log", 400, 40))
    assert f"epsilon {config.privacy.epsilon:.2f}, delta {config.privacy.delta:.1e}, for a user" in told
    assert "**Not covered**: in `config.json` the blend's weights" in told
    engine = Engine.load(tmp_path / "m", tmp_path, Limits(stride=4), "cpu")
    old = window("u", 3, [item.item_id for item in items[:3]])
    assert old.events[-1].timestamp < config.trained_until
    assert engine.step([old]).recommendations[0].model == version
    assert engine.memories.extractor(0).memory.popularity.sums.any()  # what a log is read again teaches it
