"""What a process sets up around its work: its own folder, shutdown signals, garbage collection, memory, threads."""

import atexit
import contextlib
import ctypes
import fcntl
import gc
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from stream_rec.errors import UserError

POLL_S = 0.5
"""How often a process that waits for its shutdown is asked whether it has ended by itself, seconds."""
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of mallopt(3)."""


@contextmanager
def process_dir(parent: Path) -> Iterator[Path]:
    """Creates a folder below `parent` for this process and removes it at the end.

    Folders that killed processes left behind are removed first. A locked file beside each folder shows whether its
    process still runs: the kernel releases the lock when the process ends.

    Raises `UserError` if `parent` is not writable.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for lock in parent.glob("*.lock"):
            _remove_dead(lock)
        folder = Path(tempfile.mkdtemp(dir=parent))
        held = _lock_of(folder).open("wb")
    except OSError as error:
        raise UserError(f"cannot keep state in {parent}: {error.strerror}; set STREAM_REC_CACHE_DIR") from None
    with held:
        fcntl.flock(held, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            _lock_of(folder).unlink(missing_ok=True)


def _lock_of(folder: Path) -> Path:
    return folder.with_name(folder.name + ".lock")


def _remove_dead(lock: Path) -> None:
    with contextlib.suppress(OSError), lock.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: its process lives
        shutil.rmtree(lock.with_name(lock.name.removesuffix(".lock")), ignore_errors=True)
        lock.unlink()


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
    atexit.unregister(gc.unfreeze)  # a process freezes once for each model
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
