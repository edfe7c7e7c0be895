"""The one way to make a Kafka consumer here: `make_consumer`, with what aiokafka 0.14 gets wrong corrected.

- A record that can't be parsed blocks its partition, and a small batch can take any amount of memory: see
  `record_batches`.
- A partition whose disk is damaged is fetched again without a pause: see `FailedFetches`.
- Stopping a consumer while Kafka is away raises `CancelledError`, or never ends: see `Fetcher`.
- A broker that was just started is believed before it knows its groups and topics: see `Coordinator`.
- Connections end badly under uvloop, and metadata is asked for without a pause: see `aiokafka_compat`.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from functools import partial
from types import MethodType
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.consumer import fetcher
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.errors import (
    NoError,
    NotLeaderForPartitionError,
    OffsetOutOfRangeError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.protocol.fetch import FetchRequest

from stream_rec.config import BATCH_BYTES
from stream_rec.kafka.aiokafka_compat import correct, with_globals
from stream_rec.kafka.connection import Access
from stream_rec.kafka.record_batches import Batches, Reading, Records, Unreadable

log = logging.getLogger(__name__)

TRIES, PAUSE_S = 50, 0.1
"""How often a leader asks for topics that the broker does not tell of, and the pause between, seconds."""
AGAIN_S = 0.1
"""After which a task that goes on is cancelled once more, seconds."""
FIRST_S, LONGEST_S = 0.1, 10.0
"""The pause before a partition that Kafka could not read is fetched again for the first time, and the longest one."""
TELL_S = 60.0
"""How often the log says that a partition can't be read, seconds."""
TREATED = {
    one.errno
    for one in (
        NotLeaderForPartitionError,
        OffsetOutOfRangeError,
        TopicAuthorizationFailedError,
        UnknownTopicOrPartitionError,
    )
}
"""Errors of a partition that aiokafka does something about. Any other it logs, and fetches again at once."""


def log_skipped(unreadable: Unreadable) -> None:
    """What a consumer does by default about a record that it can't read."""
    log.warning("%s: skipped, it can't be read", unreadable)


def make_consumer(
    access: Access,
    *topics: str,
    max_batch_bytes: int = BATCH_BYTES,
    passed_on: tuple[type, ...] = (),
    on_skipped: Callable[[Unreadable], None] = log_skipped,
    **options: Any,
) -> AIOKafkaConsumer:
    """A consumer of committed records that commits nothing by itself; `options` are aiokafka's own.

    What can't be read, and a batch that holds more than `max_batch_bytes`, is skipped, and `on_skipped` is called with
    it; or, with `Unreadable` in `passed_on`, it is returned among the records. With `Gap` in it, so is a stand-in for
    the last of some offsets that hold no record.
    """
    options = {"isolation_level": "read_committed", "enable_auto_commit": False} | options
    return corrected(AIOKafkaConsumer(*topics, **access, **options), Reading(max_batch_bytes, passed_on, on_skipped))


def corrected(consumer: AIOKafkaConsumer, reading: Reading) -> AIOKafkaConsumer:
    """Makes a `Consumer` of one that has not been started."""
    consumer.__class__ = Consumer
    consumer._reading = reading
    correct(consumer._client)
    return consumer


class Consumer(AIOKafkaConsumer):  # type: ignore[misc]  # aiokafka is partly typed
    """Starts with a fetcher and a group coordinator of the classes below."""

    _reading: Reading

    @property
    def failed_fetches(self) -> "FailedFetches":
        """Of a consumer that has started."""
        failed: FailedFetches = self._fetcher.failed
        return failed

    async def start(self) -> None:
        start = with_globals(
            AIOKafkaConsumer.start, Fetcher=partial(Fetcher, self._reading), GroupCoordinator=Coordinator
        )
        await start(self)


class Failure(NamedTuple):
    """Of the fetches of a partition, since the last one that went well."""

    error: str
    times: int
    again_at: float
    """When it may be fetched again, seconds of a monotonic clock."""
    told_at: float


class FailedFetches:
    """Partitions that Kafka answers it can't read, as it does for a damaged disk (CORRUPT_MESSAGE).

    aiokafka 0.14 (not reported) fetches them again without a pause: hundreds of requests a second for as long as the
    damage lasts. Here each waits for longer and longer, and the partitions beside it are read as before.
    """

    def __init__(self) -> None:
        self._failures: dict[TopicPartition, Failure] = {}
        self._new = 0

    @property
    def reasons(self) -> set[str]:
        """Which partitions can't be read at the moment, in words."""
        return {_unread(partition, failure.error) for partition, failure in list(self._failures.items())}

    def take_count(self) -> int:
        """Failed fetches since it was last asked."""
        count, self._new = self._new, 0
        return count

    def note(self, response: Any, now: float) -> None:
        """What Kafka says of each partition in an answer."""
        for topic, partitions in response.topics:
            for number, code, *_ in partitions:
                partition = TopicPartition(topic, number)
                if code in TREATED or code == NoError.errno:
                    self._failures.pop(partition, None)
                else:
                    self._fail(partition, for_code(code).__name__, now)

    def _fail(self, partition: TopicPartition, error: str, now: float) -> None:
        self._new += 1
        before = self._failures.get(partition)
        count = 1 if before is None else before.times + 1
        told_at = now if before is None or now - before.told_at >= TELL_S else before.told_at
        if told_at == now:
            log.error("%s; trying again", _unread(partition, error))
        again_at = now + min(LONGEST_S, FIRST_S * 2.0 ** min(count - 1, 30))
        self._failures[partition] = Failure(error, count, again_at, told_at)

    def paused(self, assigned: Collection[TopicPartition], now: float) -> set[TopicPartition]:
        """Those of the `assigned` partitions that are not to be fetched yet; what is said of others is forgotten."""
        self._failures = {one: failure for one, failure in self._failures.items() if one in assigned}
        return {one for one, failure in self._failures.items() if failure.again_at > now}


def _unread(partition: TopicPartition, error: str) -> str:
    return f"Kafka can't read topic {partition.topic}, partition {partition.partition} ({error})"


class Heard:
    """A Kafka client that notes the answers to fetches in `failed`; for all else it is the client itself."""

    def __init__(self, client: Any, failed: FailedFetches) -> None:
        self._client = client
        self._failed = failed

    async def send(self, node_id: int, request: Any, **options: Any) -> Any:
        response = await self._client.send(node_id, request, **options)
        if isinstance(request, FetchRequest):
            self._failed.note(response, time.monotonic())
        return response

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


class Without(NamedTuple):
    """An assignment without some of its partitions."""

    assignment: Any
    left_out: Collection[TopicPartition]

    @property
    def tps(self) -> list[TopicPartition]:
        return [one for one in self.assignment.tps if one not in self.left_out]

    def state_value(self, partition: TopicPartition) -> Any:
        return self.assignment.state_value(partition)


class Fetcher(fetcher.Fetcher):  # type: ignore[misc]
    """Reads batches as `record_batches` does, pauses as `FailedFetches` says, and ends when it is closed.

    aiokafka cancels its fetches and lets the cancellation of one that waits for another attempt, as they do while Kafka
    is away, out of `close`: the consumer stays half open, and its caller takes itself for cancelled. And its task loses
    a cancellation that comes while it waits for the fetches of partitions that are gone: `close` never returns.
    """

    def __init__(self, reading: Reading, client: Any, *given: Any, **options: Any) -> None:
        self._reading = reading
        self.failed = FailedFetches()
        process = with_globals(
            fetcher.Fetcher._proc_fetch_request, MemoryRecords=Batches, PartitionRecords=self._records_of
        )
        self._proc_fetch_request = MethodType(process, self)
        super().__init__(Heard(client, self.failed), *given, **options)

    def _get_actions_per_node(self, assignment: Any) -> Any:
        paused = self.failed.paused(assignment.tps, time.monotonic())
        return super()._get_actions_per_node(Without(assignment, paused) if paused else assignment)

    def _records_of(self, partition: TopicPartition, *given: Any) -> Records:
        state = self._subscriptions.subscription.assignment.state_value(partition)
        return Records(self._reading, state.highwater, partition, *given)

    async def close(self) -> None:
        self._closed = True
        while not self._fetch_task.done():
            self._fetch_task.cancel()
            await asyncio.wait({self._fetch_task}, timeout=AGAIN_S)
        fetches = set(self._pending_tasks)
        for fetch in fetches:
            fetch.cancel()
        if fetches:
            await asyncio.wait(fetches)
        self._pending_tasks.clear()
        await super().close()


class Coordinator(GroupCoordinator):  # type: ignore[misc]
    """A member of a group that waits for what a broker that was just started does not know yet."""

    async def _send_req(self, request: Any) -> Any:
        """Also raises the error of a whole answer about committed offsets, one that aiokafka tries again on.

        Since version 2 of OffsetFetch (KIP-88) an error that concerns the group stands beside the partitions, and none
        of those is named. aiokafka looks at the partitions alone: while a broker still loads the group, it reads
        "nothing was ever committed", and the consumer begins anew at the first offset.
        """
        response = await super()._send_req(request)
        if isinstance(request, OffsetFetchRequest):
            error = for_code(getattr(response, "error_code", NoError.errno))
            if error is not NoError:
                self.coordinator_dead()  # asked for anew before the next attempt
                raise error
        return response

    async def _perform_assignment(self, response: Any) -> Any:
        """Assigns partitions only when the leader knows how many each topic has.

        A broker that was just started does not tell of every topic at once. aiokafka assigns what it knows of, which
        may be nothing, and looks again when its metadata is as old as `metadata_max_age_ms`: five minutes later.
        """
        assignments = await super()._perform_assignment(response)
        for _ in range(TRIES):
            if all(self._metadata_snapshot.values()):
                break
            await asyncio.sleep(PAUSE_S)
            await self._client.force_metadata_update()
            assignments = await super()._perform_assignment(response)
        return assignments
