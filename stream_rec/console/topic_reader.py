"""Reading a topic from its beginning, without a group: what there is, and then, at will, what comes."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from stream_rec.config import Settings
from stream_rec.kafka.connection import access
from stream_rec.kafka.consumer import make_consumer

log = logging.getLogger(__name__)

BATCH = 2_000
RETRY_S = 1.0


class Batch(NamedTuple):
    records: Sequence[ConsumerRecord]
    share: float
    """How much was read of what the topic held at the start, 0 to 1."""


async def read(settings: Settings, topic: str, *, follow: bool, most: int | None = None) -> AsyncIterator[Batch]:
    """The committed records of a topic, each partition's in order; the last batch of what there was has the share 1.

    `follow`: goes on with what comes, and with empty batches while nothing does. `most`: of what there is, about the
    last `most` offsets. Without `follow` raises `KafkaError`; with it, tries again.
    """
    async with make_consumer(
        access(settings),
        topic,
        max_batch_bytes=settings.max_batch_bytes,
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=settings.max_message_bytes,
    ) as consumer:
        partitions = sorted(consumer.assignment())
        ends = await consumer.end_offsets(partitions)
        begins = await consumer.beginning_offsets(partitions)
        if most is not None:
            begins = {one: max(begin, ends[one] - most // len(partitions)) for one, begin in begins.items()}
        for partition, begin in begins.items():
            consumer.seek(partition, begin)
        share = 0.0
        while follow or share < 1:
            try:
                found = await consumer.getmany(timeout_ms=200, max_records=BATCH)
                if share < 1:
                    share = await _share(consumer, begins, ends)
            except KafkaError as error:
                if not follow:
                    raise
                log.warning("topic %s can't be read (%s): trying again", topic, type(error).__name__)
                await asyncio.sleep(RETRY_S)
                continue
            yield Batch([record for records in found.values() for record in records], share)


async def _share(
    consumer: AIOKafkaConsumer, begins: dict[TopicPartition, int], ends: dict[TopicPartition, int]
) -> float:
    """Exactly 1 when each partition's end is reached: records alone don't tell, as some offsets hold none."""
    total = sum(ends.values()) - sum(begins.values())
    left = sum([max(0, end - await consumer.position(one)) for one, end in ends.items()])
    return 1 - left / total if left else 1.0
