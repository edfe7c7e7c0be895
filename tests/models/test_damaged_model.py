"""A model folder that is no longer whole, or was made to harm: read, or refused in a line."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from stream_rec.errors import ModelError
from stream_rec.models import model_store
from stream_rec.models.model_store import Model
from stream_rec.serving.engine import Engine, Limits
from tests.damage import damaged, said
from tests.tiny import STRIDE

NAMES = [
    *("config.json", "items.jsonl", "lexicon.json", "encoder.safetensors", "features.safetensors"),
    *("items.safetensors", "memory.safetensors", "lexicon.safetensors", "likeness.safetensors"),
]


@pytest.fixture(scope="module")
def whole(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("whole")
    model_store.save(model, made)
    return made


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_what_is_left_of_a_model_is_read_or_refused_in_a_line(
    name: str, data: st.DataObject, whole: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(whole, broken, dirs_exist_ok=True)
    (broken / name).write_bytes(data.draw(damaged((whole / name).read_bytes())))
    assert "\n" not in said(model_store.load, broken)


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize("name", NAMES[1:])
def test_a_pipe_in_place_of_a_file_is_refused_and_nobody_waits_for_its_writer(copy: Path, name: str) -> None:
    (copy / name).unlink()
    os.mkfifo(copy / name)
    assert f"{name} is no file" in said(model_store.load, copy)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("capacity", -1),
        ("capacity", 10**9),
        ("horizons.lasting", 0),
        ("horizons.recent", -1.0),
        ("blend.text", 1e308),
        ("blend.covered", 2),
        ("encoder.dropout", 9),
        ("body.num_hidden_layers", 10**9),
        ("body.num_hidden_layers", 1),
        ("body.num_key_value_heads", 10**9),
        ("body.intermediate_size", 10**9),
        ("body.hidden_size", 10**6),
        ("body.max_position_embeddings", 10**12),
        ("body.head_dim", 0),
        ("body.num_attention_heads", 0),
        ("body.model_type", "gpt2"),
        ("event_types", []),
        ("event_types", ["view", "view"]),
        ("goal", "share"),
        ("trained_until", -1.0),
        ("trained_until", 1e308),
        ("trained_until", 4_070_908_800.0),
        ("reference", {"items": [1], "event_types": {"view": 1}, "score_edges": [], "scores": [1]}),
    ],
)
def test_a_configuration_that_no_model_has_is_refused_before_anything_is_made_of_it(
    copy: Path, field: str, value: object
) -> None:
    config = msgspec.json.decode((copy / "config.json").read_bytes(), type=dict[str, Any])
    *path, last = field.split(".")
    part = config
    for name in path:
        part = part[name]
    part[last] = value
    (copy / "config.json").write_bytes(msgspec.json.encode(config))
    refusal = said(model_store.load, copy)
    assert "train" in refusal
    assert "\n" not in refusal


def changed(array: np.ndarray, value: float) -> np.ndarray:
    other = array.copy()
    other.reshape(-1)[0] = value
    return other


@pytest.mark.parametrize(
    ("name", "key", "change", "reason"),
    [
        ("likeness", "text.rows", lambda a: changed(a, 10**9), "names a row"),
        ("likeness", "words.rows", lambda a: changed(a, -1), "names a row"),
        ("likeness", "text.rows", lambda a: a[:5], "5 rows"),
        ("likeness", "words.cosines", lambda a: changed(a, np.nan), "not finite"),
        ("likeness", "text.cosines", lambda a: changed(a, 1e30), "beyond 1"),
        ("memory", "transitions.after.pairs", lambda _: np.array([[1, 10**9]]), "names a row"),
        ("memory", "transitions.before.weights", lambda _: np.array([1.0]), "differ in length"),
        ("memory", "popularity.highest", lambda _: np.array([-5]), "names a row"),
        ("memory", "recency.sums", lambda _: np.full(10_000, 1.0), "does not have"),
        ("memory", "popularity.sums", lambda _: np.array([0.0, -1.0]), "below 0"),
        ("features", "whiten", lambda a: changed(a, np.inf), "not finite"),
        ("features", "bump_scale", lambda a: changed(a, 0), "no width"),
        ("items", "vectors", lambda a: changed(a, np.nan), "not finite"),
        ("lexicon", "weights", lambda a: a[:-1], "weights is"),
        ("encoder", "out.weight", lambda a: changed(a, np.nan), "not finite"),
    ],
)
def test_arrays_that_would_be_read_past_their_end_or_spread_nonsense_are_refused(
    copy: Path, name: str, key: str, change: Callable[[np.ndarray], np.ndarray], reason: str
) -> None:
    path = copy / f"{name}.safetensors"
    arrays = load_file(path)
    save_file(arrays | {key: change(arrays[key])}, path)
    assert reason in said(model_store.load, copy)


def test_a_save_that_fails_leaves_the_model_before_it(
    model: Model, whole: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Iterator[bytes]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model_store, "save_arrays", full)
    with pytest.raises(OSError, match="No space"):
        model_store.save(model, copy)
    assert model_store.load(copy).version == model_store.version_of(whole)
    assert sorted(path.name for path in copy.iterdir()) == sorted(path.name for path in whole.iterdir())


def test_a_model_answers_probe_windows_and_learns_nothing_from_them(engine_of: Callable[..., Engine]) -> None:
    engine = engine_of()
    before = engine.memories.extractor(0).memory.state()
    engine.probe()
    after = engine.memories.extractor(0).memory.state()
    counted = [name for name in before if not name.endswith("landmark")]  # that is only what weights are relative to
    assert all(np.array_equal(before[name], after[name]) for name in counted)
    assert len(engine.incremental.cache) == 0


@pytest.mark.parametrize("weight", ["out.weight", "next_type.weight", "theta.bias", "body.norm.weight"])
def test_a_model_whose_answers_are_no_numbers_fails_its_probe(
    model: Model, engine_of: Callable[..., Engine], weight: str
) -> None:
    engine = engine_of()
    tensor = model.encoder.state_dict()[weight]
    kept = tensor.clone()
    try:
        tensor.fill_(torch.nan)
        with pytest.raises(ModelError, match="probe windows"):
            engine.probe()
    finally:
        tensor.copy_(kept)


@pytest.mark.parametrize("weight", ["residual.weight", "log_scale"])
def test_a_model_whose_numbers_overflow_gives_no_answers_and_fails_its_probe(
    copy: Path, tmp_path: Path, weight: str
) -> None:
    """Its weights are finite, its item vectors or scores are not."""
    weights = load_file(copy / "encoder.safetensors")
    weights[weight] = np.full_like(weights[weight], 1e30)
    save_file(weights, copy / "encoder.safetensors")
    engine = Engine.load(copy, tmp_path, Limits(stride=STRIDE, kv_cache_bytes=1e7), "cpu")
    with pytest.raises(ModelError, match="gives no item a score"):
        engine.probe()


def test_arrays_of_another_precision_are_refused(copy: Path) -> None:
    vectors = load_file(copy / "items.safetensors")["vectors"]
    save_file({"vectors": vectors.astype(np.float64)}, copy / "items.safetensors")
    assert "vectors is float64" in said(model_store.load, copy)
