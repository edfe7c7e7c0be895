"""The decoder's pass on a GPU, recorded.

A call is little work for a GPU: its hundreds of small kernels are done sooner than a host can launch them. So calls of
few tokens are filled up to one of some sizes, for each of which the pass was recorded as a CUDA graph: one launch for
all of its kernels. (vLLM and SGLang decode likewise.)
"""

from bisect import bisect_left
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stream_rec.features.tokens import Numbers
from stream_rec.models.attention import AttentionMetadata
from stream_rec.models.user_encoder import UserEncoder
from stream_rec.serving import scheduler
from stream_rec.serving.attention import triton
from stream_rec.serving.attention.triton import InPlace
from stream_rec.serving.device import upload
from stream_rec.serving.forward import ForwardOutput
from stream_rec.serving.kv_cache import CachePool
from stream_rec.serving.scheduler import BatchLayout

SIZES = (16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1_024)
"""Tokens of the calls that are recorded; the kernels of larger ones take longer than their launch."""
FIELDS = 6
"""Numbers that a pass needs a token: see `plan_of`."""


class Recorded(NamedTuple):
    """A pass over a fixed number of tokens: what it reads, itself, and what it writes."""

    tokens: Tensor
    """(size, width)"""
    plan: Tensor
    """(FIELDS, size)"""
    graph: torch.cuda.CUDAGraph
    states: Tensor
    """(size, width)"""


class GraphForward:
    """A `Forward`."""

    @torch.inference_mode()
    def __init__(self, encoder: UserEncoder, cache: CachePool) -> None:
        self._encoder = encoder
        self._cache = cache
        pool = torch.cuda.graph_pool_handle()  # the largest first: the others find their memory there
        self._recorded = [_record(encoder, cache, size, pool) for size in reversed(SIZES)][::-1]

    def __call__(self, tokens: Tensor, placed: BatchLayout) -> ForwardOutput:
        count, read = len(tokens), int(placed.lengths.sum())
        at = bisect_left(SIZES, count)
        if at == len(SIZES):
            plan = upload(plan_of(placed, count, self._encoder, self._cache), tokens.device)
            return ForwardOutput(in_place(self._encoder, self._cache, tokens, plan), read)
        size, call = SIZES[at], self._recorded[at]
        call.tokens[:count] = tokens
        call.plan.copy_(upload(plan_of(placed, size, self._encoder, self._cache), tokens.device))
        call.graph.replay()
        return ForwardOutput(call.states[:count], read, size - count)


def plan_of(placed: BatchLayout, size: int, encoder: UserEncoder, cache: CachePool) -> Numbers:
    """What a pass over `size` tokens needs to know of a call that it fills up, (FIELDS, size): one copy to a GPU.

    Of each token its position and its place in the cache, which is nobody's for those that fill up; and its tiles.
    """
    config, plan = encoder.body.config, np.zeros((FIELDS, size), np.int64)
    tiles = scheduler.tiles(placed, triton.tokens_of(config.num_attention_heads, config.num_key_value_heads))
    plan[0, : len(placed.positions)] = placed.positions
    plan[1] = cache.dummy_slot
    plan[1, : len(placed.write)] = placed.write
    plan[2:, : tiles.shape[1]] = tiles
    return plan


def in_place(encoder: UserEncoder, cache: CachePool, tokens: Tensor, plan: Tensor) -> Tensor:
    """States (size, width) of `tokens` (size, width)."""
    ragged = AttentionMetadata(cache.keys, cache.values, plan[1], InPlace(plan[2:]))
    states: Tensor = encoder(tokens[None], ragged, plan[None, 0])[0]
    return states


def _record(encoder: UserEncoder, cache: CachePool, size: int, pool: Any) -> Recorded:
    """The pass over `size` tokens, working in the memory of the `pool`."""
    device, none = cache.device, np.zeros(0, np.int64)
    plan = upload(plan_of(BatchLayout(none, none, none, cache.capacity), size, encoder, cache), device)
    tokens = torch.zeros(size, encoder.width, device=device)
    aside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(aside):  # libraries set themselves up in their first calls, which can't be recorded
        in_place(encoder, cache, tokens, plan)
    torch.cuda.current_stream(device).wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):  # another model may be serving
        states = in_place(encoder, cache, tokens, plan)
    return Recorded(tokens, plan, graph, states)
