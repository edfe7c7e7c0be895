"""What the agents have refused of events that were sent: how many, and why."""

import asyncio
from collections import Counter
from typing import NamedTuple

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.structs import RecordMetadata

from stream_rec.config import Settings
from stream_rec.kafka.access_control import check_access, on
from stream_rec.kafka.connection import access, connect
from stream_rec.kafka.consumer import make_consumer
from stream_rec.kafka.dead_letters import Place, place_of, reason_of
from stream_rec.kafka.offset_ranges import OffsetRange, read, since
from stream_rec.kafka.topics import DEAD_LETTER_ROOM
from stream_rec.pipeline.buried import MARGIN_MS, READ

AGENTS_S = 10.0
"""How long the agents may take for the last of the events, seconds."""
POLL_S = 0.2


class Refusals(NamedTuple):
    by_reason: dict[str, int]
    """The most frequent reason first."""
    whole: bool
    """Whether the agents have committed all of the events."""


class Sent:
    """Where the events of one producer stand; others may have written between them."""

    def __init__(self) -> None:
        self._spans: dict[TopicPartition, OffsetRange] = {}
        self._first_ms: int | None = None

    def add(self, stored: RecordMetadata) -> None:
        span = self._spans.get(stored.topic_partition, OffsetRange(stored.offset, stored.offset))
        self._spans[stored.topic_partition] = OffsetRange(
            min(span.begin, stored.offset), max(span.end, stored.offset + 1)
        )
        self._first_ms = min(stored.timestamp, self._first_ms or stored.timestamp)

    async def refused(self, settings: Settings) -> Refusals:
        """Waits up to `AGENTS_S` seconds for the agents. Raises `KafkaError`, and `UserError` without the rights."""
        topic = settings.dead_letter_topic
        count = (await check_access(access(settings), *on("Read", topic)))[topic]
        whole = await self._committed(settings)
        reasons: dict[Place, str] = {}
        async with make_consumer(
            access(settings),
            max_batch_bytes=settings.max_batch_bytes,
            max_partition_fetch_bytes=settings.max_message_bytes + DEAD_LETTER_ROOM,
        ) as reader:
            partitions = [TopicPartition(topic, number) for number in range(count)]
            letters = await since(reader, partitions, (self._first_ms or 0) - MARGIN_MS)
            async for _, records, _ in read(reader, letters, READ):
                for record in records:
                    if (place := place_of(record.headers)) is not None and self._holds(place):
                        reasons[place] = reason_of(record.headers)
        return Refusals(dict(Counter(reasons.values()).most_common()), whole)

    def _holds(self, place: Place) -> bool:
        span = self._spans.get(TopicPartition(place.topic, place.partition))
        return span is not None and span.begin <= place.offset < span.end

    async def _committed(self, settings: Settings) -> bool:
        try:
            async with connect(access(settings)) as admin, asyncio.timeout(AGENTS_S):
                while True:
                    found = await admin.list_consumer_group_offsets(settings.agents_group)
                    if all(one in found and found[one].offset >= span.end for one, span in self._spans.items()):
                        return True
                    await asyncio.sleep(POLL_S)
        except (KafkaError, TimeoutError):
            return False
