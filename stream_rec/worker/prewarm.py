"""Replayed windows of the users who were active last; they are encoded ahead, before these users' next events."""

import heapq

from stream_rec.messages import Window


class PrewarmQueue:
    """Keeps the newest window of at least the `most` users who were active last, and of at most twice as many."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._windows: dict[str, Window] = {}

    def __len__(self) -> int:
        return len(self._windows)

    def __contains__(self, user_id: str) -> bool:
        return user_id in self._windows

    def add(self, window: Window) -> None:
        self._windows[window.user_id] = window
        if len(self._windows) > 2 * self._most:
            self._windows = {one.user_id: one for one in self._newest(self._most)}

    def take(self, count: int) -> list[Window]:
        """Removes and returns up to `count` windows, the latest active user's first."""
        taken = self._newest(count)
        for window in taken:
            del self._windows[window.user_id]
        return taken

    def forget(self, user_id: str) -> None:
        self._windows.pop(user_id, None)

    def clear(self) -> None:
        self._windows.clear()

    def _newest(self, count: int) -> list[Window]:
        return heapq.nlargest(count, self._windows.values(), key=lambda window: window.arrived)
