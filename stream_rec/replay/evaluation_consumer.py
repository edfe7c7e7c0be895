"""Follows the topics while it all runs: events, dead letters, committed recommendations into the prequential join."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal, NamedTuple

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from stream_rec.config import Settings
from stream_rec.evaluation.baselines import Baselines
from stream_rec.evaluation.prequential import Prequential
from stream_rec.evaluation.report import Report
from stream_rec.kafka import access_control
from stream_rec.kafka.access_control import check_access
from stream_rec.kafka.connection import access
from stream_rec.kafka.consumer import make_consumer
from stream_rec.kafka.dead_letters import place_of, reason_of
from stream_rec.messages import UNREADABLE, Recommendation, event_in, read_recommendation
from stream_rec.pseudonyms import Naming, naming

log = logging.getLogger(__name__)

BATCH = 200
"""Records after which others on the event loop get their turn."""


class _Topics(NamedTuple):
    """In the order in which records that were read together are told."""

    dead_letters: str
    events: str
    recommendations: str


class _Until(NamedTuple):
    ends: dict[TopicPartition, int]
    quiet_s: float


@asynccontextmanager
async def following(
    settings: Settings, floors: Baselines, since: Literal["now", "beginning"] = "now"
) -> AsyncIterator["EvaluationConsumer"]:
    """A `EvaluationConsumer` of all that goes through the topics from now on, or from their beginning.

    Raises `UserError` when no broker answers or a topic does not exist.
    """
    topics = _Topics(settings.dead_letter_topic, settings.events_topic, settings.recommendations_topic)
    await check_access(access(settings), *access_control.report(settings))
    async with make_consumer(
        access(settings),
        *topics,
        max_batch_bytes=settings.max_batch_bytes,
        auto_offset_reset="earliest",
        fetch_max_wait_ms=100,
    ) as consumer:
        every = consumer.assignment()
        start = await (consumer.end_offsets(every) if since == "now" else consumer.beginning_offsets(every))
        for partition, offset in start.items():
            consumer.seek(partition, offset)
        first = {one.partition: offset for one, offset in start.items() if one.topic == topics.events}
        follower = EvaluationConsumer(consumer, topics, Prequential(floors, first), naming(settings.pseudonym_key_file))
        try:
            yield follower
        finally:
            await follower.stop()


class EvaluationConsumer:
    """Reads the topics in a task of its own; made by `following`.

    One consumer reads all three topics, dead letters before the events and recommendations that came with them. What is
    accepted is what the dead-letter topic does not tell of; nothing is counted in the process that fed.
    """

    def __init__(self, consumer: AIOKafkaConsumer, topics: "_Topics", prequential: Prequential, name: Naming) -> None:
        self._name = name
        self._consumer = consumer
        self._topics = topics
        self._until: _Until | None = None
        self._changed = time.monotonic()
        self.prequential = prequential
        self.report = Report()
        self.newest: Recommendation | None = None
        """The recommendation that was read last."""
        self._task = asyncio.create_task(self._read(), name="follower")

    async def drain(self, quiet_s: float = 30) -> None:
        """Reads on until all that is written so far is covered, or nothing was for `quiet_s` seconds; then ends."""
        written = [one for one in self._consumer.assignment() if one.topic != self._topics.recommendations]
        ends = await self._consumer.end_offsets(written)
        self._changed = time.monotonic()
        self._until = _Until(ends, quiet_s)
        await self._task

    async def stop(self) -> None:
        """Ends the task. Raises what ended it before, if anything did."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    def summary(self) -> dict[str, Any]:
        """The report as it stands, for JSON."""
        return self.report.summary(self.prequential)

    async def _read(self) -> None:
        refused = [one for one in self._consumer.assignment() if one.topic == self._topics.dead_letters]
        ends = await self._consumer.end_offsets(refused)
        while not await self._at(ends):
            self._tell(await self._consumer.getmany(*refused, timeout_ms=100))
        while not await self._finished():
            lost = self.prequential.lost()
            self._tell(await self._consumer.getmany(*refused, timeout_ms=0))
            self._tell(await self._consumer.getmany(timeout_ms=100, max_records=BATCH))
            if self.prequential.lost() != lost:
                self._changed = time.monotonic()
            await asyncio.sleep(0)

    async def _finished(self) -> bool:
        if self._until is None:
            return False
        if time.monotonic() > self._changed + self._until.quiet_s:
            return True
        return not self.prequential.lost() and await self._at(self._until.ends)

    async def _at(self, ends: dict[TopicPartition, int]) -> bool:
        return all([await self._consumer.position(one) >= end for one, end in ends.items()])

    def _tell(self, batches: dict[TopicPartition, list[ConsumerRecord]]) -> None:
        for partition in sorted(batches, key=lambda one: self._topics.index(one.topic)):
            for record in batches[partition]:
                self._take(partition, record)

    def _take(self, partition: TopicPartition, record: ConsumerRecord) -> None:
        if partition.topic == self._topics.dead_letters:
            self._dead_letter(record)
        elif partition.topic == self._topics.recommendations:
            self._recommendation(record)
        elif self._until is None or record.offset < self._until.ends[partition]:
            self._event(record)

    def _event(self, record: ConsumerRecord) -> None:
        event = event_in(record.key, record.value, self._name)
        if event is None:
            self.prequential.unreadable(record.partition, record.offset)
            return
        self.report.add(
            self.prequential.event(
                record.partition, record.offset, event.user_id, event.item_id, event.event_type, _seconds(record)
            )
        )

    def _recommendation(self, record: ConsumerRecord) -> None:
        if record.value is None:  # the tombstone of an erased user
            return
        try:
            recommendation = read_recommendation(record.value)
        except UNREADABLE as error:
            log.warning("recommendation at %s/%s can't be read: %s", record.partition, record.offset, error)
            return
        self.newest = recommendation
        self.report.add(self.prequential.recommendation(record.partition, recommendation, _seconds(record)))

    def _dead_letter(self, record: ConsumerRecord) -> None:
        place = place_of(record.headers)
        if place is None:
            log.warning("dead letter at %s/%s does not say where it came from", record.partition, record.offset)
        elif place.topic == self._topics.events:
            self.prequential.dead_letter(place.partition, place.offset, reason_of(record.headers))


def _seconds(record: ConsumerRecord) -> float:
    return float(record.timestamp) / 1_000
