"""Feeds the log and listens to the answers meanwhile: what is under way, and how long a recovery takes."""

import asyncio
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple, Self

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from aiokafka.structs import RecordMetadata

from stream_rec.config import Settings
from stream_rec.kafka.aiokafka_compat import correct
from stream_rec.kafka.connection import access
from stream_rec.kafka.consumer import make_consumer
from stream_rec.messages import read_recommendation
from tests.e2e.kafka import LARGE, Sent


class Moment(NamedTuple):
    offset: int
    """Of an event."""
    time_s: float
    """Since 1970."""


class Traffic:
    """An async context manager that feeds `records` at `rate` a second, and reads the committed recommendations."""

    def __init__(self, settings: Settings, records: Iterator[Sent], rate: float) -> None:
        self._settings = settings
        self._records = records
        self._rate = rate
        self._over = asyncio.Event()
        self._stored: defaultdict[int, list[Moment]] = defaultdict(list)
        self._answered: defaultdict[int, list[Moment]] = defaultdict(list)

    async def __aenter__(self) -> Self:
        self._feeding = asyncio.create_task(self._feed())
        self._listening = asyncio.create_task(self._listen())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over.set()
        self._listening.cancel()
        await asyncio.gather(self._feeding, self._listening, return_exceptions=True)

    @property
    def events(self) -> int:
        """Records that Kafka has stored."""
        return sum(map(len, self._stored.values()))

    @property
    def answers(self) -> int:
        return sum(map(len, self._answered.values()))

    async def end(self) -> None:
        """Feeds no more; raises what went wrong with the feeding."""
        self._over.set()
        await self._feeding

    def check(self) -> None:
        """Raises what has ended the feeding or the listening, if anything has."""
        for task in (self._feeding, self._listening):
            if task.done():
                task.result()

    def healed(self, since_s: float) -> float | None:
        """When what was written after `since_s` began to be answered in every partition; None: not yet."""
        moments = [self._answer_after(partition, since_s) for partition in range(self._settings.partitions)]
        return None if None in moments else max(moment for moment in moments if moment is not None)

    def _answer_after(self, partition: int, since_s: float) -> float | None:
        stored, answered = self._stored[partition], self._answered[partition]
        first = bisect_left(stored, since_s, key=lambda moment: moment.time_s)
        if first == len(stored):
            return None
        at = bisect_left(answered, stored[first].offset, key=lambda moment: moment.offset)
        return answered[at].time_s if at < len(answered) else None

    async def _feed(self) -> None:
        began = time.monotonic()
        options = {"enable_idempotence": True, "linger_ms": 2, "max_request_size": LARGE}
        producer = AIOKafkaProducer(bootstrap_servers=self._settings.bootstrap_servers, **options)
        correct(producer.client)
        async with producer:
            for number, (key, value) in enumerate(self._records):
                wait_s = began + number / self._rate - time.monotonic()
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, wait_s)):
                        await self._over.wait()
                if self._over.is_set():
                    break
                sent = await producer.send(self._settings.events_topic, value, key=key)
                sent.add_done_callback(self._store)

    def _store(self, sent: "asyncio.Future[RecordMetadata]") -> None:
        stored = sent.result()
        self._stored[stored.partition].append(Moment(stored.offset, stored.timestamp / 1_000))

    async def _listen(self) -> None:
        async with make_consumer(
            access(self._settings), self._settings.recommendations_topic, auto_offset_reset="earliest"
        ) as consumer:
            while True:
                try:
                    batches = await consumer.getmany(timeout_ms=100)
                except KafkaError:
                    await asyncio.sleep(0.2)
                    continue
                for partition, records in batches.items():
                    answered = self._answered[partition.partition]
                    now = time.time()
                    offsets = [read_recommendation(record.value).offset for record in records if record.value]
                    answered += [Moment(offset, now) for offset in offsets]


def longest_recovery(disturbances: Sequence[float], traffic: Traffic) -> float:
    """Seconds from a disturbance to the first answer to what was written after it, in the slowest partition.

    One that was followed by the next before that is not counted: the last one of a series is.
    """
    longest = 0.0
    for since_s, until_s in zip(disturbances, [*disturbances[1:], float("inf")], strict=True):
        healed = traffic.healed(since_s)
        if healed is not None and healed <= until_s:
            longest = max(longest, healed - since_s)
    return longest
