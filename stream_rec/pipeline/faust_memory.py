"""faust's table and memory store, with a window for each user of each partition.

faust's own holds one value a key, whichever partition it came by: of a user whose events came by two partitions, the
offsets of one were compared with those of the other. And what this process wrote itself stayed in memory when its
partition went to another process. The store is chosen by `MEMORY`. The table's
tombstones name the event that asked for the erasure, which faust's do not.
"""

from collections.abc import Callable, Iterable
from typing import Any

import faust
from faust.stores import STORES, memory
from faust.streams import current_event
from faust.types import TP, FutureMessage

from stream_rec.messages import TombstoneHeaders, as_headers


class Table(faust.Table):  # type: ignore[misc]
    """Its tombstones name their event, so that the next owner of the partition knows that it was done."""

    def send_changelog(
        self, partition: int | None, key: Any, value: Any, *serializers: Any, **named: Any
    ) -> FutureMessage:
        if value is not None:
            return super().send_changelog(partition, key, value, *serializers, **named)
        headers = TombstoneHeaders(offset=str(current_event().message.offset), topic_id=self.app.events_topic_id)
        return self.changelog_topic.send_soon(
            key=key,
            value=None,
            partition=partition,
            headers=as_headers(headers),
            key_serializer=self.key_serializer,
            value_serializer="raw",
            callback=self._on_changelog_sent,
            eager_partitioning=True,
        )


MEMORY = "partitioned://"


class Memory(memory.Store):  # type: ignore[misc]
    """Values by partition and key. A key alone is that of the partition whose event the agent has in hand."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._partitions: set[int] = set()

    def __contains__(self, key: object) -> bool:
        return (current_event().message.partition, key) in self.data

    def __getitem__(self, key: bytes) -> bytes:
        value: bytes = self.data[current_event().message.partition, key]
        return value

    def __setitem__(self, key: bytes, value: bytes) -> None:
        partition = current_event().message.partition
        self._partitions.add(partition)
        self.data[partition, key] = value

    def __delitem__(self, key: bytes) -> None:
        del self.data[current_event().message.partition, key]

    def apply_changelog_batch(
        self, batch: Iterable[Any], to_key: Callable[[Any], Any], to_value: Callable[[Any], Any]
    ) -> None:
        for event in batch:
            place = event.message.partition, to_key(event.key)
            self._partitions.add(event.message.partition)
            if event.message.value is None:
                self.data.pop(place, None)
            else:
                self.data[place] = to_value(event.value)

    async def on_recovery_completed(self, active_tps: set[TP], standby_tps: set[TP]) -> None:  # noqa: ARG002
        """Drops what is of partitions that other processes have now."""
        partitions = {partition for _, partition in active_tps}
        for place in [place for place in self.data if place[0] not in partitions]:
            del self.data[place]

    def in_several(self, key: bytes) -> bool:
        """Whether more than one partition of this process has a value of `key`."""
        return sum((partition, key) in self.data for partition in self._partitions) > 1


STORES.aliases["partitioned"] = f"{__name__}:Memory"
