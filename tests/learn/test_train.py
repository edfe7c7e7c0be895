from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_rec.errors import UserError
from stream_rec.learn import dataset, train
from stream_rec.learn.recipe import TrainConfig
from stream_rec.learn.simulate import Storefront
from stream_rec.messages import Event, Item, Window
from stream_rec.model import folder
from stream_rec.model.encoder import EncoderConfig
from stream_rec.model.engine import Engine, Limits
from stream_rec.model.reader import Events, Read
from stream_rec.model.text import TextEncoder
from stream_rec.model.tokens import Tokens
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


def weights(trained: train.Trained) -> dict[str, torch.Tensor]:
    return dict(trained.model.encoder.state_dict())


def one_token(events: Events) -> Read:
    return Read(Tokens(events.rows[None], events.rows), np.arange(1, len(events.rows) + 1))


def some_tokens(events: Events) -> Read:
    """One to three tokens an event."""
    counts = 1 + events.rows % 3
    repeated = np.repeat(events.rows, counts)
    return Read(Tokens(repeated[None], repeated), counts.cumsum())


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    capacity=st.integers(2, 20),
    share=st.floats(0, 1),
    read=st.sampled_from([one_token, some_tokens]),
    data=st.data(),
)
def test_every_event_is_the_target_of_the_window_that_serving_would_have(lengths, capacity, share, read, data) -> None:
    stride = data.draw(st.integers(1, capacity))
    users = data.draw(st.permutations([f"u{user}" for user, count in enumerate(lengths) for _ in range(count)]))
    frame = pl.DataFrame({"user": users, "item": [f"i{n}" for n in range(len(users))]}).with_columns(
        event=pl.lit("view"), time=pl.int_range(pl.len()).cast(pl.Float64)
    )
    numbers = {item: row for row, item in enumerate(frame["item"].to_list(), 1)}
    made = dataset.dataset(frame, numbers, {"view": 1})
    cut = int(share * len(users))
    found = dataset.slices(made, capacity, stride, 0, len(users))
    batch = dataset.batch(made, found, read) if found else None
    seen: dict[int, list[int]] = {}
    for line, column in zip(*np.nonzero(batch.targets >= 0), strict=True) if batch else ():
        target = int(made.rows[batch.targets[line, column]])
        assert target not in seen
        seen[target] = batch.numbers[0, line, : column + 1].tolist()
    held: dict[str, Window] = {}
    for offset, (user, item) in enumerate(zip(users, frame["item"], strict=True)):
        if user in held:
            rows = np.array([numbers[event.item_id] for event in held[user].events])
            served = read(Events(rows, rows, rows, np.zeros(1, np.int64))).tokens
            assert seen.pop(numbers[item]) == served.numbers[0].tolist()
        event = Event(user, "view", float(offset), item)
        held[user] = append(held.get(user), event, offset=offset, arrived=0.0, capacity=capacity, stride=stride)
    assert not seen
    low, high = (dataset.slices(made, capacity, stride, *part) for part in ((0, cut), (cut, len(users))))
    targets = [set(_targets(made, part)) for part in (low, high)]
    assert not targets[0] & targets[1]
    assert all(made.order[place] < cut for place in targets[0])
    assert all(made.order[place] >= cut for place in targets[1])


def _targets(made: dataset.Dataset, found: list[dataset.Slice]) -> list[int]:
    if not found:
        return []
    targets = dataset.batch(made, found, one_token).targets
    return targets[targets >= 0].tolist()


def test_the_blend_beats_each_of_its_parts(tmp_path: Path) -> None:
    front = Storefront(seed=2, products=312, shoppers=300)
    texts = TextEncoder("sentence-transformers/all-MiniLM-L6-v2", tmp_path)
    encoder = EncoderConfig(width=64, layers=1, heads=2, kv_heads=2, inner=128)
    config = TrainConfig(encoder=encoder, capacity=32, stride=16, epochs=8, batch_tokens=300, refit=False)
    frame = frame_of(list(islice(front.events(), 12_000)))
    measured = train.train(frame, front.items, config, texts, tmp_path, lambda *_: None).measured
    for part in (measured.decoder, measured.transitions):
        assert measured.blend.ndcg_at_10 > part.ndcg_at_10
        assert measured.blend.hit_rate_at_10 > part.hit_rate_at_10


def test_the_seed_decides_the_model(shop, tmp_path: Path) -> None:
    first, again = (run(shop, SMALL, tmp_path / name) for name in ("a", "b"))
    assert all(torch.equal(value, weights(again)[name]) for name, value in weights(first).items())
    assert first.measured == again.measured
    other = run(shop, msgspec.structs.replace(SMALL, seed=1), tmp_path / "c")
    assert not torch.equal(weights(other)["project.weight"], weights(first)["project.weight"])


def test_an_interrupted_training_goes_on_to_the_very_same_model(shop, tmp_path: Path) -> None:
    whole = run(shop, SMALL, tmp_path / "whole")

    def interrupt(what: str, done: float, total: float) -> None:
        if what.startswith("training, epoch 3"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(shop, SMALL, tmp_path / "cut", interrupt)
    epochs = []
    resumed = run(shop, SMALL, tmp_path / "cut", lambda what, *_: epochs.append(what))
    assert not [what for what in epochs if what.startswith(("training, epoch 1", "training, epoch 2"))]
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(whole).items())


def test_a_checkpoint_of_something_else_is_refused(shop, tmp_path: Path) -> None:
    run(shop, SMALL, tmp_path)
    with pytest.raises(UserError, match="unfinished training"):
        run(shop, msgspec.structs.replace(SMALL, learning_rate=1e-3), tmp_path)


def test_the_engine_serves_the_trained_model(shop, tmp_path: Path) -> None:
    trained = run(shop, SMALL, tmp_path)
    version = folder.save(trained.model, tmp_path / "model")
    engine = Engine.load(tmp_path / "model", tmp_path, Limits(stride=8), "cpu")
    frame = shop[0]
    user = frame["user"].mode()[0]
    window = None
    events = frame.filter(pl.col("user") == user).head(20).rows(named=True)
    for offset, row in enumerate(events):
        event = Event(user, row["event"], row["time"], row["item"])
        window = append(window, event, offset=offset, arrived=0.0, capacity=16, stride=8)
        answer = engine.step([window]).recommendations[0]
        assert (engine.states([window]) - engine.full([window])).abs().max() <= 1e-4
    assert answer.model == version
    assert set(answer.next_event) == {"cart", "purchase", "view"}
    assert len(answer.items) == 20


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
