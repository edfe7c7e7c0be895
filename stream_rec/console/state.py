"""What the pages show, kept up to date from the topics; and what is new, told to every page that is open."""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any

from aiokafka.errors import KafkaError

from stream_rec.config import Settings
from stream_rec.console import serializers
from stream_rec.console.baselines import RecentBaselines, remember
from stream_rec.console.feed import EventFeed
from stream_rec.console.live import Live, Row
from stream_rec.console.sse import EventBroadcaster
from stream_rec.console.titles import Titles
from stream_rec.console.topic_reader import read
from stream_rec.console.trends import Trends
from stream_rec.errors import UserError
from stream_rec.kafka.access_control import check_access, on
from stream_rec.kafka.connection import access

log = logging.getLogger(__name__)

FLUSH_S = 0.25
"""How often new rows go to the pages, seconds."""
FLUSH_ROWS = 20
"""Rows that go at a time: of a faster stream a page sees the newest."""
FIRST_ROWS = 40
"""Rows that a page begins with."""
BEAT_S = 5.0
"""How often the broker is asked whether it is there, seconds."""


class ConsoleState:
    """Follows the topics in `run`. Its memory has bounds, which stand in the modules of its parts."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._floors = RecentBaselines()
        self._fresh: dict[int, Row] = {}
        self._happened = asyncio.Condition()
        self.hub = EventBroadcaster()
        self.titles = Titles(settings.max_item_bytes)
        self.trends = Trends()
        self.live = Live(self._floors)
        self._feed = EventFeed(settings, self.live, self.trends, self._changed)
        self.ailing = ""
        """What is wrong, in words."""

    @property
    def ready(self) -> bool:
        """Whether nothing that is written from now on will be missed."""
        return self._feed.ready.is_set()

    async def run(self) -> None:
        """Runs until it is cancelled. Raises `UserError`."""
        try:
            await remember(self._floors, self._settings)
        except KafkaError as error:
            raise UserError(f"the windows topic can't be read: {type(error).__name__}") from None
        following = (self._feed.run(), self._follow_items(), self._beat(), self._flush(), self._knock())
        tasks = [asyncio.create_task(one) for one in following]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def so_far(self) -> dict[str, Any]:
        """What a page begins with."""
        rows = reversed(list(self.live.newest(FIRST_ROWS)))
        return {
            "points": list(self.live.points),
            "rows": serializers.rows(rows, self.titles),
            "totals": self._totals(),
        }

    async def outcome(self, partition: int, offset: int) -> Row:
        """The event there, once it is answered or refused."""
        async with self._happened:
            while True:
                row = self.live.find(partition, offset)
                if row is not None and (row.latency_s is not None or row.refused is not None):
                    return row
                await self._happened.wait()

    def _totals(self) -> dict[str, Any]:
        live = self.live
        return {
            "events": live.events,
            "answers": live.answers,
            "refused": live.refused,
            "unreadable": self._feed.unreadable,
            "judged": live.judged,
            "too_late": live.too_late,
            "model": self._feed.model,
            "ailing": self.ailing,
        }

    def _changed(self, rows: Sequence[Row]) -> None:
        self._fresh |= {row.number: row for row in rows}

    async def _follow_items(self) -> None:
        async for batch in read(self._settings, self._settings.items_topic, follow=True):
            self.titles.take(batch.records)

    async def _flush(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            if not self._fresh:
                continue
            rows = [self._fresh[number] for number in sorted(self._fresh)[-FLUSH_ROWS:]]
            passed, self._fresh = len(self._fresh) - len(rows), {}
            async with self._happened:
                self._happened.notify_all()
            if self.hub:
                self.hub.send("rows", {"rows": serializers.rows(rows, self.titles), "passed": passed})

    async def _beat(self) -> None:
        """A point of the charts a second."""
        await self._feed.ready.wait()
        log.info("console ready")
        while True:
            await asyncio.sleep(1 - time.time() % 1)
            point = self.live.tick(time.time())
            if self.hub:
                self.hub.send("point", {"point": point, "totals": self._totals()})

    async def _knock(self) -> None:
        """Asks the broker whether it is there: a consumer of a dead one just stays silent."""
        while True:
            await asyncio.sleep(BEAT_S)
            try:
                await check_access(access(self._settings), *on("Read", self._settings.events_topic))
                self.ailing = ""
            except UserError as error:
                self.ailing = str(error)
