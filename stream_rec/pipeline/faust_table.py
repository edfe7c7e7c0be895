"""faust's table, with what it can't say of an erasure: which event asked for it."""

from typing import Any

import faust
from faust.streams import current_event
from faust.types import FutureMessage

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
