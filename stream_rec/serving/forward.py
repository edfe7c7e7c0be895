"""One pass of the decoder over a call's new tokens, behind what the cache holds of their users."""

import os
import shutil
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from stream_rec.errors import UserError
from stream_rec.models.attention import AttentionMetadata
from stream_rec.models.user_encoder import UserEncoder
from stream_rec.serving.attention.gather import GatherAttention
from stream_rec.serving.kv_cache import CachePool
from stream_rec.serving.scheduler import BatchLayout


class ForwardOutput(NamedTuple):
    states: Tensor
    """(tokens, width)"""
    read: int
    """The cache's places that attention read."""
    filled: int = 0
    """Tokens that were computed to fill up the call."""


class Forward(Protocol):
    """Keys and values of the call's tokens go into the cache on the way."""

    def __call__(self, tokens: Tensor, placed: BatchLayout) -> ForwardOutput:
        """`tokens` (tokens, width) are the vectors of the new tokens, row by row."""


class GatherForward:
    """On a CPU: attention to copies of what groups of rows need."""

    def __init__(self, encoder: UserEncoder, cache: CachePool) -> None:
        self._encoder = encoder
        self._cache = cache
        config = encoder.body.config
        self._shared = config.num_attention_heads // config.num_key_value_heads

    def __call__(self, tokens: Tensor, placed: BatchLayout) -> ForwardOutput:
        write, positions = torch.from_numpy(placed.write), torch.from_numpy(placed.positions)
        way = GatherAttention.of(placed, self._shared)
        ragged = AttentionMetadata(self._cache.keys, self._cache.values, write, way)
        return ForwardOutput(self._encoder(tokens[None], ragged, positions[None])[0], way.read)


def forward_of(encoder: UserEncoder, cache: CachePool) -> Forward:
    """For the device that the cache is on. Raises `UserError` where a GPU's kernel can't be built."""
    if cache.device.type != "cuda":
        return GatherForward(encoder, cache)
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        raise UserError(
            "a GPU needs a C compiler here, which Triton starts kernels with: install gcc, or set device to cpu"
        )
    from stream_rec.serving.attention.cuda_graphs import (
        GraphForward,  # its kernel is of Triton, which comes with torch for CUDA alone
    )

    return GraphForward(encoder, cache)
