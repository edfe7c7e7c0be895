"""Attention that reads the cached rows where they stand: a kernel for GPUs, in Triton.

A row's cache is one strip, and most rows of a call have one new token. A kernel for long sequences computes 128 queries
at a time, and would do 127 for nothing here; this one computes 16, each the heads of a token that share keys, or of
some tokens of one row. It reads a strip once, sums it in one order whatever else is in the call (so a row's result
doesn't depend on its company), and keeps the running softmax of FlashAttention (Dao et al. 2022).
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

FEWEST = 16
"""Queries, and numbers of a head, that a GPU's matrix units take at least."""
KEYS = 64
"""Cached positions that are read at a time."""
LOG2_E = 1.4426950408889634


@triton.jit  # type: ignore[untyped-decorator]
def _attend(  # type: ignore[no-untyped-def]
    query,
    keys,
    values,
    out,
    tiles,
    most,
    query_head,
    query_token,
    place_step,
    head_step,
    out_token,
    scale,
    shared: tl.constexpr,
    head_dim: tl.constexpr,
    width: tl.constexpr,
    queries: tl.constexpr,
    block: tl.constexpr,
    precision: tl.constexpr,
):
    tile, kv_head = tl.program_id(0), tl.program_id(1)
    count = tl.load(tiles + 3 * most + tile)
    if count == 0:
        return
    token = tl.load(tiles + tile)
    strip = tl.load(tiles + most + tile)
    position = tl.load(tiles + 2 * most + tile)

    lane, column = tl.arange(0, queries), tl.arange(0, width)
    nth, head = lane // shared, kv_head * shared + lane % shared
    asked = (nth < count)[:, None] & (column < head_dim)[None, :]
    at = head[:, None] * query_head + (token + nth)[:, None] * query_token + column[None, :]
    q = tl.load(query + at, mask=asked, other=0.0)

    highest = tl.full([queries], float("-inf"), tl.float32)
    weight = tl.zeros([queries], tl.float32)
    found = tl.zeros([queries, width], tl.float32)
    end = position + count
    for begin in range(0, end, block):
        seen = begin + tl.arange(0, block)
        held = (strip + seen)[:, None] * place_step + kv_head * head_step + column[None, :]
        there = (seen < end)[:, None] & (column < head_dim)[None, :]
        k = tl.load(keys + held, mask=there, other=0.0)
        v = tl.load(values + held, mask=there, other=0.0)
        score = tl.dot(q, tl.trans(k), input_precision=precision) * scale
        score = tl.where(seen[None, :] <= (position + nth)[:, None], score, float("-inf"))
        higher = tl.maximum(highest, tl.max(score, 1))
        share, kept = tl.exp2(score - higher[:, None]), tl.exp2(highest - higher)
        weight = weight * kept + tl.sum(share, 1)
        found = found * kept[:, None] + tl.dot(share.to(v.dtype), v, input_precision=precision)
        highest = higher

    at = (token + nth)[:, None] * out_token + head[:, None] * head_dim + column[None, :]
    tl.store(out + at, (found / weight[:, None]).to(q.dtype), mask=asked)


class InPlace(NamedTuple):
    """What each program of the kernel computes: a `AttentionBackend`."""

    tiles: Tensor
    """(4, any) int64: of each the first token in the call, the cache's place of its row's first token, the token's
    position in its row, and how many tokens of the row are computed, at most `tokens_of` and none for what fills up."""

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
        """As a `AttentionBackend`; a token that stands in no tile is not written."""
        (heads, tokens, head_dim), kv_heads = query.shape, keys.shape[1]
        out = query.new_empty(tokens, heads, head_dim)
        most = self.tiles.shape[1]
        _attend[(most, kv_heads)](
            query,
            keys,
            values,
            out,
            self.tiles,
            most,
            *query.stride()[:2],
            *keys.stride()[:2],
            out.stride(0),
            scaling * LOG2_E,
            shared=heads // kv_heads,
            head_dim=head_dim,
            width=_power(head_dim),
            queries=_power(heads // kv_heads),
            block=KEYS,
            precision="ieee",
        )
        return out


def tokens_of(heads: int, kv_heads: int) -> int:
    """Most tokens of a tile."""
    shared = heads // kv_heads
    return _power(shared) // shared


def _power(least: int) -> int:
    """A power of two that is enough."""
    return max(FEWEST, int(triton.next_power_of_2(least)))
