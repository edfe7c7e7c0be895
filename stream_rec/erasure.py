"""Erasing a user, and proof of it.

An erasure is an event like any other, in order with what its user did before and after. A user whose events came by
producers of different partitioners has a window and an answer in several partitions, and is erased in each. It is done
when the agents have committed it and the worker has committed what follows from it; what the topics hold by then is
read, not inferred.
"""

import asyncio
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupCoordinatorNotAvailableError
from aiokafka.structs import OffsetAndMetadata, RecordMetadata
from msgspec import Struct

from stream_rec import messages
from stream_rec.config import Settings, environment_name
from stream_rec.errors import UserError
from stream_rec.kafka import access_control, topics
from stream_rec.kafka.access_control import check_access, describe_topics, on
from stream_rec.kafka.connection import access, connect
from stream_rec.kafka.consumer import make_consumer
from stream_rec.kafka.key_lookup import KeyLookup
from stream_rec.kafka.offset_ranges import OffsetRange, read, since
from stream_rec.kafka.publish import Publisher
from stream_rec.kafka.topic_guard import state_of, valid
from stream_rec.kafka.transactions import committed_for
from stream_rec.messages import ERASE, UNREADABLE, Event, Rejected, TombstoneHeaders, as_headers
from stream_rec.pseudonyms import fingerprint, naming
from stream_rec.runtime.terminal import Terminal, print_json

READ = 5_000
"""Most events that are looked through in one go."""
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


class RetainedData(Struct, frozen=True):
    """What an erasure does not reach at once."""

    where: str
    what: str
    until: str | None
    """ISO 8601; None: until somebody does what `because` says, or for ever."""
    because: str


class Erasure(Struct, frozen=True):
    """Of a user in one partition."""

    asked: Place
    """The event that asks for the erasure."""
    window: Place | None
    """The tombstone in the windows topic; None where there was no window, or a new one has taken its place."""
    recommendation: Place | None
    """The same in the recommendations topic."""


class ErasureReceipt(Struct, frozen=True):
    user_id: str
    asked: Place
    """`asked`, `window` and `recommendation` are those of the first `Erasure`."""
    window: Place | None
    recommendation: Place | None
    returned: bool
    """Whether the user did something after the erasure: what stands in the topics then is of that alone."""
    checked: tuple[str, ...]
    remains: tuple[RetainedData, ...]
    also: tuple[Erasure, ...]
    """The same in the other partitions that held something of the user."""


class ErasureRequest(NamedTuple):
    """The event that erases a user in a partition."""

    place: Place
    time_ms: int
    """When Kafka took it."""
    called: bytes
    """What the user is called in the windows of that partition."""


class _MadeFor(Struct):
    """What windows and answers have in common."""

    offset: int
    topic_id: str = ""


class _Topics(NamedTuple):
    """Of the topics as they are now: the id of that of events, and what commits must be valid for (`topic_guard`)."""

    events: str
    agents: str
    worker: str


async def run(user: str, settings: Settings, timeout_s: float | None) -> int:
    """Asks for the erasure and, unless `timeout_s` is None, prints the receipt; returns the exit code, 1: not done.

    Raises `UserError` when no broker answers or a topic does not exist.
    """
    await check_access(access(settings), *access_control.eraser(settings))
    said = Terminal(stderr=True)
    with said.status("asking for the erasure"):
        asked = await ask(user, settings)
    for place, *_ in asked:
        said.print(f"asked for in {place.topic}, partition {place.partition}, offset {place.offset}", highlight=False)
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


async def ask(user: str, settings: Settings) -> tuple[ErasureRequest, ...]:
    """Writes the events that erase the user; returns where they stand.

    One goes to each partition that holds a window of the user, or an event that the agents have yet to apply: whoever
    wrote them may have a partitioner of their own. Where there is none, one goes to the partition of the user's key.
    `user` is an id, or with the key of the pseudonyms a pseudonym. Raises `UserError`.
    """
    try:
        key, value = user.encode(), messages.encode(Event(user, ERASE, time.time()))
        messages.read_event(
            key, value, event_types=(), now=time.time(), max_bytes=settings.max_event_bytes, max_future_s=1
        )
    except (Rejected, UnicodeEncodeError) as error:
        raise UserError(f"that is no user id ({error})") from None
    waiting = await _unapplied(user, settings)  # first: what is applied meanwhile is found among the windows
    windows = await _newest(user, settings, settings.windows_topic)
    named = naming(settings.pseudonym_key_file)(user)
    where: dict[tuple[int | None, bytes], None] = dict.fromkeys([*windows, *waiting]) or {(None, named.encode()): None}
    asked: list[ErasureRequest] = []
    for partition, called in where:
        stored: list[RecordMetadata] = []
        event = Event(user, ERASE, time.time(), pseudonym=called.decode() != named)
        async with Publisher(settings, settings.events_topic, stored.append) as publisher:
            await publisher.send(user, messages.encode(event), partition)
        asked.append(ErasureRequest(_place(stored[0]), stored[0].timestamp, called))
    return tuple(asked)


async def receive(user: str, asked: Sequence[ErasureRequest], settings: Settings, timeout_s: float) -> ErasureReceipt:
    """Waits up to `timeout_s` seconds for what `asked` asks for, and looks at what is there then.

    Raises `NotErasedError`, and `UserError` when no broker answers or a topic does not exist.
    """
    now = await _topics_now(settings)
    async with connect(access(settings)) as admin:
        for place, *_ in asked:
            await _committed(admin, settings, place, timeout_s, now)
        windows = await _newest(user, settings, settings.windows_topic)
        for record in windows.values():
            await _committed(admin, settings, _place(record), timeout_s, now)
        answers = await _newest(user, settings, settings.recommendations_topic)
        configured = await topics.configured(admin, access_control.personal(settings))
    offsets = {(place.partition, called): place.offset for place, _, called in asked}
    returned = any(record.value is not None for record in windows.values())
    for where, record in windows.items():
        if record.value is not None and _is_before(record, offsets.get(where, -1), now.events):
            raise NotErasedError(
                f"the agents passed the erasure by: look for offset {offsets.get(where, '-')} of partition {where[0]} "
                f"in topic {settings.dead_letter_topic}"
            )
    for where, record in answers.items():
        # where nothing was asked for, there was no window, and an answer from before has been left by one that is lost
        lost = where not in offsets and where not in windows and record.timestamp < asked[0].time_ms
        if record.value is not None and (lost or _is_before(record, offsets.get(where, -1), now.events)):
            raise NotErasedError(f"topic {settings.recommendations_topic} still has an answer from before the erasure")
    checked = [
        f"the agents have committed the erasure (group {settings.agents_group})",
        f"no window from before it is the newest record of the user in {settings.windows_topic}",
        f"no answer from before it is the newest record of the user in {settings.recommendations_topic}",
    ]
    tombstones = [record for record in answers.values() if record.value is None]
    if tombstones:
        held_nothing = set(as_headers(TombstoneHeaders("nothing")))
        if not all(held_nothing <= set(record.headers) for record in tombstones):
            raise NotErasedError("the worker does not say that it holds nothing of the user: restart it")
        checked.append("the worker looked after itself: no keys, values, counters or answers of the user are held")
    first, *others = [
        Erasure(place, _tombstone(windows.get(where)), _tombstone(answers.get(where)))
        for place, _, called in asked
        for where in [(place.partition, called)]
    ]
    return ErasureReceipt(
        user_id=user,
        asked=first.asked,
        window=first.window,
        recommendation=first.recommendation,
        returned=returned,
        checked=tuple(checked),
        remains=remains(settings, configured, time.time()),
        also=tuple(others),
    )


async def _newest(user: str, settings: Settings, topic: str) -> dict[tuple[int, bytes], ConsumerRecord]:
    """The newest records of a user, by partition and by what the user is called there: as the topic does, or the id."""
    keys = {naming(settings.pseudonym_key_file)(user).encode(), user.encode()}
    async with KeyLookup(access(settings), topic) as search:
        return await search.everywhere(keys)


async def _unapplied(user: str, settings: Settings) -> set[tuple[int, bytes]]:
    """Partitions with events of a user that the agents have yet to apply, and what windows will call that user."""
    name, topic, now = naming(settings.pseudonym_key_file), settings.events_topic, await _topics_now(settings)
    async with connect(access(settings)) as admin:
        committed = await _commits(admin, settings.agents_group)
    _same_key(committed, settings)
    found: set[tuple[int, bytes]] = set()
    async with make_consumer(
        access(settings),
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=settings.max_message_bytes,
    ) as reader:
        partitions = [
            TopicPartition(topic, number)
            for number in range((await check_access(access(settings), *on("Read", topic)))[topic])
        ]
        spans = await since(reader, partitions, None)
        for one, (offset, made_for) in committed.items():
            if one in spans and valid(made_for, now.agents):
                spans[one] = OffsetRange(max(spans[one].begin, offset), spans[one].end)
        async for partition, records, _ in read(reader, spans, READ):
            for record in records:
                key = (record.key or b"").decode(errors="replace")
                if user in (key, called := name(key)):
                    found.add((partition.partition, called.encode()))
    return found


def _same_key(committed: Mapping[TopicPartition, OffsetAndMetadata], settings: Settings) -> None:
    """Raises `UserError` where agents call users otherwise than the key here does: a user would not be found."""
    own = fingerprint(settings.pseudonym_key_file)
    said = [one.metadata for partition, one in committed.items() if partition.topic == settings.events_topic]
    if any(metadata and metadata.partition(" ")[2] != own for metadata in said):
        setting = environment_name("pseudonym_key_file")
        raise UserError(f"the agents use another key for pseudonyms, or none: set {setting} to theirs")


async def _topics_now(settings: Settings) -> _Topics:
    names = settings.events_topic, settings.windows_topic, settings.recommendations_topic
    found = await describe_topics(access(settings), *on("Read", *names))
    events, windows, answers = (found[name] for name in names)
    return _Topics(events.id, state_of(events, windows), state_of(windows, answers))


def remains(settings: Settings, configured: Mapping[str, Mapping[str, str]], now: float) -> tuple[RetainedData, ...]:
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
        RetainedData(
            "memory.safetensors in the cache_dir of workers that do not run",
            "the user's id, how many events and the time of the last one, if such a worker was stopped before",
            None,
            "a worker that runs has removed its own; another removes or renews it when it starts: delete the file",
        ),
        RetainedData("the online memory", "sums over all users, in which nobody can be told apart", None, "they decay"),
        RetainedData(
            "the trained model",
            "what it learned from the user's events, if they were in its training log",
            None,
            "train anew: 'train --from-topic' leaves erased users out",
        ),
    )


def _kept(name: str, what: str, configured: Mapping[str, str], now: float) -> RetainedData:
    """Of a topic that deletes what is old: a segment goes when its newest record is old enough."""
    retention, segment = int(configured["retention.ms"]), int(configured["segment.ms"])
    because = f"retention.ms={retention}, segment.ms={segment}"
    if retention < 0 or "delete" not in configured["cleanup.policy"]:
        return RetainedData(f"topic {name}", what, None, f"{because}, cleanup.policy={configured['cleanup.policy']}")
    return RetainedData(f"topic {name}", what, _iso(1_000 * now + retention + segment), because)


def _replaced(name: str, what: str, configured: Mapping[str, str], now: float) -> RetainedData:
    """Of a topic that keeps the newest record of a key."""
    lag = int(configured["max.compaction.lag.ms"])
    until = None if lag == NEVER_MS else _iso(1_000 * now + lag)
    return RetainedData(f"topic {name}", what, until, f"max.compaction.lag.ms={lag}")


async def _committed(
    admin: AIOKafkaAdminClient, settings: Settings, place: Place, timeout_s: float, now: _Topics
) -> None:
    """Returns when the agents, or of a window the worker, are beyond `place` in the topics that there are now."""
    if place.topic == settings.events_topic:
        group, who, wanted = settings.agents_group, "agents", now.agents
    else:
        group, who, wanted = settings.worker_group, "worker", now.worker
    where = TopicPartition(place.topic, place.partition)
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                found = (await _commits(admin, group)).get(where)
                if found is not None and found.offset > place.offset:
                    mark = found.metadata or ""
                    made_for = mark.partition(" ")[0] if who == "agents" else committed_for(mark, settings)
                    if made_for == wanted:
                        return
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise NotErasedError(
            f"the erasure is asked for, and after {timeout_s:g} s the {who} (group {group}) have not done it: "
            "do they run? It is done when they come to it"
        ) from None


async def _commits(admin: AIOKafkaAdminClient, group: str) -> Mapping[TopicPartition, OffsetAndMetadata]:
    try:
        found: Mapping[TopicPartition, OffsetAndMetadata] = await admin.list_consumer_group_offsets(group)
    except GroupCoordinatorNotAvailableError:  # a new broker has no groups yet
        return {}
    return found


def _is_before(record: ConsumerRecord, asked: int, topic_id: str) -> bool:
    """Whether a window, or an answer, is of an event before offset `asked` of the events topic, or of another topic."""
    try:
        made_for = msgspec.json.decode(record.value, type=_MadeFor)
    except UNREADABLE:
        return True
    return made_for.offset < asked or made_for.topic_id != topic_id


def _tombstone(record: ConsumerRecord | None) -> Place | None:
    return None if record is None or record.value is not None else _place(record)


def _place(record: ConsumerRecord | RecordMetadata) -> Place:
    return Place(record.topic, record.partition, record.offset, _iso(record.timestamp))


def _iso(time_ms: float) -> str:
    return datetime.fromtimestamp(time_ms / 1_000, UTC).isoformat(timespec="seconds")
