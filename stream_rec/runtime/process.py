"""What a process sets up around its work: shutdown signals, garbage collection, freed memory, OpenMP's threads."""

import atexit
import ctypes
import gc
import os
import signal
import threading
from collections.abc import Callable

POLL_S = 0.5
"""How often a process that waits for its shutdown is asked whether it has ended by itself, seconds."""
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of mallopt(3)."""


def limit_openmp_spinning() -> None:
    """Makes OpenMP's threads sleep at barriers instead of spinning. Call it before torch is imported.

    Spinning threads compete with every other process of the machine: beside one busy process, appending events to
    cached windows fell from 4,200 to 95 events/s, and was back at 4,200 with these settings. Variables that the
    environment already sets are kept.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")


def freeze_gc() -> None:
    """Collects garbage once, then excludes every object that is left from later collections.

    A worker's model and statistics are half a million objects; a full collection takes a quarter of a second, during
    which no window is answered. Call it again after a model has been replaced, so that the old one is freed.
    """
    atexit.register(gc.unfreeze)  # extension modules would report frozen objects as leaked at exit
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def wait_for_shutdown(poll: Callable[[], int | None]) -> int:
    """Blocks until SIGINT or SIGTERM arrives (returns 0) or `poll` returns an exit code. Main thread only."""
    stopped = threading.Event()
    before = {number: signal.signal(number, lambda *_: stopped.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not stopped.wait(POLL_S):
            if (code := poll()) is not None:
                return code
        return 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def keep_freed_memory() -> None:
    """Makes glibc reuse freed memory instead of returning it to the system. Does nothing with other C libraries.

    By default glibc returns large blocks at once, and the system zeroes each new one page by page: a sixth of the time
    of a training on MovieLens 1M (docs/accuracy.md). The process keeps its largest size until it ends.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
