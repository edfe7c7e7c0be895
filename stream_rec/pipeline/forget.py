"""Erasing a user, and proof of it.

An erasure is an event like any other, in order with what its user did before and after. It is done when the agents have
committed it and the worker has committed what follows from it; what the topics hold by then is read, not inferred.
"""

import asyncio
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.structs import RecordMetadata
from msgspec import Struct

from stream_rec import messages
from stream_rec.config import Settings
from stream_rec.errors import UserError
from stream_rec.messages import ERASE, UNREADABLE, Event, Rejected, TombstoneHeaders, as_headers
from stream_rec.pipeline import rights, topics
from stream_rec.pipeline.connection import access, connect
from stream_rec.pipeline.granted import require
from stream_rec.pipeline.publish import Publisher
from stream_rec.pipeline.search import newest_of
from stream_rec.terminal import Terminal, print_json

POLL_S = 0.2
NEVER_MS = (1 << 63) - 1
"""What Kafka says for "no limit"."""


class NotErasedError(Exception):
    """The erasure was asked for and is not done, or can't be seen to be; the text is one line."""


class Place(Struct, frozen=True):
    """Where a record stands."""

    topic: str
    partition: int
    offset: int
    time: str
    """When Kafka took it, ISO 8601."""


class Remainder(Struct, frozen=True):
    """What an erasure does not reach at once."""

    where: str
    what: str
    until: str | None
    """ISO 8601; None: until somebody does what `because` says, or for ever."""
    because: str


class Receipt(Struct, frozen=True):
    user_id: str
    asked: Place
    """The event that asks for the erasure."""
    window: Place | None
    """The tombstone in the windows topic; None where there was no window, or a new one has taken its place."""
    recommendation: Place | None
    """The same in the recommendations topic."""
    returned: bool
    """Whether the user did something after the erasure: what stands in the topics then is of that alone."""
    checked: tuple[str, ...]
    remains: tuple[Remainder, ...]


class _MadeFor(Struct):
    """What windows and answers have in common."""

    offset: int


async def run(user: str, settings: Settings, timeout_s: float | None) -> int:
    """Asks for the erasure and, unless `timeout_s` is None, prints the receipt; returns the exit code, 1: not done.

    Raises `UserError` when no broker answers or a topic does not exist.
    """
    if timeout_s is not None:
        await require(access(settings), *rights.eraser(settings))
    said = Terminal(stderr=True)
    with said.status("asking for the erasure"):
        asked = await ask(user, settings)
    said.print(f"asked for in {asked.topic}, partition {asked.partition}, offset {asked.offset}", highlight=False)
    if timeout_s is None:
        return 0
    try:
        with said.status("waiting until agents and worker have done it"):
            receipt = await receive(user, asked, settings, timeout_s)
    except NotErasedError as error:
        print(f"stream-rec: {error}", file=sys.stderr)  # noqa: T201 - the command's output
        return 1
    print_json(receipt, indent=2)
    return 0


async def ask(user: str, settings: Settings) -> Place:
    """Writes the event that erases the user; returns where it stands. Raises `UserError`."""
    try:
        key, value = user.encode(), messages.encode(Event(user, ERASE, time.time()))
        messages.read_event(
            key, value, event_types=(), now=time.time(), max_bytes=settings.max_event_bytes, max_future_s=1
        )
    except (Rejected, UnicodeEncodeError) as error:
        raise UserError(f"that is no user id ({error})") from None
    window = await newest_of(user, settings, settings.windows_topic)
    stored: list[RecordMetadata] = []
    async with Publisher(settings, settings.events_topic, stored.append) as publisher:
        # to the partition of the user's other events: whoever wrote them may have a partitioner of their own
        await publisher.send(user, value, None if window is None else window.partition)
    return _place(stored[0])


async def receive(user: str, asked: Place, settings: Settings, timeout_s: float) -> Receipt:
    """Waits up to `timeout_s` seconds for what `asked` asks for, and looks at what is there then.

    Raises `NotErasedError`, and `UserError` when no broker answers or a topic does not exist.
    """
    async with connect(access(settings)) as admin:
        where = TopicPartition(asked.topic, asked.partition)
        await _committed(admin, settings.agents_group, where, asked.offset, timeout_s, "agents")
        window = await newest_of(user, settings, settings.windows_topic)
        returned = window is not None and window.value is not None
        if returned and _offset(window) < asked.offset:
            raise NotErasedError(
                f"the agents passed the erasure by: look for offset {asked.offset} of partition {asked.partition} "
                f"in topic {settings.dead_letter_topic}"
            )
        if window is not None:
            where = TopicPartition(window.topic, window.partition)
            await _committed(admin, settings.worker_group, where, window.offset, timeout_s, "worker")
        answer = await newest_of(user, settings, settings.recommendations_topic)
        configured = await topics.configured(admin, rights.personal(settings))
    if answer is not None and answer.value is not None and _offset(answer) < asked.offset:
        raise NotErasedError(f"topic {settings.recommendations_topic} still has an answer from before the erasure")
    checked = [
        f"the agents have committed the erasure (group {settings.agents_group})",
        f"no window from before it is the newest record of the user in {settings.windows_topic}",
        f"no answer from before it is the newest record of the user in {settings.recommendations_topic}",
    ]
    if answer is not None and answer.value is None:
        if not set(as_headers(TombstoneHeaders("nothing"))) <= set(answer.headers):
            raise NotErasedError("the worker does not say that it holds nothing of the user: restart it")
        checked.append("the worker looked after itself: no keys, values, counters or answers of the user are held")
    return Receipt(
        user_id=user,
        asked=asked,
        window=_tombstone(window),
        recommendation=_tombstone(answer),
        returned=returned,
        checked=tuple(checked),
        remains=remains(settings, configured, time.time()),
    )


def remains(settings: Settings, configured: Mapping[str, Mapping[str, str]], now: float) -> tuple[Remainder, ...]:
    """What an erasure at `now` (seconds) leaves, by the topics' own configurations."""
    kept = {
        settings.events_topic: "the user's events",
        settings.dead_letter_topic: "those of them that could not be read, if any",
    }
    replaced = {
        settings.windows_topic: "windows from before",
        settings.recommendations_topic: "answers from before",
    }
    return (
        *(_kept(name, what, configured[name], now) for name, what in kept.items()),
        *(_replaced(name, what, configured[name], now) for name, what in replaced.items()),
        Remainder("the online memory", "sums over all users, in which nobody can be told apart", None, "they decay"),
        Remainder(
            "the trained model",
            "what it learned from the user's events, if they were in its training log",
            None,
            "train anew: 'train --from-topic' leaves erased users out",
        ),
    )


def _kept(name: str, what: str, configured: Mapping[str, str], now: float) -> Remainder:
    """Of a topic that deletes what is old: a segment goes when its newest record is old enough."""
    retention, segment = int(configured["retention.ms"]), int(configured["segment.ms"])
    because = f"retention.ms={retention}, segment.ms={segment}"
    if retention < 0 or "delete" not in configured["cleanup.policy"]:
        return Remainder(f"topic {name}", what, None, f"{because}, cleanup.policy={configured['cleanup.policy']}")
    return Remainder(f"topic {name}", what, _iso(1_000 * now + retention + segment), because)


def _replaced(name: str, what: str, configured: Mapping[str, str], now: float) -> Remainder:
    """Of a topic that keeps the newest record of a key."""
    lag = int(configured["max.compaction.lag.ms"])
    until = None if lag == NEVER_MS else _iso(1_000 * now + lag)
    return Remainder(f"topic {name}", what, until, f"max.compaction.lag.ms={lag}")


async def _committed(
    admin: AIOKafkaAdminClient, group: str, where: TopicPartition, offset: int, timeout_s: float, who: str
) -> None:
    """Returns when `group` is beyond `offset`."""
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                found = (await admin.list_consumer_group_offsets(group)).get(where)
                if found is not None and found.offset > offset:
                    return
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise NotErasedError(
            f"the erasure is asked for, and after {timeout_s:g} s the {who} (group {group}) have not done it: "
            "do they run? It is done when they come to it"
        ) from None


def _offset(record: ConsumerRecord) -> int:
    """Of the event that a window, or an answer, was made for; -1 where that can't be read."""
    try:
        return msgspec.json.decode(record.value, type=_MadeFor).offset
    except UNREADABLE:
        return -1


def _tombstone(record: ConsumerRecord | None) -> Place | None:
    return None if record is None or record.value is not None else _place(record)


def _place(record: ConsumerRecord | RecordMetadata) -> Place:
    return Place(record.topic, record.partition, record.offset, _iso(record.timestamp))


def _iso(time_ms: float) -> str:
    return datetime.fromtimestamp(time_ms / 1_000, UTC).isoformat(timespec="seconds")
