"""Attention of new tokens to their users' cached keys and values.

The tokens of a call stand one after the other, whoever's they are, so that the dense layers of the decoder compute no
padding at all; only attention tells users apart. It is registered with transformers under a name of its own, which
makes any decoder that uses transformers' attention interface incremental. (vLLM and its kin lay a batch out likewise.)

There are two ways to the same result. A CPU gathers what a group of rows needs; a GPU reads the cache in place.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its name everywhere
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from stream_rec.model import batcher
from stream_rec.model.batcher import Placed

NAME = "cached_rows"
"""The attention implementation to build a decoder with."""
BLOCK = 128
"""Queries and keys of a tile, flex_attention's own choice."""


class Way(Protocol):
    """How a call attends."""

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
        """`query` (heads, tokens, head_dim), `keys` and `values` (places, kv_heads, head_dim) of a layer's whole cache.

        Returns (tokens, heads, head_dim).
        """

    @property
    def read(self) -> int:
        """Places of the cache that are read."""


class Ragged(NamedTuple):
    """What one call writes and reads."""

    keys: list[Tensor]
    """Of each layer, (places, kv_heads, head_dim)."""
    values: list[Tensor]
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
    def of(cls, placed: Placed, shared: int, device: torch.device) -> "Gathered":
        """`shared` query heads have one head of keys. The rows are sorted by new tokens, then by length."""
        groups = []
        slots, positions = (torch.from_numpy(array).to(device) for array in (placed.slots, placed.positions))
        for begin, end, length in batcher.spans(placed.new, placed.lengths):
            first, new, span = int(placed.begins[begin]), int(placed.new[begin]), torch.arange(length, device=device)
            standing = positions[first : first + (end - begin) * new].view(end - begin, new, 1)
            visible = (span <= standing).repeat(1, shared, 1)[:, None]
            groups.append(Group(first, slots[begin:end, None] * placed.capacity + span, visible))
        return cls(groups)

    @property
    def read(self) -> int:
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


class InPlace(NamedTuple):
    """Attends to the whole cache through a mask of blocks: only blocks that a token can see are ever read.

    It is what flex_attention calls paged attention. Compiled it copies nothing; uncompiled it computes every score.
    """

    mask: BlockMask
    read: int

    @classmethod
    def of(cls, placed: Placed, places: int, device: torch.device) -> "InPlace":
        """`places` counts those of the whole cache."""
        slot, position = (
            torch.from_numpy(array).to(device) for array in (np.repeat(placed.slots, placed.new), placed.positions)
        )

        def visible(_batch: Tensor, _head: Tensor, query: Tensor, place: Tensor) -> Tensor:
            own = place // placed.capacity == slot[query]
            return own & (place % placed.capacity <= position[query])

        counts, indices = blocks(placed, places)
        mask = BlockMask.from_kv_blocks(
            torch.from_numpy(counts)[None, None].to(device),
            torch.from_numpy(indices)[None, None].to(device),
            BLOCK_SIZE=BLOCK,
            mask_mod=visible,
            seq_lengths=(len(placed.positions), places),
            compute_q_blocks=False,
        )
        return cls(mask, int(counts.sum()) * BLOCK)

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
        seen, held = (cached.to(query.dtype).transpose(0, 1)[None] for cached in (keys, values))
        found = flex_attention(query[None], seen, held, block_mask=self.mask, scale=scaling, enable_gqa=True)
        assert isinstance(found, Tensor)  # noqa: S101 - it gives a tuple only when asked for more
        return found[0].transpose(0, 1)


def blocks(placed: Placed, places: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The blocks of the cache that each block of queries reads: how many, (blocks,), and which, (blocks, columns)."""
    ends = placed.begins + placed.new
    asking = [np.arange(begin // BLOCK, -(-end // BLOCK)) for begin, end in zip(placed.begins, ends, strict=True)]
    first = placed.slots * placed.capacity
    read = [
        np.arange(begin // BLOCK, -(-end // BLOCK)) for begin, end in zip(first, first + placed.lengths, strict=True)
    ]
    everything = -(-places // BLOCK)
    pairs = np.unique(
        np.concatenate([(one[:, None] * everything + other).ravel() for one, other in zip(asking, read, strict=True)])
    )
    queries, seen = pairs // everything, pairs % everything
    counts = np.bincount(queries, minlength=-(-int(ends[-1]) // BLOCK))
    indices = np.zeros((len(counts), everything), np.int32)
    indices[queries, np.arange(len(pairs)) - np.repeat(counts.cumsum() - counts, counts)] = seen
    return counts.astype(np.int32), indices


AttentionInterface.register(NAME, attend)
