"""What the files of a model folder must hold, checked before anything is allocated or computed from them.

Compiled code reads rows without looking whether they exist, and a single number that is not finite spreads into every
answer. So shapes, row numbers and values are checked here, once, when a model is loaded. All checks raise `ValueError`.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from stream_rec.features.drift import PARTS, Reference
from stream_rec.features.item_features import ItemFeatures, Vectors
from stream_rec.features.item_similarity import NEAREST, NeighbourTable
from stream_rec.features.online_statistics import State
from stream_rec.features.tfidf import Tfidf
from stream_rec.messages import Item, Window, WindowEvent
from stream_rec.models.user_encoder import body_from

if TYPE_CHECKING:
    from stream_rec.models.model_store import Model, ModelConfig

MOST_PARTS = 4_096
"""Layers, heads or experts of a body."""
LARGEST_SIZE = 1 << 24
"""Any other whole number of a body's configuration."""
BUFFER_BYTES = 64 << 20
"""What a body may allocate beside its weights."""
COSINE_SLACK = 1e-3
TRAINED_AHEAD_S = 366 * 86_400.0
"""How far from now a model may have been trained until: the online memory counts no event before that time."""

ROW_ARRAYS = ("pairs", "highest")
"""The arrays of an online memory that hold catalogue rows."""


def check_model(model: "Model") -> None:
    """Checks what a loaded model holds; the shapes of the encoder's weights were checked when they were loaded."""
    rows = len(model.items) + 1
    _check_features(model.features)
    _check_items(model.items, model.vectors, model.features.dim)
    _check_lexicon(model.alike.lexicon)
    _check_likeness("text", model.alike.text, rows)
    _check_likeness("words", model.alike.words, rows)
    _check_memory(model.memory, rows)
    _check_finite("encoder.safetensors", model.encoder.state_dict())
    if model.config.reference is not None:
        _check_reference(model.config.reference)
    if model.tokenizer is not None:
        _check_tokenizer(model.tokenizer, len(model.encoder.state_dict()["inputs.table"]))


def check_config(config: "ModelConfig", now: float) -> None:
    """Checks what types and times `config` names; `now` is in seconds since 1970."""
    types = config.event_types
    if len(set(types)) < len(types):
        raise ValueError("two event types have the same name")
    if config.goal is not None and config.goal not in types:
        raise ValueError(f"its goal {config.goal!r} is none of its event types")
    if config.has_time and config.trained_until > now + TRAINED_AHEAD_S:
        raise ValueError(
            f"it was trained until {config.trained_until:.0f}, more than a year from now: nothing would count"
        )


def check_body(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Checks that a body's transformers configuration describes `weights`, before a body of that size is built.

    The weights are in memory already, so what agrees with them is of a size that fits.
    """
    layers = {name.split(".")[2] for name in weights if name.startswith("body.layers.")}
    if config.get("num_hidden_layers") != len(layers):
        raise ValueError(f"the body has {config.get('num_hidden_layers')} layers, its weights are of {len(layers)}")
    for name, value in _whole_numbers(config):
        most = MOST_PARTS if name.startswith("num_") else LARGEST_SIZE
        if abs(value) > most:
            raise ValueError(f"the body's {name} is {value}, more than {most}")
    with torch.device("meta"):  # shapes alone
        body = body_from(dict(config))
    for name, tensor in body.state_dict().items():
        held = weights.get(f"body.{name}")
        if held is None or held.shape != tensor.shape:
            raise ValueError(f"the weights of body.{name} are not {tuple(tensor.shape)}")
    allocated = sum(buffer.numel() * buffer.element_size() for buffer in body.buffers())
    if allocated > BUFFER_BYTES:
        raise ValueError(f"the body would allocate {allocated} bytes beside its weights")


def probe_windows(items: Sequence[str], event_types: Sequence[str], capacity: int) -> list[Window]:
    """Windows that a model must be able to answer before it serves: of one event, of two, and of `capacity` events.

    Their users are nobody. `items` are ids of the catalogue, which may be none; one more item is unknown, and so is one
    event type.
    """
    ids, types = ["", *items], ["", *event_types]
    windows = []
    for number, length in enumerate(sorted({1, 2, capacity})):
        events = tuple(
            WindowEvent(ids[(number + at) % len(ids)], types[at % len(types)], 3_600.0 * at) for at in range(length)
        )
        windows.append(Window(f"\0probe {number}", length, 0, 0, events[-1].timestamp, events))
    return windows


def _whole_numbers(value: Any, name: str = "") -> list[tuple[str, int]]:
    """Every whole number in a configuration, with the name of the field that it stands in."""
    if isinstance(value, Mapping):
        return [found for key, inner in value.items() for found in _whole_numbers(inner, str(key))]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [found for inner in value for found in _whole_numbers(inner, name)]
    return [(name, value)] if isinstance(value, int) else []


def _check_features(features: ItemFeatures) -> None:
    text_dim, components, bumps = len(features.mean), features.whiten.shape[-1], len(features.centres)
    _check_array("mean", features.mean, (text_dim,), np.float32)
    _check_array("whiten", features.whiten, (text_dim, components), np.float32)
    _check_array("centres", features.centres, (bumps,), np.float32)
    _check_array("bump_mean", features.bump_mean, (bumps,), np.float32)
    _check_array("bump_scale", features.bump_scale.reshape(-1), (1,), np.float32)  # saved as (1,)
    if bumps and (bumps < 2 or features.centres[0] == features.centres[1] or features.bump_scale <= 0):
        raise ValueError("the price bumps have no width")


def _check_items(items: Sequence[Item], vectors: Vectors, dim: int) -> None:
    if vectors.shape != (len(items), dim):
        raise ValueError("item table and vectors differ")
    _check_array("vectors", vectors, (len(items), dim), np.float32)
    if len({item.item_id for item in items}) < len(items):
        raise ValueError("two items have the same id")


def _check_lexicon(lexicon: Tfidf) -> None:
    terms = len(lexicon.terms)
    _check_array("weights", lexicon.weights, (terms,), np.float32)
    _check_array("directions", lexicon.directions, (terms, lexicon.dim), np.float32)


def _check_likeness(kind: str, likeness: NeighbourTable, rows: int) -> None:
    count = len(likeness.rows)
    if count < rows:
        raise ValueError(f"the likeness of {kind} has {count} rows, the catalogue {rows}")
    _check_array(f"{kind}.rows", likeness.rows, (count, NEAREST), np.int32)
    _check_array(f"{kind}.cosines", likeness.cosines, (count, NEAREST), np.float32)
    _check_rows(f"{kind}.rows", likeness.rows, rows)
    if likeness.cosines.size and np.abs(likeness.cosines).max() > 1 + COSINE_SLACK:
        raise ValueError(f"{kind}.cosines has a number beyond 1")


def _check_memory(memory: State, rows: int) -> None:
    for name, array in memory.items():
        kind = name.rpartition(".")[2]
        if kind in ROW_ARRAYS:
            width = (2,) if kind == "pairs" else ()
            _check_array(name, array, (len(array), *width), np.integer)
            _check_rows(name, array, rows)
        elif kind == "landmark":
            _check_array(name, np.nan_to_num(array, nan=0.0), (1,), np.floating)  # NaN: nothing was counted yet
        else:
            _check_array(name, array, (len(array),), np.floating)
            if array.astype(np.float64).min(initial=0) < 0:
                raise ValueError(f"{name} has a number below 0")
        if kind == "sums" and array[rows:].any():
            raise ValueError(f"{name} counts items that the catalogue does not have")
        if kind == "weights" and len(array) != len(memory[f"{name.rpartition('.')[0]}.pairs"]):
            raise ValueError(f"{name} and its pairs differ in length")


def _check_reference(reference: Reference) -> None:
    shares = (*reference.items, *reference.event_types.values(), *reference.scores)
    if len(reference.items) != PARTS + 1 or len(reference.scores) != len(reference.score_edges) + 1:
        raise ValueError("the reference of drift has another number of bins")
    if min(shares) < 0 or max(shares) > 1 or any(first >= second for first, second in pairwise(reference.score_edges)):
        raise ValueError("the reference of drift holds no shares")


def _check_tokenizer(tokenizer: Tokenizer, words: int) -> None:
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest >= words:
        raise ValueError(f"the tokenizer has a token {largest}, the model {words} words")


def _check_array(name: str, array: NDArray[Any], shape: tuple[int, ...], kind: type) -> None:
    if array.shape != shape or not np.issubdtype(array.dtype, kind):
        raise ValueError(f"{name} is {array.dtype} {array.shape}, not {kind.__name__} {shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has a number that is not finite")


def _check_rows(name: str, array: NDArray[Any], rows: int) -> None:
    if array.size and (array.min() < 0 or array.max() >= rows):
        raise ValueError(f"{name} names a row that is not among the {rows} of the catalogue")


def _check_finite(name: str, weights: Mapping[str, Tensor]) -> None:
    bad: Collection[str] = [key for key, tensor in weights.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise ValueError(f"{name}: {min(bad)} has a number that is not finite")
