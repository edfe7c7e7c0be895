"""A user's newest window and answer, and what is known of the items in them."""

import asyncio
from typing import NamedTuple

from aiokafka import ConsumerRecord

from stream_rec.client import latest
from stream_rec.config import Settings
from stream_rec.errors import UserError
from stream_rec.kafka.key_lookup import newest_of
from stream_rec.messages import UNREADABLE, Recommendation, Window, read_window


class UserState(NamedTuple):
    """What the topics hold of a user."""

    window: Window | None
    answer: Recommendation | None
    record: ConsumerRecord | None = None
    """Of the window."""

    @property
    def partition(self) -> int:
        """Of the windows topic, where the window stands."""
        return self.record.partition if self.record else 0

    def after(self, record: ConsumerRecord) -> bool:
        """Whether `record` was there when the window was written: by its offset, in other partitions by the clock."""
        if self.record is None:
            return False
        if record.partition == self.record.partition:
            return bool(record.offset <= self.record.offset)
        return bool(record.timestamp <= self.record.timestamp)


async def held(user: str, settings: Settings) -> UserState:
    """Raises `UserError` when no broker answers, a topic does not exist, or what it holds can't be read."""
    record, answer = await asyncio.gather(newest_of(user, settings, settings.windows_topic), latest(user, settings))
    if record is None or not record.value:
        return UserState(None, answer)
    try:
        return UserState(read_window(record.value), answer, record)
    except UNREADABLE as error:
        raise UserError(f"the window can't be read: was it written by another version? ({error})") from None
