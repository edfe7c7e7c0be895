"""A folder that belongs to one process alone."""

import contextlib
import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stream_rec.errors import UserError


@contextmanager
def own_folder(parent: Path) -> Iterator[Path]:
    """A new folder below `parent`, removed at the end; those that killed processes left behind are removed first.

    A locked file beside each folder tells the living from the dead: the kernel drops the lock with the process.
    Raises `UserError` when `parent` can't be written.
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
