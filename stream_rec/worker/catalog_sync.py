"""The items topic into the catalogue, while the worker serves: an upsert is recommendable within a step.

An item whose text can't be encoded now holds up nothing: the worker serves, other items are applied, and its text is
tried again.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from stream_rec.config import Settings
from stream_rec.errors import UserError
from stream_rec.kafka import dead_letters
from stream_rec.kafka.connection import access
from stream_rec.kafka.consumer import make_consumer
from stream_rec.kafka.item_records import Entry, changes_in
from stream_rec.kafka.record_batches import Unreadable
from stream_rec.messages import Item, Rejected
from stream_rec.metrics import WorkerMetrics
from stream_rec.runtime.retry import keep_running, start_with_retry

log = logging.getLogger(__name__)

BATCH = 5_000
RETRY_S = 1.0
FIRST_S, LONGEST_S = 1.0, 60.0
"""The pause before texts are tried again for the first time, and the longest one."""


class Catalogue(Protocol):
    """What the items go into."""

    def admit(self, item: Item) -> None:
        """Raises `Rejected` for an item that can't be used."""

    def news(self, items: Sequence[Item]) -> list[Item]:
        """Those of `items` that change anything."""

    def needs_encoder(self, item: Item) -> bool:
        """Whether the text of `item` has to be encoded first."""


class CatalogConsumer:
    """Follows the items topic from its beginning, without a group: every worker has the whole catalogue.

    `apply` brings items into the catalogue: it raises `Rejected` where it can't use them, `UserError` where their texts
    can't be encoded now. `withdraw` takes items out of the answers. What can't be used becomes a dead letter.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: WorkerMetrics,
        *,
        catalogue: Catalogue,
        apply: Callable[[Sequence[Item]], Awaitable[None]],
        withdraw: Callable[[Sequence[str]], Awaitable[None]],
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._catalogue = catalogue
        self._apply = apply
        self._withdraw = withdraw
        self._letters = dead_letters.DeadLetterWriter(settings, metrics.unwritten)
        self._waiting: dict[str, Entry] = {}
        """Items whose texts could not be encoded, by id."""
        self._unread: str | None = None
        """What the following ended by, until it is up to date again."""
        self._pause_s = FIRST_S
        self._next_try = 0.0
        self.caught_up = asyncio.Event()
        """Set once the catalogue stands where the topic stood at the start, but for texts that can't be encoded."""

    @property
    def troubles(self) -> set[str]:
        """What is wrong, in words."""
        texts = f"the texts of {len(self._waiting)} items can't be encoded" if self._waiting else None
        return {trouble for trouble in (texts, self._unread) if trouble}

    async def follow(self) -> None:
        """Runs until it is cancelled; begins again after an error.

        Raises one that isn't Kafka's before it has caught up: the catalogue would be an incomplete one.
        """
        writing = asyncio.create_task(self._letters.run())
        try:
            await keep_running(self._read, self._failed)
        finally:
            writing.cancel()

    def _failed(self, error: Exception) -> None:
        if not (self.caught_up.is_set() or isinstance(error, KafkaError)):
            raise error
        self._unread = "the items topic can't be read"
        if not isinstance(error, KafkaError):
            self._metrics.failures.labels("items").inc()
        log.warning("%s (%s): trying again", self._unread, type(error).__name__)

    async def _read(self) -> None:
        consumer = await start_with_retry(self._reader)
        try:
            await self._follow(consumer)
        finally:
            await consumer.stop()

    async def _follow(self, consumer: AIOKafkaConsumer) -> None:
        ends: Mapping[TopicPartition, int] | None = None
        behind = True
        while True:
            try:
                if ends is None:
                    ends = await consumer.end_offsets(consumer.assignment())
                batches = await consumer.getmany(timeout_ms=200, max_records=BATCH)
            except KafkaError as error:
                log.warning("the items topic can't be read (%s): trying again", type(error).__name__)
                await asyncio.sleep(RETRY_S)
                continue
            await self.take([record for records in batches.values() for record in records])
            if behind and all([await consumer.position(partition) >= end for partition, end in ends.items()]):
                behind, self._unread = False, None
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

    async def take(self, records: Sequence[ConsumerRecord]) -> None:
        """Applies `records`, and tries again what waits for its text, when it is time to."""
        changes = changes_in(records, self._catalogue.admit, self._settings.max_item_bytes, self._to_dead_letter)
        for item_id in (*changes.withdrawn, *(item.item_id for _, item in changes.items)):
            self._waiting.pop(item_id, None)
        if changes.withdrawn:
            await self._withdraw(changes.withdrawn)
        changed = {item.item_id for item in self._catalogue.news([item for _, item in changes.items])}
        news = [entry for entry in changes.items if entry[1].item_id in changed]
        told = [entry for entry in news if self._catalogue.needs_encoder(entry[1])]
        await self._apply_items([entry for entry in news if not self._catalogue.needs_encoder(entry[1])])
        if time.monotonic() < self._next_try:
            await self._retry_later(told)
        else:
            told, self._waiting = [*self._waiting.values(), *told], {}
            await self._apply_items(told)
            if not self._waiting:
                self._pause_s = FIRST_S

    async def _apply_items(self, entries: Sequence[Entry]) -> None:
        """Applies items; should that fail, halves of them, so that the one at fault becomes a dead letter."""
        if not entries:
            return
        try:
            await self._apply([item for _, item in entries])
        except Rejected as rejected:
            for record, _ in entries:
                self._to_dead_letter(record, rejected)
        except UserError as error:
            self._metrics.failures.labels("text encoder").inc()
            self._next_try = time.monotonic() + self._pause_s
            await self._retry_later(entries)
            log.warning(
                "the texts of %d items can't be encoded; trying again in %.0f s: %s",
                len(self._waiting),
                self._pause_s,
                error,
            )
            self._pause_s = min(LONGEST_S, 2 * self._pause_s)
        except Exception as error:  # noqa: BLE001 - one item must neither end the following nor vanish
            if len(entries) > 1:
                half = len(entries) // 2
                await self._apply_items(entries[:half])
                await self._apply_items(entries[half:])
            else:
                self._to_dead_letter(entries[0][0], Rejected("internal error", type(error).__name__))
        else:
            self._metrics.upserts.inc(len(entries))

    async def _retry_later(self, entries: Sequence[Entry]) -> None:
        """Keeps items for later; one that may be recommended no more is taken out of the answers at once."""
        self._waiting |= {item.item_id: (record, item) for record, item in entries}
        if gone := [item.item_id for _, item in entries if not item.available]:
            await self._withdraw(gone)

    def _to_dead_letter(self, record: ConsumerRecord, rejected: Rejected) -> None:
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
