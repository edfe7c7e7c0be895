"""Attention of new tokens to their users' cached keys and values.

The tokens of a call stand one after the other, whoever's they are, so that the dense layers of the decoder compute no
padding at all; only attention tells users apart. It is registered with transformers under a name of its own, which
makes any decoder that uses transformers' attention interface incremental. (vLLM and its kin lay a batch out likewise.)

There are two ways to the same result: a CPU gathers what a group of rows needs; a GPU reads the cache in place, see
`kernel`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its name everywhere
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from stream_rec.serving import scheduler
from stream_rec.serving.scheduler import Placed

NAME = "cached_rows"
"""The attention implementation to build a decoder with."""


class Way(Protocol):
    """How a call attends."""

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
        """`query` (heads, tokens, head_dim), `keys` and `values` (places, kv_heads, head_dim) of a layer's whole cache.

        Returns (tokens, heads, head_dim).
        """


class Ragged(NamedTuple):
    """What one call writes and reads."""

    keys: Sequence[Tensor]
    """Of each layer, (places, kv_heads, head_dim)."""
    values: Sequence[Tensor]
    write: Tensor
    """The cache's place of each token, (tokens,)."""
    way: Way


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
    return ragged.way(query[0], keys, values, options["scaling"])[None], None


class Group(NamedTuple):
    """Rows of a call that have equally many new tokens: one attention, without a padded query."""

    begin: int
    """The place of their first token in the call."""
    read: Tensor
    """The cache's places that each row reads, (rows, span)."""
    visible: Tensor
    """Which of them each query sees, (rows, 1, queries, span) bool; heads that share keys are queries of one head."""


class Gathered(NamedTuple):
    """Copies the places that a group of rows needs, then attends to the copy."""

    groups: list[Group]

    @classmethod
    def of(cls, placed: Placed, shared: int) -> "Gathered":
        """`shared` query heads have one head of keys. The rows are sorted by new tokens, then by length."""
        groups = []
        slots, positions = torch.from_numpy(placed.slots), torch.from_numpy(placed.positions)
        for begin, end, length in scheduler.spans(placed.new, placed.lengths):
            first, new, span = int(placed.begins[begin]), int(placed.new[begin]), torch.arange(length)
            standing = positions[first : first + (end - begin) * new].view(end - begin, new, 1)
            visible = (span <= standing).repeat(1, shared, 1)[:, None]
            groups.append(Group(first, slots[begin:end, None] * placed.capacity + span, visible))
        return cls(groups)

    @property
    def read(self) -> int:
        """Places of the cache that are read."""
        return sum(group.read.numel() for group in self.groups)

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
        return torch.cat([_attend(query, keys, values, group, scaling) for group in self.groups])


def _attend(query: Tensor, keys: Tensor, values: Tensor, group: Group, scaling: float) -> Tensor:
    """Attention of one group, (rows * new, heads, head_dim)."""
    (rows, _, queries, span), kv_heads, (heads, _, width) = group.visible.shape, keys.shape[1], query.shape
    shared = heads // kv_heads
    new = queries // shared
    asked = query[:, group.begin : group.begin + rows * new].view(kv_heads, shared, rows, new, width)
    asked = asked.permute(2, 0, 1, 3, 4).reshape(rows, kv_heads, queries, width)
    seen, held = (
        cached.index_select(0, group.read.flatten()).view(rows, span, kv_heads, width).transpose(1, 2).to(query.dtype)
        for cached in (keys, values)
    )
    found = F.scaled_dot_product_attention(asked, seen, held, attn_mask=group.visible, scale=scaling)
    return found.view(rows, kv_heads, shared, new, width).permute(0, 3, 1, 2, 4).reshape(rows * new, heads, width)


AttentionInterface.register(NAME, attend)
