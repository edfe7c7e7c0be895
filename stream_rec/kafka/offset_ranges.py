"""Reading stretches of a topic's partitions, from an offset to another."""

from collections.abc import AsyncIterator, Collection, Mapping
from typing import NamedTuple

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition


class OffsetRange(NamedTuple):
    """Offsets of a partition: from `begin` up to but not including `end`."""

    begin: int
    end: int


class RangeChunk(NamedTuple):
    partition: TopicPartition
    records: list[ConsumerRecord]
    """The next ones of the partition: none where Kafka has dropped them."""
    position: int
    """The offset that the reading has come to."""


async def read(
    reader: AIOKafkaConsumer, spans: Mapping[TopicPartition, OffsetRange], most: int
) -> AsyncIterator[RangeChunk]:
    """What stands in `spans`, up to `most` records at a time.

    `reader` is started, and its partitions are assigned here. Raises `KafkaError`.
    """
    left = {partition: span for partition, span in spans.items() if span.begin < span.end}
    if not left:  # aiokafka 0.14 loses the order to end that comes while it lets partitions go: `stop` would not return
        return
    reader.assign(list(left))
    for partition, span in left.items():
        reader.seek(partition, span.begin)
    while left:
        batches = await reader.getmany(*left, timeout_ms=100, max_records=most)
        for partition, (_, end) in list(left.items()):
            position = min(end, await reader.position(partition))
            yield RangeChunk(
                partition, [record for record in batches.get(partition, ()) if record.offset < end], position
            )
            if position == end:
                del left[partition]


async def since(
    reader: AIOKafkaConsumer, partitions: Collection[TopicPartition], time_ms: int | None
) -> dict[TopicPartition, OffsetRange]:
    """From the first record as young as `time_ms` (since 1970; None: from the beginning) to the present end."""
    ends = await reader.end_offsets(partitions)
    if time_ms is None:
        begins = await reader.beginning_offsets(partitions)
    else:
        found = await reader.offsets_for_times(dict.fromkeys(partitions, max(0, time_ms)))
        begins = {one: ends[one] if place is None else place.offset for one, place in found.items()}
    return {one: OffsetRange(begins[one], max(begins[one], ends[one])) for one in partitions}
