"""A pre-trained causal language model as a body: a hub name, a folder, or a GGUF file. Never its code, never a pickle.

What is taken of it: its first layers, its word table and its tokenizer. The output layer over words is not.
"""

import logging
from contextlib import redirect_stderr, suppress
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from stream_rec.errors import UserError
from stream_rec.models import attention
from stream_rec.models.user_encoder import NO_WORDS

LIMITED = ("sliding_attention", "chunked_attention")
"""Kinds of layers that see the last tokens alone."""
REFUSALS = (OSError, ValueError, ImportError, KeyError, RuntimeError)
"""What loading raises for a file that is no model, or one of a kind that transformers doesn't know."""

log = logging.getLogger(__name__)


class PretrainedBackbone(NamedTuple):
    """What is taken of a language model but its tokenizer."""

    body: Any
    """Its decoder, whose tokens come as vectors."""
    table: Tensor
    """The vectors of its words, (words, width)."""


def load_backbone(name: str, layers: int | None, tokens: int) -> PretrainedBackbone:
    """The model `name` cut to its first `layers` (None: all), to read windows of at most `tokens` tokens, in float32.

    Raises `UserError` when it can't be had. Whether it computes the same behind cached keys and values is found out by
    `serving.incremental.refuse_inexact`.
    """
    transformers_logging.disable_progress_bar()  # it would run through the command's own
    body = loaded(AutoModel, name, dtype=torch.float32, use_safetensors=True)
    if not hasattr(body, "layers") or getattr(body.config, "is_encoder_decoder", False):
        raise UserError(f"{name!r} is no causal decoder: its layers can't be counted")
    kept = layers or len(body.layers)
    if kept > len(body.layers):
        raise UserError(f"{name!r} has {len(body.layers)} layers, {kept} were asked for")
    with torch.no_grad():
        words = body.get_input_embeddings()
        table = words(torch.arange(words.num_embeddings))  # by its forward, which may scale
    del body.layers[kept:]
    _use_cached_attention(name, body)
    without_vocabulary(body, kept)
    refuse_short_sight(name, body.config, tokens)
    return PretrainedBackbone(body, table)


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of the model `name`. Raises `UserError` when it can't be had."""
    tokenizer = getattr(loaded(AutoTokenizer, name), "backend_tokenizer", None)
    if not isinstance(tokenizer, Tokenizer):
        raise UserError(f"{name!r} has no tokenizer of the tokenizers library: it can't read words; use --read items")
    return tokenizer


def without_vocabulary(body: Any, layers: int) -> None:
    """Leaves out the word table, a quarter of a small language model; words, if read, are looked up elsewhere."""
    body.config.num_hidden_layers = layers
    if hasattr(body.config, "quantization_config"):
        del body.config.quantization_config  # of the file that it came from: these weights are plain numbers
    if getattr(body.config, "layer_types", None):
        with suppress(AttributeError):  # some configurations derive it from the number of layers
            body.config.layer_types = body.config.layer_types[:layers]
    body.config.update(NO_WORDS)
    body.set_input_embeddings(nn.Embedding(1, body.config.hidden_size, _weight=torch.zeros(1, body.config.hidden_size)))


def refuse_short_sight(name: str, config: Any, tokens: int) -> None:
    """Raises `UserError` for a body that can't see `tokens` tokens back: cached or not, it is read with full sight."""
    kinds = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None)
    limited = kinds is None or any(kind in LIMITED for kind in kinds)
    if window and limited and window < tokens:
        raise UserError(
            f"{name!r} sees {window} tokens back, and the longest window has {tokens}: lower --capacity, or --layers"
        )
    longest = getattr(config, "max_position_embeddings", None)
    if longest and longest < tokens:
        raise UserError(
            f"{name!r} reads at most {longest} tokens, and the longest window has {tokens}: lower --capacity"
        )


def own_attention(name: str) -> UserError:
    """The refusal of a body whose attention doesn't go through transformers' interface, or is more than that."""
    return UserError(
        f"{name!r} has an attention of its own, which can't be computed behind cached keys and values: name a "
        "decoder whose attention goes through transformers' attention interface, such as Llama's or Qwen's"
    )


def _use_cached_attention(name: str, body: Any) -> None:
    try:
        body.set_attn_implementation(attention.NAME)
    except (TypeError, AttributeError, *REFUSALS) as error:
        log.info("%s, with the attention of the cache: %s", name, error)
        raise own_attention(name) from None


def loaded(kind: Any, name: str, **options: Any) -> Any:
    """What `kind` (of transformers' Auto classes) makes of the model `name`. Raises `UserError`."""
    path = Path(name).expanduser()
    safe = {**options, "trust_remote_code": False}  # None would ask at the terminal
    try:
        if path.suffix == ".gguf":
            with redirect_stderr(StringIO()):  # its reader draws a progress bar through the command's own
                return kind.from_pretrained(str(path.parent), gguf_file=path.name, **safe)
        return kind.from_pretrained(str(path) if path.is_dir() else name, **safe)
    except Exception as error:  # a damaged file fails in each of transformers' readers in its own way
        raise UserError(
            f"cannot load the pre-trained model {name!r} ({(str(error).splitlines() or [type(error).__name__])[0]}): "
            "name a Hugging Face causal model, its folder, or a .gguf file"
        ) from error
