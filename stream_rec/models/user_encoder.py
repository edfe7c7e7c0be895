"""The user encoder: a transformers causal decoder over item vectors, one token an event, or over the events' words.

    token      = LayerNorm(project(item vector) + item residual) + event type + time gap
                 or the language model's own vector of a word
    user state = out(decoder(tokens))           at every position, so that one pass trains all of them
    score      = cosine(user state, project(item vector) + item residual) * exp(log scale)
    user       = [user state of unit length; the last event's type, one-hot]
    next type  = softmax(linear(user))
    interest   = sigmoid(theta . [user; item of unit length] + bias): that a contact with the item is the goal, say a
                 purchase; only where the training log knows a goal

Item tokens and the output share the item side. The body is any transformers decoder: a small Llama from scratch, or a
pre-trained causal language model (see `pretrained`), optionally its first layers alone.
"""

import math
from typing import Annotated, Any

import torch
from msgspec import Meta, Struct
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere
from transformers import AutoConfig, AutoModel, LlamaConfig

from stream_rec.features.event_template import EventTemplate
from stream_rec.features.tokens import GAPS
from stream_rec.models import attention
from stream_rec.models.attention import AttentionMetadata

NO_WORDS: dict[str, Any] = {"vocab_size": 1, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}


Share = Annotated[float, Meta(ge=0, lt=1)]


class EncoderConfig(Struct, frozen=True):
    """The shape of a user encoder. What a pre-trained body fixes (`width` and the rest) is overwritten from it."""

    width: int = 128
    layers: int | None = None
    """Of the body; None is 2, or all that a pre-trained one has."""
    heads: int = 4
    kv_heads: int = 4
    inner: int = 256
    dropout: Share = 0.3
    """On the tokens."""
    residual_dropout: Share = 0.2
    """On the output of each attention and feed-forward block."""
    item_dropout: Share | None = None
    """Share of items whose learned residual is left out of a training step, so that text alone must do; None: by how
    many of the held-out events are of items that are new."""
    base: str | None = None
    """A pre-trained causal language model: a name, a folder, or a `.gguf` file."""
    words: EventTemplate | None = None
    """How an event is told to a pre-trained body; None: an event is one item token."""

    @property
    def event_tokens(self) -> int:
        """Most tokens of an event."""
        return 1 if self.words is None else self.words.limit


class ItemInputs(nn.Module):
    """Vectors of item tokens. `types` counts the event types, `UNKNOWN` included."""

    def __init__(self, width: int, types: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.event_type = nn.Embedding(types, width)
        self.gap = nn.Embedding(GAPS, width)
        nn.init.normal_(self.event_type.weight, std=0.02)
        nn.init.normal_(self.gap.weight, std=0.02)

    def forward(self, normed: Tensor, types: Tensor, gaps: Tensor) -> Tensor:
        """`normed` (..., width) are items that went through `norm`, `types` and `gaps` (...) -> (..., width)."""
        tokens: Tensor = normed + self.event_type(types) + self.gap(gaps)
        return tokens


class WordInputs(nn.Module):
    """Vectors of words: those that the language model was trained on, (words, width), and as they were."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table, requires_grad=False)

    def forward(self, numbers: Tensor) -> Tensor:
        """`numbers` (1, ...), the words' own -> (..., width)."""
        return F.embedding(numbers[0], self.table)


class UserEncoder(nn.Module):
    """See the module. `items` counts the rows with a learned residual, `UNKNOWN` included; `types` likewise.

    `table` (words, width) are the word vectors of an encoder that reads words. Only one with a `goal` tells interests.
    """

    def __init__(
        self,
        config: EncoderConfig,
        body: Any,
        items: int,
        item_dim: int,
        types: int,
        table: Tensor | None = None,
        *,
        goal: bool = False,
    ) -> None:
        super().__init__()
        width = int(body.config.hidden_size)
        self.config = config
        self.body: Any = body
        self.project = nn.Linear(item_dim, width)
        self.residual = nn.Embedding(items, width)
        self.inputs: ItemInputs | WordInputs = ItemInputs(width, types) if table is None else WordInputs(table)
        self.out = nn.Linear(width, width, bias=False)
        self.types = types
        self.next_type = nn.Linear(width + types, types)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        nn.init.zeros_(self.residual.weight)
        nn.init.eye_(self.out.weight)
        self.theta = nn.Linear(2 * width + types, 1) if goal else None
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

    def forward(
        self, tokens: Tensor, ragged: AttentionMetadata | None = None, positions: Tensor | None = None
    ) -> Tensor:
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

    def users(self, states: Tensor, last: Tensor) -> Tensor:
        """What is known of users, (n, width + types): `states` (n, width), and the numbers of the `last` (n,) types."""
        last_types = torch.eye(self.types, dtype=states.dtype, device=states.device)[last]  # one_hot can't be vmapped
        return torch.cat([F.normalize(states, dim=-1), last_types], dim=-1)

    def type_logits(self, users: Tensor) -> Tensor:
        """Log-odds of the next event's type, (n, types), of `users` (n, width + types)."""
        logits: Tensor = self.next_type(users)
        return logits

    def interest_logits(self, users: Tensor, outputs: Tensor) -> Tensor:
        """Log-odds that a contact is the goal, (n, m), of `users` (n, width + types) and `outputs` (n, m, width).

        Only for an encoder with a goal.
        """
        assert self.theta is not None  # noqa: S101 - a caller's mistake
        of_user, of_item = self.theta.weight[0].tensor_split((users.shape[1],))
        of_users: Tensor = users @ of_user + self.theta.bias
        of_items: Tensor = F.normalize(outputs, dim=-1) @ of_item
        return of_users[:, None] + of_items

    def outputs(self, items: Tensor) -> Tensor:
        """What states of unit length are multiplied with: `items` (m, width) -> (m, width)."""
        return F.normalize(items, dim=-1) * self.log_scale.exp()

    def score(self, states: Tensor, items: Tensor) -> Tensor:
        """`states` (n, width), `items` (m, width) -> scores (n, m)."""
        return F.normalize(states, dim=-1) @ self.outputs(items).T


def new_body(config: EncoderConfig) -> Any:
    """A decoder from scratch."""
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


def body_from(config: dict[str, Any]) -> Any:
    """The decoder of a saved configuration, with fresh weights. Raises `ValueError` for one that makes none."""
    config = {**config, **NO_WORDS, "attn_implementation": attention.NAME}
    config.pop("auto_map", None)  # names code outside transformers
    try:
        made = AutoConfig.for_model(config.pop("model_type"), **config)
        return AutoModel.from_config(made, trust_remote_code=False)
    except Exception as error:  # a strange configuration fails in transformers in its own ways
        raise ValueError(" ".join(str(error).split())[:300]) from error


def add_residual_dropout(body: Any, share: float) -> None:
    """Llama and its kin have no dropout on what a block adds to the residual stream: put it there from outside."""

    def drop(module: nn.Module, _inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (F.dropout(output[0], share, module.training), *output[1:])
        return F.dropout(output, share, module.training)

    for layer in body.layers:
        layer.self_attn.register_forward_hook(drop)
        layer.mlp.register_forward_hook(drop)
