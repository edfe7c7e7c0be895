"""Whether the topics of a running process are still those that it started with.

An offset means something only in the topic that it was read from. A topic that is deleted and created again has the
same name, another id (KIP-516), and begins at offset 0. A process that went on would take new records for old ones, so
it ends with one line, and the next one starts with the topics as they are then. It also ends when a topic gets more
partitions: no process would read them, and users move to other partitions.
"""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, NoError, OffsetOutOfRangeError, UnknownTopicOrPartitionError
from aiokafka.protocol.fetch import FetchRequest

from stream_rec.errors import UserError
from stream_rec.health import Health
from stream_rec.kafka.access_control import Metadata, TopicInfo, topic_id
from stream_rec.kafka.connection import Access, connect

LOOK_S = 1.0
"""Between two looks at the topics, seconds."""

log = logging.getLogger(__name__)


def state_of(*topics: TopicInfo) -> str:
    """What a committed offset is valid for: the ids of these topics. Empty where the brokers give topics no ids."""
    return ".".join(topic.id for topic in topics) if all(topic.id for topic in topics) else ""


def valid(committed_for: str, now: str) -> bool:
    """Whether an offset that was committed for some topics counts for those of `now`; an earlier version names none.

    Agents add to the topics, after a space, the fingerprint of their pseudonyms, see `erasure`.
    """
    made_for = committed_for.partition(" ")[0]
    return not made_for or not now or made_for == now


class TopicGuard:
    """Compares the topics with `topics`, as they were at the start.

    A topic that does not exist at the moment makes the process unready, and is waited for.
    """

    def __init__(self, access: Access, topics: Mapping[str, TopicInfo], health: Health) -> None:
        self._access = access
        self._health = health
        self._missing: set[str] = set()
        self.topics = topics
        self.change: str | None = None
        """What has changed for good, one line."""

    async def watch(self) -> UserError:
        """Looks at the topics from time to time; returns once they are others, with what to do about it."""
        while self.change is None:
            try:
                async with connect(self._access) as admin:
                    while self.change is None:
                        await self.unchanged(admin._client)
                        await asyncio.sleep(LOOK_S)
            except (KafkaError, OSError, TimeoutError, UserError):  # others say that Kafka is away
                await asyncio.sleep(LOOK_S)
        return UserError(self.change)

    def protect(self, consumer: AIOKafkaConsumer) -> None:
        """Keeps `consumer`, once it has started, from records of a topic that has taken the place of another.

        aiokafka 0.14 fetches by name: it goes on in the new topic at its old offset, or begins at the first one. While
        a topic is deleted its fetches fail, so after a failure nothing is handed over until the topics are known to be
        the same.
        """
        client, suspicious = consumer._client, False
        send = client.send

        async def sending(node: int, request: Any, **options: Any) -> Any:
            nonlocal suspicious
            response = await send(node, request, **options)
            if isinstance(request, FetchRequest):
                errors = _errors(response)
                suspicious = suspicious or bool(errors)
                if suspicious:
                    if not await self.unchanged(client):
                        raise UnknownTopicOrPartitionError
                    await self._within(consumer, request, errors)
                    suspicious = False
            return response

        client.send = sending

    async def unchanged(self, client: Any) -> bool:
        """Asks Kafka whether the topics are there, and the same. Raises `KafkaError`."""
        answer = await client.send(client.get_random_node(), Metadata(list(self.topics)))
        found = {topic["topic"]: TopicInfo(len(topic["partitions"]), topic_id(topic)) for topic in _topics(answer)}
        there = {name: found[name] for name in self.topics if name in found and found[name].partitions}
        self._say_missing(self.topics.keys() - there.keys())
        changes = [change for name, now in there.items() if (change := _change(name, self.topics[name], now))]
        self.change = self.change or "; ".join(changes) or None
        fewer = any(now.partitions < self.topics[name].partitions for name, now in there.items())
        return self.change is None and not self._missing and not fewer  # a broker that starts may not know all yet

    def _say_missing(self, missing: set[str]) -> None:
        for name in missing - self._missing:
            log.warning("%s", _missing(name))
            self._health.not_ready_reasons.add(_missing(name))
        for name in self._missing - missing:
            self._health.not_ready_reasons.discard(_missing(name))
        self._missing = set(missing)

    async def _within(
        self, consumer: AIOKafkaConsumer, request: FetchRequest, errors: Mapping[TopicPartition, int]
    ) -> None:
        """Raises `OffsetOutOfRangeError` where a partition ends before the offset that is fetched.

        Kafka has then lost records that were read, and gives their offsets to others. Where records are gone at the
        beginning of a partition, because they were kept long enough, reading goes on at the first one that is left.
        """
        fetched = {
            TopicPartition(topic, number): offset
            for topic, partitions in request.topics
            for number, offset, _ in partitions
        }
        outside = [one for one, code in errors.items() if code == OffsetOutOfRangeError.errno]
        for one, end in (await consumer.end_offsets(outside) if outside else {}).items():
            if fetched[one] > end:
                self.change = (
                    f"Kafka has lost records of topic {one.topic}: partition {one.partition} ends at offset {end}, and "
                    f"those before {fetched[one]} were read; see docs/operations.md"
                )
                raise OffsetOutOfRangeError


def _topics(answer: Any) -> list[dict[str, Any]]:
    topics: list[dict[str, Any]] = answer.to_object()["topics"]
    return topics


def _errors(response: Any) -> dict[TopicPartition, int]:
    return {
        TopicPartition(topic, number): code
        for topic, partitions in response.topics
        for number, code, *_ in partitions
        if code != NoError.errno
    }


def _missing(topic: str) -> str:
    return f"topic {topic} is not there"


def _change(name: str, before: TopicInfo, now: TopicInfo) -> str | None:
    """What has become of a topic that makes a process end; None: nothing."""
    if now.id != before.id or (not now.id and now.partitions < before.partitions):
        return f"topic {name} was deleted and created again: start again to begin with the new one"
    if now.partitions > before.partitions:
        return (
            f"topic {name} has {now.partitions} partitions now and had {before.partitions}: "
            "give the topics that belong together as many, and start again"
        )
    return None
