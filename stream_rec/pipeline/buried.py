"""Which events are dead letters already although no agent has committed them: they are not buried twice.

An agent that crashed has written dead letters after its last commit, and whoever takes its partitions over reads those
events again. A window tells by its offset that an event was applied; what was refused only the dead letters tell.
"""

from collections.abc import Collection

from aiokafka import AIOKafkaConsumer, TopicPartition

from stream_rec.config import Settings
from stream_rec.pipeline.batches import Unreadable
from stream_rec.pipeline.connection import access
from stream_rec.pipeline.consumer import make_consumer
from stream_rec.pipeline.dead_letters import Place, place_of
from stream_rec.pipeline.granted import require
from stream_rec.pipeline.rights import on
from stream_rec.pipeline.spans import Span, read, since
from stream_rec.pipeline.topic_guard import valid
from stream_rec.pipeline.topics import DEAD_LETTER_ROOM

MARGIN_MS = 60_000
"""How far the clocks of Kafka's brokers may be apart, milliseconds."""
READ = 1_000


async def buried(settings: Settings, partitions: Collection[int], committed_for: str) -> set[Place]:
    """Of the events of `partitions` that the agents have not committed, those with a dead letter.

    `committed_for` is what a commit must be valid for, see `topic_guard`.

    A dead letter is younger than its event, and both times are Kafka's: what is older than the oldest of those events
    is not read. Raises `KafkaError`, and `UserError` when no broker answers.
    """
    topic = settings.dead_letter_topic
    count = (await require(access(settings), *on("Read", topic)))[topic]
    graveyard = [TopicPartition(topic, number) for number in range(count)]
    reader = make_consumer(
        access(settings),
        max_batch_bytes=settings.max_batch_bytes,
        passed_on=(Unreadable,),  # the first record of a span says how old it is
        group_id=settings.agents_group,  # asked for its commits; never joined
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=settings.max_message_bytes + DEAD_LETTER_ROOM,
    )
    async with reader:
        events = [TopicPartition(settings.events_topic, number) for number in partitions]
        open_ = await _uncommitted(reader, events, committed_for)
        times = [time for one, span in open_.items() if (time := await _time_of(reader, one, span)) is not None]
        if not times:
            return set()
        letters = await since(reader, graveyard, min(times) - MARGIN_MS)
        found: set[Place] = set()
        async for _, records, _ in read(reader, letters, READ):
            found.update(place for record in records if (place := place_of(record.headers)) is not None)
    return {
        place
        for place in found
        if (span := open_.get(TopicPartition(place.topic, place.partition))) and place.offset >= span.begin
    }


async def _uncommitted(
    reader: AIOKafkaConsumer, partitions: Collection[TopicPartition], committed_for: str
) -> dict[TopicPartition, Span]:
    begins, ends = await reader.beginning_offsets(partitions), await reader.end_offsets(partitions)
    reader.assign(partitions)
    committed = await reader._coordinator.fetch_committed_offsets(list(partitions))
    done = {one: offset for one, (offset, made_for) in committed.items() if valid(made_for, committed_for)}
    spans = {one: Span(max(begins[one], done.get(one, 0)), ends[one]) for one in partitions}
    return {one: span for one, span in spans.items() if span.begin < span.end}


async def _time_of(reader: AIOKafkaConsumer, partition: TopicPartition, span: Span) -> int | None:
    """Of the first record in `span`, milliseconds."""
    async for _, records, _ in read(reader, {partition: span}, 1):
        for record in records:
            return int(record.timestamp)
    return None
