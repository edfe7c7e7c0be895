"""Writing to a topic: as fast as Kafka takes it, in order for each key, with every acknowledgement counted."""

import logging
from asyncio import Future
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from aiokafka.structs import RecordMetadata

from stream_rec.config import Settings
from stream_rec.errors import UserError
from stream_rec.kafka.access_control import check_access, on
from stream_rec.kafka.aiokafka_compat import correct
from stream_rec.kafka.connection import access
from stream_rec.messages import Item, Rejected, encode, read_entry

log = logging.getLogger(__name__)


def _ignore(_stored: RecordMetadata) -> None:
    """The default of `Publisher`."""


class Publisher:
    """Sends records to one topic; an async context manager that flushes when it ends.

    Records are not awaited one by one: Kafka's producer holds one open batch a partition, blocks when that is full, and
    is idempotent, so that a retry neither doubles nor reorders. Raises `UserError` when no broker answers, the topic
    does not exist, or Kafka refuses a record; the refusal shows with a later record, or at the end.

    `on_stored` hears where and when Kafka stored each record.
    """

    def __init__(self, settings: Settings, topic: str, on_stored: Callable[[RecordMetadata], None] = _ignore) -> None:
        self._settings = settings
        self._topic = topic
        self._on_stored = on_stored
        self._refused: BaseException | None = None
        self.acknowledged = 0
        """Records that Kafka has stored."""

    async def __aenter__(self) -> Self:
        await check_access(access(self._settings), *on("Write", self._topic))
        self._producer = AIOKafkaProducer(
            **access(self._settings),
            enable_idempotence=True,
            linger_ms=5,  # as Kafka's own producer has it
            max_batch_size=min(1 << 17, self._settings.max_message_bytes),
            max_request_size=self._settings.max_message_bytes,
        )
        correct(self._producer.client)
        await self._producer.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._producer.stop()
        if kind is None:
            self._check()

    async def send(self, key: str, value: bytes, partition: int | None = None) -> None:
        """Returns when the record stands in a batch, not when it is stored. `partition`: of the key where None."""
        self._check()
        try:
            sent = await self._producer.send(self._topic, value, key=key.encode(), partition=partition)
        except KafkaError as error:
            self._refused = error
            self._check()
        else:
            sent.add_done_callback(self._note)

    def _note(self, sent: "Future[Any]") -> None:
        if sent.cancelled():
            return
        if error := sent.exception():
            self._refused = self._refused or error
        else:
            self.acknowledged += 1
            self._on_stored(sent.result())

    def _check(self) -> None:
        if self._refused is not None:
            raise UserError(
                f"Kafka stored {self.acknowledged} records in topic {self._topic} and then refused one: {self._refused}"
            ) from self._refused


def _log_refused(item: Item, rejected: Rejected) -> None:
    """The default of `publish_items`."""
    log.warning("item %r is not published: %s", item.item_id, rejected)


async def publish_items(
    items: Iterable[Item], settings: Settings, on_refused: Callable[[Item, Rejected], None] = _log_refused
) -> int:
    """Adds or changes catalogue entries, recommendable at once; returns how many Kafka stored.

    An entry that workers would refuse is left out, and `on_refused` is called with it. Raises `UserError` like
    `Publisher`.
    """
    async with Publisher(settings, settings.items_topic) as publisher:
        for item in items:
            value = encode(item)
            try:
                read_entry(item.item_id.encode(), value, settings.max_item_bytes)
            except Rejected as rejected:
                on_refused(item, rejected)
            else:
                await publisher.send(item.item_id, value)
    return publisher.acknowledged
