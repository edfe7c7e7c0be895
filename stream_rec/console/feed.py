"""Events, answers and dead letters into the live stream, as they come."""

import asyncio
import logging
from collections.abc import Callable, Sequence

from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from stream_rec.config import Settings
from stream_rec.console.live import Live, Row
from stream_rec.console.topic_reader import RETRY_S
from stream_rec.console.trends import Trends
from stream_rec.kafka.connection import access
from stream_rec.kafka.consumer import make_consumer
from stream_rec.kafka.dead_letters import place_of
from stream_rec.kafka.record_batches import Unreadable
from stream_rec.messages import UNREADABLE, event_in, read_recommendation
from stream_rec.pseudonyms import naming

log = logging.getLogger(__name__)

BATCH = 500
RANKED = 10
"""Items of an answer that count as recommended."""


class EventFeed:
    """Reads events, dead letters and committed recommendations from now on.

    `changed` hears of the rows that are new or have changed, after each batch.
    """

    def __init__(
        self, settings: Settings, live: Live, trends: Trends, changed: Callable[[Sequence[Row]], None]
    ) -> None:
        self._topics = (settings.dead_letter_topic, settings.events_topic, settings.recommendations_topic)
        self._settings = settings
        self._name = naming(settings.pseudonym_key_file)
        self._live = live
        self._trends = trends
        self._changed = changed
        self.model = ""
        """Of the answer that was read last."""
        self.unreadable = 0
        """Events and answers."""
        self.ready = asyncio.Event()
        """Set when nothing that is written from now on will be missed."""

    async def run(self) -> None:
        """Runs until it is cancelled."""
        async with make_consumer(
            access(self._settings),
            *self._topics,
            max_batch_bytes=self._settings.max_batch_bytes,
            on_skipped=self._skip,
            auto_offset_reset="latest",
            max_partition_fetch_bytes=self._settings.max_message_bytes,
            fetch_max_wait_ms=50,
        ) as consumer:
            for partition, end in (await consumer.end_offsets(consumer.assignment())).items():
                consumer.seek(partition, end)
            self.ready.set()
            while True:
                try:
                    found = await consumer.getmany(timeout_ms=200, max_records=BATCH)
                except KafkaError as error:
                    log.warning("the topics can't be read (%s): trying again", type(error).__name__)
                    await asyncio.sleep(RETRY_S)
                    continue
                rows = self._take(found)
                if rows:
                    self._changed(rows)
                await asyncio.sleep(0)

    def _skip(self, _record: Unreadable) -> None:
        self.unreadable += 1

    def _take(self, found: dict[TopicPartition, list[ConsumerRecord]]) -> list[Row]:
        """The rows that are new or have changed, oldest first; events are told before the answers to them."""
        dead_letters, events, recommendations = self._topics
        rows: dict[int, Row] = {}
        for partition in sorted(found, key=lambda one: (events, recommendations, dead_letters).index(one.topic)):
            for record in found[partition]:
                if partition.topic == events:
                    told = self._event(record)
                elif partition.topic == recommendations:
                    told = self._answer(record)
                else:
                    told = self._dead_letter(record)
                rows |= {row.number: row for row in told}
        return [rows[number] for number in sorted(rows)]

    def _event(self, record: ConsumerRecord) -> list[Row]:
        event = event_in(record.key, record.value, self._name)
        if event is None:
            self.unreadable += 1
            return []
        time_s = record.timestamp / 1_000
        row = self._live.event(record.partition, record.offset, event, time_s)
        if row is None:
            return []
        self._trends.event(row.item, row.event_type, time_s)
        return [row]

    def _answer(self, record: ConsumerRecord) -> list[Row]:
        if not record.value:  # the tombstone of an erased user, whose erasure is an event too
            return []
        try:
            answer = read_recommendation(record.value)
        except UNREADABLE:
            self.unreadable += 1
            return []
        time_s = record.timestamp / 1_000
        self.model = answer.model
        self._trends.recommended((ranked.item_id for ranked in answer.items[:RANKED]), time_s)
        return self._live.answer(record.partition, answer, time_s)

    def _dead_letter(self, record: ConsumerRecord) -> list[Row]:
        place = place_of(record.headers)
        if place is None or place.topic != self._settings.events_topic:
            return []
        reason = dict(record.headers).get("reason", b"").decode(errors="replace")
        row = self._live.dead_letter(place.partition, place.offset, reason)
        return [] if row is None else [row]
