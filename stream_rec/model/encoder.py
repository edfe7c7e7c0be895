"""The user encoder: a transformers causal decoder over item vectors, one token an event.

    token      = LayerNorm(project(item vector) + item residual) + event type + time gap
    user state = out(decoder(tokens))           at every position, so that one pass trains all of them
    score      = cosine(user state, project(item vector) + item residual) * exp(log scale)

Input and output share the item side. The body is any transformers decoder: a small Llama from scratch, or a pre-trained
causal language model (name, folder or GGUF file), optionally its first layers alone.
"""

import math
from pathlib import Path
from typing import Any

import torch
from msgspec import Struct
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere
from transformers import AutoConfig, AutoModel, LlamaConfig

from stream_rec.errors import UserError
from stream_rec.model import attention
from stream_rec.model.attention import Ragged
from stream_rec.model.tokens import GAPS

NO_WORDS: dict[str, Any] = {"vocab_size": 1, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}


class EncoderConfig(Struct, frozen=True):
    """The shape of a user encoder. What a pre-trained body fixes (`width` and the rest) is overwritten from it."""

    width: int = 128
    layers: int | None = None
    """Of the body; None is 2, or all that a pre-trained one has."""
    heads: int = 4
    kv_heads: int = 4
    inner: int = 256
    dropout: float = 0.3
    """On the tokens."""
    residual_dropout: float = 0.2
    """On the output of each attention and feed-forward block."""
    item_dropout: float = 0.3
    """Share of items whose learned residual is left out of a training step, so that text alone must do."""
    base: str | None = None
    """A pre-trained causal language model: a name, a folder, or a `.gguf` file."""


class UserEncoder(nn.Module):
    """See the module. `items` counts the rows with a learned residual, `UNKNOWN` included; `types` likewise."""

    def __init__(self, config: EncoderConfig, body: Any, items: int, item_dim: int, types: int) -> None:
        super().__init__()
        width = int(body.config.hidden_size)
        self.config = config
        self.body: Any = body
        self.project = nn.Linear(item_dim, width)
        self.residual = nn.Embedding(items, width)
        self.event_type = nn.Embedding(types, width)
        self.gap = nn.Embedding(GAPS, width)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, width, bias=False)
        self.next_type = nn.Linear(width, types)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        nn.init.zeros_(self.residual.weight)
        nn.init.normal_(self.event_type.weight, std=0.02)
        nn.init.normal_(self.gap.weight, std=0.02)
        nn.init.eye_(self.out.weight)
        if config.residual_dropout:
            add_residual_dropout(body, config.residual_dropout)

    @property
    def width(self) -> int:
        return self.out.out_features

    def items(self, vectors: Tensor, residual: Tensor) -> Tensor:
        """The item side, shared by input and output. `vectors` (n, item_dim), `residual` (n, width) -> (n, width)."""
        if self.training and self.config.item_dropout:
            residual = residual * (torch.rand(len(residual), 1, device=residual.device) >= self.config.item_dropout)
        items: Tensor = self.project(vectors) + residual
        return items

    def tokens(self, items: Tensor, types: Tensor, gaps: Tensor) -> Tensor:
        """`items` (..., width) from `items()`, `types` and `gaps` (...) -> tokens (..., width)."""
        return self.add_event(self.norm(items), types, gaps)

    def add_event(self, normed: Tensor, types: Tensor, gaps: Tensor) -> Tensor:
        """`tokens` for items that went through the norm already: serving keeps them that way."""
        tokens: Tensor = normed + self.event_type(types) + self.gap(gaps)
        return tokens

    def forward(self, tokens: Tensor, ragged: Ragged | None = None, positions: Tensor | None = None) -> Tensor:
        """User states (batch, length, width) of `tokens` (batch, length, width).

        Causal over the tokens given, padded on the right. With `ragged` they are instead new tokens of many users, one
        after the other in a batch of 1, that stand at `positions` (1, length) behind what is cached.
        """
        tokens = F.dropout(tokens, self.config.dropout, self.training)
        hidden = self.body(
            inputs_embeds=tokens.to(self.body.dtype), position_ids=positions, use_cache=False, ragged=ragged
        )
        states: Tensor = self.out(hidden.last_hidden_state.to(tokens.dtype))
        return states

    def type_logits(self, states: Tensor) -> Tensor:
        """Log-odds of the next event's type, (n, types), of `states` (n, width)."""
        logits: Tensor = self.next_type(F.normalize(states, dim=-1))
        return logits

    def score(self, states: Tensor, items: Tensor) -> Tensor:
        """`states` (n, width), `items` (m, width) -> scores (n, m)."""
        return F.normalize(states, dim=-1) @ F.normalize(items, dim=-1).T * self.log_scale.exp()


def new_body(config: EncoderConfig) -> Any:
    """A decoder to train: from scratch, or the pre-trained one that `config.base` names, cut to its first layers.

    Raises `UserError` when it can't be loaded.
    """
    if config.base is None:
        return body_from(
            LlamaConfig(
                hidden_size=config.width,
                intermediate_size=config.inner,
                num_hidden_layers=config.layers or 2,
                num_attention_heads=config.heads,
                num_key_value_heads=config.kv_heads,
                max_position_embeddings=4_096,
            ).to_dict()
        )
    path = Path(config.base).expanduser()
    try:
        if path.suffix == ".gguf":
            body = AutoModel.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32)
        else:
            body = AutoModel.from_pretrained(config.base, dtype=torch.float32, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(
            f"cannot load the pre-trained model {config.base!r} ({str(error).splitlines()[0]}): "
            "name a Hugging Face causal model, its folder, or a .gguf file"
        ) from error
    if not hasattr(body, "layers") or getattr(body.config, "is_encoder_decoder", False):
        raise UserError(f"{config.base!r} is no causal decoder: its layers can't be counted")
    layers = config.layers or len(body.layers)
    if layers > len(body.layers):
        raise UserError(f"{config.base!r} has {len(body.layers)} layers, {layers} were asked for")
    del body.layers[layers:]
    body.set_attn_implementation(attention.NAME)
    return without_vocabulary(body, layers)


def body_from(config: dict[str, Any]) -> Any:
    """The decoder of a saved configuration, with fresh weights."""
    config = {**config, **NO_WORDS, "attn_implementation": attention.NAME}
    return AutoModel.from_config(AutoConfig.for_model(config.pop("model_type"), **config))


def without_vocabulary(body: Any, layers: int) -> Any:
    """Tokens come as vectors: the word table (a quarter of a small language model) is left out."""
    body.config.num_hidden_layers = layers
    if getattr(body.config, "layer_types", None):
        body.config.layer_types = body.config.layer_types[:layers]
    body.config.update(NO_WORDS)
    body.set_input_embeddings(nn.Embedding(1, body.config.hidden_size))
    return body


def add_residual_dropout(body: Any, share: float) -> None:
    """Llama and its kin have no dropout on what a block adds to the residual stream: put it there from outside."""

    def drop(module: nn.Module, _inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (F.dropout(output[0], share, module.training), *output[1:])
        return F.dropout(output, share, module.training)

    for layer in body.layers:
        layer.self_attn.register_forward_hook(drop)
        layer.mlp.register_forward_hook(drop)
