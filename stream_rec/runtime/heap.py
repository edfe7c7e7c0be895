"""The memory that the tensors of one training step leave to the next."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of mallopt(3)."""


def keep_freed() -> None:
    """Has glibc keep what is freed for what is asked for next; other C libraries have no such choice.

    It gives large blocks back to the system at once, and each new one is then zeroed anew, page by page: that was a
    sixth of a training on MovieLens 1M (docs/accuracy.md). The process stays as large as it has ever been.
    """
    choose = getattr(ctypes.CDLL(None), "mallopt", None)
    if choose is not None:
        choose(M_MMAP_MAX, 0)
        choose(M_TRIM_THRESHOLD, -1)
