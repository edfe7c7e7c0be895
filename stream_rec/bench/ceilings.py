"""What a device can do at most, measured: how near to it a program comes says more than its own speed."""

import statistics
import time
from collections.abc import Callable

import torch

RUNS = 5


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
