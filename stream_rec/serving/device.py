"""Where a model computes, and in which numbers."""

import os
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from stream_rec.errors import UserError


def find(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N`. Raises `UserError` for a GPU that isn't there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {name}: this machine has {torch.cuda.device_count()} CUDA devices; set device to cpu")
    return device


def dtype_of(name: str, device: torch.device) -> torch.dtype:
    """Of the cached keys and values, and of the decoder where it computes on a GPU."""
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def memory(device: torch.device) -> float:
    """All the memory of a GPU, or of the machine, bytes."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[1])
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def upload(array: NDArray[Any], device: torch.device) -> Tensor:
    """`array` on `device`, which copies it in its turn: the host goes on meanwhile, and must not change it."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
