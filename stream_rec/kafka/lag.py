"""How far a process is behind, what holds it up, and whether Kafka answers."""

import asyncio
import logging
from collections.abc import Awaitable, Mapping
from typing import NamedTuple

from aiokafka.errors import IllegalStateError, KafkaError
from prometheus_client import Counter, Gauge

from stream_rec.health import BROKER_UNREACHABLE, Health
from stream_rec.kafka.consumer import FailedFetches

log = logging.getLogger(__name__)

PATIENCE_S = 3.0
"""After how long without an answer Kafka counts as away, seconds."""


class LagMonitor:
    """The gauge of records that wait, by partition; says when Kafka goes away and comes back."""

    def __init__(self, gauge: Gauge, health: Health) -> None:
        self._gauge = gauge
        self._health = health
        self._shown: set[int] = set()

    async def measure(self, asked: Awaitable[Mapping[int, int]]) -> None:
        """Shows the answer: the records that wait in each partition. No answer in time: Kafka is away."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                waiting = await asked
        except IllegalStateError:  # a partition has just moved
            return
        except (KafkaError, TimeoutError):
            if BROKER_UNREACHABLE not in self._health.not_ready_reasons:
                log.warning("%s: waiting for it", BROKER_UNREACHABLE)
            self._health.not_ready_reasons.add(BROKER_UNREACHABLE)
            return
        if BROKER_UNREACHABLE in self._health.not_ready_reasons:
            log.warning("Kafka answers again")
        self._health.not_ready_reasons.discard(BROKER_UNREACHABLE)
        self._health.waiting = sum(waiting.values())
        for partition in self._shown - waiting.keys():
            self._gauge.remove(str(partition))
        for partition, records in waiting.items():
            self._gauge.labels(str(partition)).set(records)
        self._shown = set(waiting)


def show_failed(failed: FailedFetches, counter: Counter, health: Health) -> None:
    """Counts the fetches that have failed since the last call, and says which partitions can't be read."""
    counter.inc(failed.take_count())
    health.unread = failed.reasons


class Readable(NamedTuple):
    """How far a partition can be read."""

    stable: int
    """Before the first record of the oldest open transaction, or the end."""
    end: int


class HeldUp:
    """The gauge of how long an open transaction has kept the records behind it from being read, by partition.

    Its producer may be another than that of those records. Kafka ends it after the time-out that its producer asked
    for, one minute unless it asked for more.
    """

    def __init__(self, gauge: Gauge) -> None:
        self._gauge = gauge
        self._since: dict[int, tuple[int, float]] = {}

    def show(self, partitions: Mapping[int, Readable], now: float) -> None:
        """`now` in seconds, of a clock that does not go back."""
        held = {partition: read.stable for partition, read in partitions.items() if read.stable < read.end}
        before = self._since
        self._since = {
            partition: before[partition] if before.get(partition, (None,))[0] == stable else (stable, now)
            for partition, stable in held.items()
        }
        self._gauge.clear()
        for partition in partitions:
            since = self._since[partition][1] if partition in held else now
            self._gauge.labels(str(partition)).set(now - since)
