"""What an agent does with one event: a new window, an erasure, nothing (it was applied before), or a dead letter."""

import contextlib
import logging
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from stream_rec import messages, window
from stream_rec.config import Settings
from stream_rec.kafka import dead_letters
from stream_rec.kafka.dead_letters import Place
from stream_rec.kafka.topics import ENVELOPE, Room
from stream_rec.messages import ERASE, UNREADABLE, Rejected, Window
from stream_rec.metrics import AgentMetrics
from stream_rec.pipeline.buried import Done
from stream_rec.pseudonyms import Naming

log = logging.getLogger(__name__)

RESERVED_KEY = b"__faust\0offset__"
"""faust's RocksDB store keeps an offset under this key, beside the users."""


class Change(NamedTuple):
    """What an event does to its user's window."""

    key: bytes
    event_type: str
    value: bytes | None
    """The window's bytes; None erases it."""
    users: int
    """Users more: 1, 0 or -1."""


class Keeper:
    """Applies one event after the other to the table. No asyncio: nothing can come between reading and writing.

    `table` maps a user's key, what `name` makes of the id, to the bytes of the window; `graveyard` is the topic of what
    can't be applied; `topic_id` is Kafka's id of the events topic, which windows and dead letters may be older than;
    `in_several` says whether other partitions have a window of a key too.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: AgentMetrics,
        table: Any,
        graveyard: Any,
        name: Naming,
        *,
        topic_id: str = "",
        in_several: Callable[[bytes], bool] = lambda _: False,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._table = table
        self._graveyard = graveyard
        self._name = name
        self._topic_id = topic_id
        self._in_several = in_several
        self._said_several = False
        self._event_types = frozenset(settings.event_types)
        self._buried: set[Place] = set()
        self.refused: Counter[str] = Counter()
        """Records that became dead letters, by reason; whoever logs them clears it."""
        self._erased: Mapping[tuple[int, bytes], int] = {}
        self._continued: set[int] = set()
        """Partitions with a window from an events topic that is no more."""
        self.room = Room(settings.max_message_bytes, settings.max_message_bytes)

    def recall(self, done: Done) -> None:
        """What is done already of the events that come next, although their agent did not come to commit them."""
        self._buried |= done.buried
        self._erased = done.erased

    def take(self, message: Any) -> None:
        """Applies a record of the events topic (a faust `Message`), or makes it a dead letter.

        Raises only what is wrong with this process (a full disk, say), never what is wrong with the record.
        """
        try:
            change = self._change(message)
        except Rejected as rejected:
            self.refuse(message, rejected.reason, str(rejected))
        except Exception as error:  # noqa: BLE001 - one record must neither stop the stream nor vanish
            frames = "".join(traceback.format_tb(error.__traceback__))  # the error's own text may hold an id
            log.error("%s: %s becomes a dead letter\n%s", type(error).__name__, _place(message), frames)
            self.refuse(message, "internal error", type(error).__name__)
        else:
            if change is None:
                self._metrics.repeats.inc()
            else:
                self._apply(message, change)

    def _change(self, message: Any) -> Change | None:
        """None for an event that was applied before. Raises `Rejected`."""
        settings = self._settings
        event = messages.read_event(
            message.key,
            message.value,
            event_types=self._event_types,
            now=message.timestamp,
            max_bytes=settings.max_event_bytes,
            max_future_s=settings.max_future_s,
        )
        event = messages.renamed(event, self._name)
        key = event.user_id.encode()
        if key == RESERVED_KEY:
            raise Rejected("reserved key")
        held = self._table.get(key)
        before = None if held is None else self._read(held, message, event.user_id)
        if message.offset <= self._applied(before, key, message):
            return None
        if event.event_type == ERASE:
            return Change(key, ERASE, None, 0 if held is None else -1)
        after = window.append(
            before,
            event,
            offset=message.offset,
            arrived=message.timestamp,
            capacity=settings.capacity,
            stride=settings.effective_stride,
            topic_id=self._topic_id,
        )
        value = messages.encode(after)
        if len(key) + len(value) + ENVELOPE > self.room.record:
            raise Rejected("window too large", f"{len(value)} bytes: lower the capacity or raise max_message_bytes")
        return Change(key, event.event_type, value, 1 if held is None else 0)

    def _read(self, held: bytes, message: Any, user_id: str) -> Window | None:
        """The window in the table; None, and said, when others have written there what is none."""
        with contextlib.suppress(*UNREADABLE):
            before = messages.read_window(held)
            if before.user_id == user_id:
                return before
        self._metrics.unreadable.inc()
        log.warning("the window before %s can't be read: its user starts anew", _place(message))
        return None

    def _applied(self, before: Window | None, key: bytes, message: Any) -> int:
        """The offset of the user's event that was applied last, -1 for none that is known."""
        if before is None:
            return self._erased.get((message.partition, key), -1)
        return before.offset if self._same_topic(before, message) else -1

    def _same_topic(self, before: Window, message: Any) -> bool:
        """Whether the window's last event was in the topic that is read now: a window of version 1 does not say.

        Offsets of another topic of the same name, which was deleted, say nothing about this one's.
        """
        if not before.topic_id or not self._topic_id or before.topic_id == self._topic_id:
            return True
        if message.partition not in self._continued:
            self._continued.add(message.partition)
            place = f"{message.topic}[{message.partition}]"
            log.warning("windows of %s are of a topic that is no more: all events of this one are new", place)
        return False

    def _apply(self, message: Any, change: Change) -> None:
        metrics = self._metrics
        if change.value is None:
            self._table.pop(change.key, None)
            metrics.erased.inc()
        else:
            self._table[change.key] = change.value
            metrics.windows.inc()
            metrics.events.labels(change.event_type).inc()
            metrics.seconds.observe(max(0.0, time.time() - message.timestamp))
        metrics.users.inc(change.users)
        if change.users > 0 and self._in_several(change.key):
            metrics.users_in_several.inc()
            if not self._said_several:
                self._said_several = True
                log.warning("a user's events come by several partitions: see 'Partitions' in docs/downstream.md")

    def refuse(self, message: Any, reason: str, error: str) -> None:
        """Makes a record a dead letter, unless it is one already."""
        place = Place(message.topic, message.partition, message.offset, dead_letters.time_of(message.timestamp))
        if place in self._buried:
            self._buried.remove(place)
            self._metrics.repeats.inc()
            return
        letter = dead_letters.to_dead_letter(
            message, reason, error, time_s=message.timestamp, max_bytes=self.room.dead_letter
        )
        self._graveyard.send_soon(key=letter.key, value=letter.value, headers=letter.headers)
        self._metrics.dead_letters.labels(reason).inc()
        self.refused[reason] += 1


def _place(message: Any) -> str:
    """Where a record stands, without saying whose it is."""
    return f"{message.topic}[{message.partition}]@{message.offset}"
