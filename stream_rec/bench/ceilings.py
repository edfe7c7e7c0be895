"""What a device can do at most, measured: how near to it a program comes says more than its own speed."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from stream_rec.serving.kv_cache import KeyValueCache

RUNS = 5


def reached(body: Any, cache: KeyValueCache, tokens: Mapping[str, float], reads: float) -> dict[str, float]:
    """What the cache's device can do, and which share of it was done, by `tokens` a second of each side.

    Arithmetic is that of the dense layers; `reads` are cached positions a second. There is more of both.
    """
    most, fastest = tflops(cache.device, body.dtype), gigabytes(cache.device)
    read = reads * cache.bytes_per_user / cache.capacity
    return {
        "tflops": round(most, 3),
        **{side: round(2 * weights(body) * count / most / 1e12, 4) for side, count in tokens.items()},
        "gigabytes_per_s": round(fastest, 1),
        "stream_reads": round(read / fastest / 1e9, 4),
    }


def weights(body: nn.Module) -> int:
    """Of a decoder's dense layers: each is multiplied and added once a token."""
    return sum(layer.weight.numel() for layer in body.modules() if isinstance(layer, nn.Linear))


def tflops(device: torch.device, dtype: torch.dtype) -> float:
    """10^12 floating-point operations a second of a large product of matrices of random numbers."""
    size = 8_192 if device.type == "cuda" else 1_024
    one, other = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / _seconds(lambda: one @ other, device) / 1e12


def gigabytes(device: torch.device) -> float:
    """10^9 bytes a second that a large copy moves, read and written."""
    size = 4 << 30 if device.type == "cuda" else 256 << 20
    here, there = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * size / _seconds(lambda: there.copy_(here), device) / 1e9


def wait(device: torch.device) -> None:
    """Until a GPU has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """The median of some runs after a first one."""
    work()
    took = []
    for _ in range(RUNS):
        wait(device)
        began = time.perf_counter()
        work()
        wait(device)
        took.append(time.perf_counter() - began)
    return statistics.median(took)
