"""The floors of the live accuracy, in bounded memory: they know the newest events, not all."""

import asyncio
from collections.abc import Sequence

from stream_rec.config import Settings
from stream_rec.console.topic_reader import read
from stream_rec.evaluation.baselines import BaselineRanks, Baselines
from stream_rec.messages import UNREADABLE, read_window

EVENTS = 200_000
"""Events that floors know at least; at most twice as many, in 80 MB for 100,000 users and items."""
WINDOWS = 20_000
"""Windows that they begin with, the newest: with nothing they would look worse than they are."""


class RecentBaselines:
    """Two `Baselines`: the older one ranks, both learn; after each `most` events the younger one replaces it."""

    def __init__(self, most: int = EVENTS) -> None:
        self._most = most
        self._older, self._younger = Baselines(), Baselines()
        self._learned = 0
        """By the younger one."""

    def observe(self, user: str, item: str) -> BaselineRanks:
        """Where the floors had this event's item; then they learn from it."""
        if self._learned == self._most:
            self._older, self._younger, self._learned = self._younger, Baselines(), 0
        self._learned += 1
        self._younger.observe(user, item)
        return self._older.observe(user, item)

    def forget(self, user: str) -> None:
        """Drops the user's last item; the counts hold no user."""
        self._older.forget(user)
        self._younger.forget(user)


async def remember(floors: RecentBaselines, settings: Settings) -> None:
    """Has `floors` learn what the newest windows hold. Raises `KafkaError`."""
    known: dict[str, int] = {}
    events: list[tuple[float, str, str]] = []
    async for batch in read(settings, settings.windows_topic, follow=False, most=WINDOWS):
        for record in batch.records:
            try:
                window = read_window(record.value or b"")
            except UNREADABLE:
                continue
            fresh = window.n - known.get(window.user_id, 0)
            if fresh > 0:
                events += [(event.timestamp, window.user_id, event.item_id) for event in window.events[-fresh:]]
            known[window.user_id] = window.n
        if len(events) > 2 * EVENTS:
            events = sorted(events)[-EVENTS:]
    await asyncio.to_thread(_learn, floors, sorted(events)[-EVENTS:])


def _learn(floors: RecentBaselines, events: Sequence[tuple[float, str, str]]) -> None:
    for _, user, item in events:
        floors.observe(user, item)
