"""How far a process is behind, and whether Kafka answers."""

import asyncio
import logging
from collections.abc import Awaitable, Mapping

from aiokafka.errors import IllegalStateError, KafkaError
from prometheus_client import Gauge

from stream_rec.health import AWAY, Health

log = logging.getLogger(__name__)

PATIENCE_S = 3.0
"""After how long without an answer Kafka counts as away, seconds."""


class Lag:
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
            if AWAY not in self._health.hindrances:
                log.warning("%s: waiting for it", AWAY)
            self._health.hindrances.add(AWAY)
            return
        if AWAY in self._health.hindrances:
            log.warning("Kafka answers again")
        self._health.hindrances.discard(AWAY)
        self._health.waiting = sum(waiting.values())
        for partition in self._shown - waiting.keys():
            self._gauge.remove(str(partition))
        for partition, records in waiting.items():
            self._gauge.labels(str(partition)).set(records)
        self._shown = set(waiting)
