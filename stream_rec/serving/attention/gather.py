"""Attention on a CPU: rows with equally many new tokens form a group, whose cached keys and values are copied."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from stream_rec.serving import scheduler
from stream_rec.serving.scheduler import BatchLayout


class Group(NamedTuple):
    """Rows of a call that have equally many new tokens: one attention, without a padded query."""

    begin: int
    """The place of their first token in the call."""
    read: Tensor
    """The cache's places that each row reads, (rows, span)."""
    visible: Tensor
    """Which of them each query sees, (rows, 1, queries, span) bool; heads that share keys are queries of one head."""


class GatherAttention(NamedTuple):
    """Copies the places that a group of rows needs, then attends to the copy."""

    groups: list[Group]

    @classmethod
    def of(cls, placed: BatchLayout, shared: int) -> "GatherAttention":
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
