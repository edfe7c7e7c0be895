"""Which events are done already although no agent has committed them: they are not done twice.

Whoever takes the partitions of a crashed agent over reads again what that one has not committed. Of an event that was
applied, the window tells by its offset. Of one that was refused, its dead letter tells. An erasure leaves no window:
its tombstone tells, for itself and for all that its user did before.
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from stream_rec.config import Settings
from stream_rec.kafka.access_control import check_access, on
from stream_rec.kafka.connection import access
from stream_rec.kafka.consumer import make_consumer
from stream_rec.kafka.dead_letters import Place, place_of
from stream_rec.kafka.offset_ranges import OffsetRange, read, since
from stream_rec.kafka.record_batches import Unreadable
from stream_rec.kafka.topic_guard import valid
from stream_rec.kafka.topics import DEAD_LETTER_ROOM
from stream_rec.messages import UNREADABLE, read_window

MARGIN_MS = 60_000
"""How far the clocks of Kafka's brokers may be apart, milliseconds."""
READ = 1_000
TAIL = 5_000
"""Records at the end of a partition of windows that are looked through first: agents commit twice a second."""


class Done(NamedTuple):
    """What is done of the events that are not committed."""

    buried: set[Place]
    """Those with a dead letter."""
    erased: dict[tuple[int, bytes], int]
    """By partition and user's key, the offset of the event that erased them, and that nothing has followed."""


async def done(settings: Settings, partitions: Collection[int], committed_for: str, topic_id: str) -> Done:
    """Of the events of `partitions` that the agents have not committed.

    `committed_for` is what a commit must be valid for, see `topic_guard`; `topic_id` is Kafka's of the events topic.

    Dead letters and tombstones are younger than their events, and the times are Kafka's: what is older than the oldest
    of those events is not read. Raises `KafkaError`, and `UserError` when no broker answers.
    """
    topic = settings.dead_letter_topic
    count = (await check_access(access(settings), *on("Read", topic)))[topic]
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
        oldest = {one: time for one, span in open_.items() if (time := await _time_of(reader, one, span)) is not None}
        buried = await _buried(reader, graveyard, open_, min(oldest.values())) if oldest else set()
        erased: dict[tuple[int, bytes], int] = {}
        for one, time_ms in oldest.items():
            windows = TopicPartition(settings.windows_topic, one.partition)
            found = await _erased(reader, windows, open_[one], time_ms - MARGIN_MS, topic_id)
            erased |= {(one.partition, key): offset for key, offset in found.items()}
    return Done(buried, erased)


async def _buried(
    reader: AIOKafkaConsumer,
    graveyard: Collection[TopicPartition],
    open_: Mapping[TopicPartition, OffsetRange],
    oldest_ms: int,
) -> set[Place]:
    letters = await since(reader, graveyard, oldest_ms - MARGIN_MS)
    found: set[Place] = set()
    async for _, records, _ in read(reader, letters, READ):
        found.update(place for record in records if (place := place_of(record.headers)) is not None)
    return {
        place
        for place in found
        if (span := open_.get(TopicPartition(place.topic, place.partition))) and place.offset >= span.begin
    }


async def _erased(
    reader: AIOKafkaConsumer, windows: TopicPartition, open_: OffsetRange, since_ms: int, topic_id: str
) -> dict[bytes, int]:
    """The users whose newest window is a tombstone for one of the events `open_`, and that event's offset.

    Windows stand in the order of their events: the last ones are read, as many as it takes to see one of an event
    before, or from before `since_ms`. Windows and tombstones of another events topic than `topic_id` tell nothing.
    """
    begin = (await reader.beginning_offsets([windows]))[windows]
    end = (await reader.end_offsets([windows]))[windows]
    tail = TAIL
    while True:
        start = max(begin, end - tail)
        erased: dict[bytes, int] = {}
        beyond = start == begin
        async for _, records, _ in read(reader, {windows: OffsetRange(start, end)}, READ):
            for record in records:
                offset = _event_of(record, topic_id)
                erased.pop(record.key, None)
                if record.timestamp < since_ms or (offset is not None and offset < open_.begin):
                    beyond = True
                elif record.value is None and offset is not None and offset < open_.end:
                    erased[record.key] = offset
        if beyond:
            return erased
        tail *= 8


def _event_of(record: ConsumerRecord, topic_id: str) -> int | None:
    """The offset of the event that a record of the windows topic was written for; None where it does not say."""
    try:
        if record.value is None:
            told = dict(record.headers)
            return int(told["offset"]) if told["topic_id"].decode() == topic_id else None
        window = read_window(record.value)
        return window.offset if window.topic_id in ("", topic_id) else None
    except (*UNREADABLE, KeyError, ValueError):
        return None


async def _uncommitted(
    reader: AIOKafkaConsumer, partitions: Collection[TopicPartition], committed_for: str
) -> dict[TopicPartition, OffsetRange]:
    begins, ends = await reader.beginning_offsets(partitions), await reader.end_offsets(partitions)
    reader.assign(partitions)
    committed = await reader._coordinator.fetch_committed_offsets(list(partitions))
    done = {one: offset for one, (offset, made_for) in committed.items() if valid(made_for, committed_for)}
    spans = {one: OffsetRange(max(begins[one], done.get(one, 0)), ends[one]) for one in partitions}
    return {one: span for one, span in spans.items() if span.begin < span.end}


async def _time_of(reader: AIOKafkaConsumer, partition: TopicPartition, span: OffsetRange) -> int | None:
    """Of the first record in `span`, milliseconds."""
    async for _, records, _ in read(reader, {partition: span}, 1):
        for record in records:
            return int(record.timestamp)
    return None
