"""Attention of new tokens to their users' cached keys and values.

The tokens of a call stand one after the other, whoever's they are, so that the dense layers of the decoder compute no
padding at all; only attention tells users apart. It is registered with transformers under a name of its own, which
makes any decoder that uses transformers' attention interface incremental. (vLLM and its kin lay a batch out likewise.)
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its name everywhere
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "cached_rows"
"""The attention implementation to build a decoder with."""


class Group(NamedTuple):
    """Rows of a call that have equally many new tokens: one attention, without a padded query."""

    begin: int
    """The place of their first token in the call."""
    read: Tensor
    """The cache's places that each row reads, (rows, span)."""
    visible: Tensor
    """Which of them each new token sees, (rows, new, span) bool."""


class Ragged(NamedTuple):
    """What one call writes and reads."""

    keys: list[Tensor]
    """Of each layer, (places, kv_heads, head_dim)."""
    values: list[Tensor]
    write: Tensor
    """The cache's place of each token, (tokens,)."""
    groups: list[Group]


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, ragged: Ragged | None = None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """Attention of a call's new tokens, (1, tokens, heads, head_dim), once their keys and values are in the cache.

    `query` (1, heads, tokens, head_dim); `key` and `value` (1, kv_heads, tokens, head_dim). Without `ragged` it is
    torch's ordinary attention over (batch, heads, length, head_dim).
    """
    if ragged is None:
        return sdpa_attention_forward(module, query, key, value, *args, **options)  # type: ignore[no-any-return]
    keys, values = ragged.keys[module.layer_idx], ragged.values[module.layer_idx]
    keys.index_copy_(0, ragged.write, key[0].transpose(0, 1).to(keys.dtype))
    values.index_copy_(0, ragged.write, value[0].transpose(0, 1).to(values.dtype))
    parts = [_attend(query[0], keys, values, group, options["scaling"]) for group in ragged.groups]
    return torch.cat(parts)[None], None


def _attend(query: Tensor, keys: Tensor, values: Tensor, group: Group, scaling: float) -> Tensor:
    """Attention of one group, (rows * new, heads, head_dim). Query heads that share keys are queries of one head."""
    (rows, new, span), (heads, _, width), kv_heads = group.visible.shape, query.shape, keys.shape[1]
    shared = heads // kv_heads
    asked = query[:, group.begin : group.begin + rows * new].view(kv_heads, shared, rows, new, width)
    asked = asked.permute(2, 0, 1, 3, 4).reshape(rows, kv_heads, shared * new, width)
    seen, held = (
        cached.index_select(0, group.read.flatten()).view(rows, span, kv_heads, width).transpose(1, 2).to(query.dtype)
        for cached in (keys, values)
    )
    visible = group.visible.repeat(1, shared, 1)[:, None]
    found = F.scaled_dot_product_attention(asked, seen, held, attn_mask=visible, scale=scaling)
    return found.view(rows, kv_heads, shared, new, width).permute(0, 3, 1, 2, 4).reshape(rows * new, heads, width)


AttentionInterface.register(NAME, attend)
