"""The five topics: how each is laid out, creating and checking them."""

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import TopicAlreadyExistsError, TopicAuthorizationFailedError, for_code

from stream_rec.config import Settings, environment_name
from stream_rec.errors import UserError
from stream_rec.kafka.access_control import checking, denial, examine, no_topic, on
from stream_rec.kafka.connection import access, connect

HOUR_MS = 3_600_000
DEAD_LETTER_ROOM = 65_536
"""Bytes that a dead letter may have more than the record that it holds: its headers."""

BATCH_BYTES = 1 << 20
"""Records that are written together, bytes; Kafka refuses a batch for its size as a whole, so never more than a topic
takes."""
ENVELOPE = 128
"""Bytes of a batch of one record beside its key, value and headers: 61 for the batch, at most 33 for the record."""

CHECKED = ("cleanup.policy", "message.timestamp.type", "max.message.bytes", "retention.ms")
"""What the project relies on; the rest of a layout is tuning, and may be changed by hand."""


class Room(NamedTuple):
    """How much Kafka takes of a record, bytes."""

    record: int
    """Of a window or an answer, with its envelope."""
    dead_letter: int
    """Of the key and value of a dead letter."""

    @property
    def batch(self) -> int:
        """Of records that are written together."""
        return min(BATCH_BYTES, self.record, self.dead_letter + DEAD_LETTER_ROOM)


class Problem(NamedTuple):
    """Something about a topic that is not as the settings want it; its text is one line."""

    topic: str
    setting: str
    expected: str
    found: str | None
    """None: the topic does not exist."""

    def __str__(self) -> str:
        if self.found is None:
            return no_topic(self.topic)
        return f"topic {self.topic}: {self.setting} is {self.found}, the settings want {self.expected}"


def layouts(settings: Settings) -> dict[str, dict[str, str]]:
    """Kafka's configuration of each topic, by name."""
    events = _kept_for(settings, settings.max_message_bytes)
    dead_letters = _kept_for(settings, settings.max_message_bytes + DEAD_LETTER_ROOM)
    compacted = _compacted(settings)
    appended = {"message.timestamp.type": "LogAppendTime"}  # latency is measured from Kafka's own clock
    return {
        settings.events_topic: events | appended,
        settings.windows_topic: compacted | appended,
        settings.items_topic: compacted,
        settings.recommendations_topic: compacted | appended,
        settings.dead_letter_topic: dead_letters | appended,
    }


def _kept_for(settings: Settings, max_bytes: int) -> dict[str, str]:
    """A log whose records go when they are older than the retention.

    Whole segments are deleted, and not the one being written: it is closed eight times in a retention, so that a record
    is gone after 9/8 of it.
    """
    retention = int(settings.retention_hours * HOUR_MS)
    return {
        "cleanup.policy": "delete",
        "retention.ms": str(retention),
        "segment.ms": str(max(60_000, retention // 8)),
        "max.message.bytes": str(max_bytes),
    }


def _compacted(settings: Settings) -> dict[str, str]:
    """A log that keeps the newest record a key.

    Whoever starts reads it from its beginning, so that superseded records cost start-up time: a tenth of them
    (dirty ratio) instead of Kafka's half. The segment being written is never compacted: it is closed after ten minutes,
    where Kafka's default lets a week or a gigabyte pile up. What an erasure superseded is gone from the disk within a
    day (compaction lag); the tombstone itself stays as long as events do, so that a reader that was away sees it.
    """
    return {
        "cleanup.policy": "compact",
        "min.cleanable.dirty.ratio": "0.1",
        "segment.ms": str(HOUR_MS // 6),
        "max.compaction.lag.ms": str(24 * HOUR_MS),
        "delete.retention.ms": str(int(settings.retention_hours * HOUR_MS)),
        "max.message.bytes": str(settings.max_message_bytes),
    }


async def create(settings: Settings) -> list[str]:
    """Creates the topics that do not exist, and leaves the others alone; returns the names of the new ones.

    Raises `UserError` when no broker answers or the broker refuses.
    """
    async with connect(access(settings)) as admin:
        wanted = layouts(settings)
        present = await examine(admin, *on("Describe", *wanted))
        missing = [name for name in wanted if name not in present]
        if not missing:
            return []
        answer = await admin.create_topics(
            [
                NewTopic(name, settings.partitions, settings.replication_factor, topic_configs=wanted[name])
                for name in missing
            ]
        )
        for name, code, message in answer.topic_errors:
            if code == TopicAuthorizationFailedError.errno:
                raise UserError(denial(admin, *on("Create", name)))
            if code and code != TopicAlreadyExistsError.errno:  # another process may have been faster
                raise UserError(f"cannot create topic {name}: {message or for_code(code).description}")
        async with asyncio.timeout(10):
            while not set(missing) <= (await examine(admin, *on("Describe", *missing))).keys():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        return [name for name, code, _ in answer.topic_errors if not code]


async def check(settings: Settings, *names: str) -> list[Problem]:
    """What about the topics, or those of these names, is not as the settings want it.

    Raises `UserError` when no broker answers, or does not let us see them.
    """
    async with connect(access(settings)) as admin:
        layout = layouts(settings)
        wanted = {name: layout[name] for name in names or layout}
        partitions = await examine(admin, *checking(*wanted))
        present = [name for name in wanted if name in partitions]
        found = await configured(admin, present)
    problems = [Problem(name, "topic", "to exist", None) for name in wanted if name not in partitions]
    for name in present:
        if partitions[name] != settings.partitions:
            problems.append(Problem(name, "partitions", str(settings.partitions), str(partitions[name])))
        problems += [
            Problem(name, setting, wanted[name][setting], found[name][setting])
            for setting in CHECKED
            if setting in wanted[name] and found[name][setting] != wanted[name][setting]
        ]
    return problems


async def require_room(settings: Settings, *names: str) -> None:
    """Raises `UserError` where one of these topics takes only smaller records than may be written to it."""
    wanted = layouts(settings)
    for name, most in (await _taken(settings, names)).items():
        if most < (needed := int(wanted[name]["max.message.bytes"])):
            raise UserError(
                f"topic {name} takes records of up to {most} bytes and may be given some of {needed}: "
                f"set its max.message.bytes to {needed}, or lower {environment_name('max_message_bytes')}"
            )


async def room(settings: Settings, topic: str) -> Room:
    """What `topic`, that of windows or of recommendations, and that of dead letters take now.

    Raises `UserError` where not even a dead letter without its content can be written.
    """
    dead_letter_topic = settings.dead_letter_topic
    taken = await _taken(settings, [topic, dead_letter_topic])
    if taken[dead_letter_topic] < DEAD_LETTER_ROOM:
        raise UserError(
            f"topic {dead_letter_topic} takes records of up to {taken[dead_letter_topic]} bytes, "
            f"and dead letters need {DEAD_LETTER_ROOM}: raise its max.message.bytes"
        )
    content = taken[dead_letter_topic] - DEAD_LETTER_ROOM
    return Room(min(settings.max_message_bytes, taken[topic]), min(settings.max_message_bytes, content))


async def _taken(settings: Settings, names: Sequence[str]) -> dict[str, int]:
    """The largest record that each of these topics takes, bytes. Raises `UserError`."""
    async with connect(access(settings)) as admin:
        await examine(admin, *on("DescribeConfigs", *names))
        found = await configured(admin, names)
    return {name: int(found[name]["max.message.bytes"]) for name in names}


async def configured(admin: AIOKafkaAdminClient, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Kafka's configuration of each topic, which must exist: setting to text."""
    if not names:
        return {}
    answers = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name) for name in names])
    return {
        name: {entry[0]: entry[1] for entry in entries}
        for answer in answers
        for _, _, _, name, entries in answer.resources
    }
