"""Which events are dead letters already although no agent has committed them: they are not buried twice.

An agent that crashed has written dead letters after its last commit, and whoever takes its partitions over reads those
events again. A window tells by its offset that an event was applied; what was refused only the dead letters tell.
"""

from collections.abc import Collection, Mapping

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from stream_rec.config import Settings
from stream_rec.pipeline.connection import require
from stream_rec.pipeline.group import heed_errors
from stream_rec.pipeline.spans import Span, read
from stream_rec.pipeline.topics import DEAD_LETTER_ROOM

MARGIN_MS = 60_000
"""How far the clocks of Kafka's brokers may be apart, milliseconds."""
READ = 1_000

Place = tuple[int, int]
"""Partition and offset of an event."""


async def buried(settings: Settings, partitions: Collection[int]) -> set[Place]:
    """Of the events of `partitions` that the agents have not committed, those with a dead letter.

    A dead letter is younger than its event, and both times are Kafka's: what is older than the oldest of those events
    is not read. Raises `KafkaError`, and `UserError` when no broker answers.
    """
    topic = settings.dead_letter_topic
    count = (await require(settings.bootstrap_servers, topic))[topic]
    graveyard = [TopicPartition(topic, number) for number in range(count)]
    reader = AIOKafkaConsumer(
        bootstrap_servers=settings.bootstrap_servers,
        group_id=settings.agents_group,  # asked for its commits; never joined
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=settings.max_message_bytes + DEAD_LETTER_ROOM,
    )
    async with reader:
        heed_errors(reader._coordinator)
        open_ = await _uncommitted(reader, [TopicPartition(settings.events_topic, number) for number in partitions])
        times = [time for one, span in open_.items() if (time := await _time_of(reader, one, span)) is not None]
        if not times:
            return set()
        letters = await _since(reader, graveyard, min(times) - MARGIN_MS)
        found: set[Place] = set()
        async for _, records, _ in read(reader, letters, READ):
            found.update(place for record in records if (place := _place(record, settings.events_topic)))
    begins = {one.partition: span.begin for one, span in open_.items()}
    return {(partition, offset) for partition, offset in found if offset >= begins.get(partition, offset + 1)}


async def _uncommitted(reader: AIOKafkaConsumer, partitions: Collection[TopicPartition]) -> dict[TopicPartition, Span]:
    begins, ends = await reader.beginning_offsets(partitions), await reader.end_offsets(partitions)
    reader.assign(partitions)
    spans = {one: Span(max(begins[one], await reader.committed(one) or 0), ends[one]) for one in partitions}
    return {one: span for one, span in spans.items() if span.begin < span.end}


async def _time_of(reader: AIOKafkaConsumer, partition: TopicPartition, span: Span) -> int | None:
    """Of the first record in `span`, milliseconds."""
    async for _, records, _ in read(reader, {partition: span}, 1):
        for record in records:
            return int(record.timestamp)
    return None


async def _since(
    reader: AIOKafkaConsumer, partitions: Collection[TopicPartition], time_ms: int
) -> Mapping[TopicPartition, Span]:
    first = await reader.offsets_for_times(dict.fromkeys(partitions, time_ms))
    ends = await reader.end_offsets(partitions)
    return {one: Span(at.offset, ends[one]) for one, at in first.items() if at is not None}


def _place(letter: ConsumerRecord, topic: str) -> Place | None:
    """Of the event that `letter` holds; None for what is no dead letter of `topic`, or none of ours."""
    headers = dict(letter.headers)
    try:
        if headers["topic"].decode() != topic:
            return None
        return int(headers["partition"]), int(headers["offset"])
    except (KeyError, ValueError):
        return None
