"""The items topic into the catalogue, while the worker serves: an upsert is recommendable within a step."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from stream_rec.config import Settings
from stream_rec.messages import UNREADABLE, Item, Rejected, read_item
from stream_rec.pipeline import dead_letters
from stream_rec.pipeline.batches import Unreadable
from stream_rec.pipeline.connection import access
from stream_rec.pipeline.consumer import make_consumer
from stream_rec.pipeline.patience import started
from stream_rec.telemetry import WorkerMetrics

log = logging.getLogger(__name__)

BATCH = 5_000
RETRY_S = 1.0


class Upserts:
    """Follows the items topic from its beginning, without a group: every worker has the whole catalogue.

    `admit` raises `Rejected` for an item that can't be used; `apply` takes those that can; `known` says which item an
    id has now, for a withdrawal (a tombstone). What can't be used becomes a dead letter.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: WorkerMetrics,
        *,
        admit: Callable[[Item], None],
        known: Callable[[str], Item | None],
        apply: Callable[[Sequence[Item]], Awaitable[None]],
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._admit = admit
        self._known = known
        self._apply = apply
        self._letters = dead_letters.DeadLetterWriter(settings, metrics.unwritten)
        self.caught_up = asyncio.Event()
        """Set once the catalogue stands where the topic stood at the start."""

    async def follow(self) -> None:
        """Runs until it is cancelled."""
        consumer = await started(self._reader)
        writing = asyncio.create_task(self._letters.run())
        try:
            await self._follow(consumer)
        finally:
            writing.cancel()
            await consumer.stop()

    async def _follow(self, consumer: AIOKafkaConsumer) -> None:
        ends: Mapping[TopicPartition, int] | None = None
        while True:
            try:
                if ends is None:
                    ends = await consumer.end_offsets(consumer.assignment())
                batches = await consumer.getmany(timeout_ms=200, max_records=BATCH)
            except KafkaError as error:
                log.warning("the items topic can't be read (%s): trying again", type(error).__name__)
                await asyncio.sleep(RETRY_S)
                continue
            await self._take([record for records in batches.values() for record in records])
            if not self.caught_up.is_set() and all(
                [await consumer.position(partition) >= end for partition, end in ends.items()]
            ):
                self.caught_up.set()

    def _reader(self) -> AIOKafkaConsumer:
        return make_consumer(
            access(self._settings),
            self._settings.items_topic,
            max_batch_bytes=self._settings.max_batch_bytes,
            passed_on=(Unreadable,),
            auto_offset_reset="earliest",
            max_partition_fetch_bytes=self._settings.max_message_bytes,
        )

    async def _take(self, records: Sequence[ConsumerRecord]) -> None:
        items: dict[str, Item] = {}
        for record in records:
            try:
                item = item_of(record, lambda name: items.get(name) or self._known(name))
                if item is not None:
                    self._admit(item)
            except Rejected as rejected:
                self._bury(record, rejected)
            else:
                if item is not None:
                    items[item.item_id] = item
        if items:
            await self._apply(list(items.values()))

    def _bury(self, record: ConsumerRecord, rejected: Rejected) -> None:
        """Every worker buries what it can't read, and again with each new model: dead letters are at least once."""
        self._metrics.dead_letters.labels(rejected.reason).inc()
        letter = dead_letters.to_dead_letter(
            record,
            rejected.reason,
            str(rejected),
            time_s=record.timestamp / 1_000,
            max_bytes=self._settings.max_message_bytes,
        )
        self._letters.add(letter)


def item_of(record: ConsumerRecord, held: Callable[[str], Item | None]) -> Item | None:
    """The item that a record of the topic leaves, None for nothing; `held` says what was there before it.

    A withdrawn item keeps its text: what users did with it stays readable. Raises `Rejected`.
    """
    if isinstance(record, Unreadable):
        raise Rejected(record.reason, record.error)
    if not record.key:
        raise Rejected("empty key")
    if record.value is None:
        item = held(record.key.decode(errors="replace"))
        return None if item is None else msgspec.structs.replace(item, available=False)
    try:
        item = read_item(record.value)
    except UNREADABLE as error:
        raise Rejected("unreadable item", str(error)) from None
    if item.item_id.encode() != record.key:
        raise Rejected("key is not the item_id")
    return item
