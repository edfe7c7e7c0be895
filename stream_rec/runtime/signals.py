"""Ending in order: SIGINT and SIGTERM as something one can wait for."""

import signal
import threading
from collections.abc import Callable

PATIENCE_S = 0.5


def until_told(poll: Callable[[], int | None]) -> int:
    """Waits until a signal says stop, which is 0, or `poll` gives an exit code. For the main thread."""
    told = threading.Event()
    before = {number: signal.signal(number, lambda *_: told.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not told.wait(PATIENCE_S):
            if (code := poll()) is not None:
                return code
        return 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
