"""What a service imports: committed recommendations as they come, the newest one of every user or of one, titles.

async with Recommendations(bootstrap_servers="127.0.0.1:9092", group="home-page") as recommendations:
    async for answer in recommendations:
        ...

async with LatestRecommendations(bootstrap_servers="127.0.0.1:9092") as recommendations:
    await recommendations.caught_up()
    recommendations.get("some user")
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Collection
from contextlib import suppress
from types import TracebackType
from typing import Any, NamedTuple, Self

from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError

from stream_rec.config import Settings
from stream_rec.errors import UserError
from stream_rec.kafka.access_control import AclBinding, check_access, on
from stream_rec.kafka.connection import access
from stream_rec.kafka.consumer import log_skipped, make_consumer
from stream_rec.kafka.key_lookup import KeyLookup, newest_of
from stream_rec.kafka.record_batches import Unreadable
from stream_rec.messages import UNREADABLE, Item, Recommendation, read_item, read_recommendation

log = logging.getLogger(__name__)

COMMIT_S = 1.0
"""How often a group's place is committed, seconds."""
BATCH = 1_000
"""Records after which others on the event loop get their turn."""
CATCH_UP_S = 0.02
"""How often a view that is behind looks whether it still is, seconds."""


class Erased(NamedTuple):
    """The user was erased: drop what you hold of them."""

    user_id: str


class Recommendations:
    """Committed recommendations and erasures, each user's in order; an async context manager and async iterator.

    With a `group` the place is kept: the next one of that group goes on where this one stopped, and several share the
    partitions. An answer counts as handled when the next one is asked for, or when the `async with` ends without an
    exception; after a crash the last second comes again (at least once). A new group begins with the newest answer of
    every user, which compaction keeps. Without a `group` it begins now, and nothing is kept.

    `kafka` are aiokafka's further arguments for a broker that wants TLS or a login. `**access(load_settings())` gives
    them, and `bootstrap_servers`, as the settings say (`stream_rec.kafka.connection`, `stream_rec.config`).

    A record that can't be read is logged and counted in `unreadable`. Raises `UserError` when no broker answers or the
    topic does not exist.
    """

    def __init__(
        self, *, bootstrap_servers: str, topic: str = "recommendations", group: str | None = None, **kafka: Any
    ) -> None:
        self._access = {"bootstrap_servers": bootstrap_servers, **kafka}
        self._topic = topic
        self._group = group
        self._given: ConsumerRecord | None = None
        self._handled: dict[TopicPartition, int] = {}
        self._committed_at = time.monotonic()
        self.unreadable = 0

    async def __aenter__(self) -> Self:
        member = () if self._group is None else (AclBinding("Read", "group", self._group),)
        await check_access(self._access, *on("Read", self._topic), *member)
        self._consumer = make_consumer(
            self._access,
            *((self._topic,) if self._group is None else ()),
            on_skipped=self._skip,
            group_id=self._group,
            auto_offset_reset="latest" if self._group is None else "earliest",
        )
        await self._consumer.start()
        try:
            if self._group is None:  # "latest" would be looked up with the first fetch
                for partition, end in (await self._consumer.end_offsets(self._consumer.assignment())).items():
                    self._consumer.seek(partition, end)
            else:
                self._consumer.subscribe([self._topic])  # now: `start` would wait for the group to form
        except BaseException:
            await self._consumer.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._done_with_given()
            await self._commit()
        finally:
            await self._consumer.stop()

    def __aiter__(self) -> AsyncIterator[Recommendation | Erased]:
        return self

    async def __anext__(self) -> Recommendation | Erased:
        self._done_with_given()
        while True:
            if time.monotonic() > self._committed_at + COMMIT_S:
                await self._commit()
            try:
                async with asyncio.timeout(COMMIT_S):
                    self._given = await self._consumer.getone()
            except TimeoutError:
                continue
            answer = self._read(self._given)
            if answer is not None:
                return answer
            self._done_with_given()

    def _read(self, record: ConsumerRecord) -> Recommendation | Erased | None:
        try:
            return read_recommendation(record.value) if record.value else Erased((record.key or b"").decode())
        except UNREADABLE as error:
            self.unreadable += 1
            log.warning("recommendation at %s/%s can't be read: %s", record.partition, record.offset, error)
            return None

    def _skip(self, record: Unreadable) -> None:
        self.unreadable += 1
        log_skipped(record)

    def _done_with_given(self) -> None:
        if self._given is not None:
            self._handled[TopicPartition(self._given.topic, self._given.partition)] = self._given.offset + 1
            self._given = None

    async def _commit(self) -> None:
        self._committed_at = time.monotonic()
        if self._group is None:
            return
        mine = self._consumer.assignment()
        handled = {partition: offset for partition, offset in self._handled.items() if partition in mine}
        self._handled = {}
        try:
            if handled:
                await self._consumer.commit(handled)
        except (CommitFailedError, IllegalStateError):  # the partitions went to another member, who reads them again
            log.info("a rebalance came before the commit: some recommendations are read again")


class LatestRecommendations:
    """The newest committed recommendation of every user, in this process; an async context manager.

    It reads the topic from its beginning, which compaction keeps short, and then as answers come. An erasure removes
    the user. Held are the bytes as they came, decoded by `get`: about 3 KB a user with 20 items. Beyond `most_users`
    those whose answer is oldest are left out, and counted in `left_out`; an answer that can't be read is logged, and
    counted in `unreadable`.

    `kafka` are further arguments, as of `Recommendations`.

    Raises `UserError` when no broker answers or the topic does not exist. An outage of the broker is waited out, with
    what is there; another error ends the reading, and `get` and `caught_up` raise it.
    """

    def __init__(
        self,
        *,
        bootstrap_servers: str,
        topic: str = "recommendations",
        most_users: int = 1_000_000,
        **kafka: Any,
    ) -> None:
        self._access = {"bootstrap_servers": bootstrap_servers, **kafka}
        self._topic = topic
        self._most_users = most_users
        self._newest: OrderedDict[bytes, bytes] = OrderedDict()
        self.left_out = 0
        self.unreadable = 0

    async def __aenter__(self) -> Self:
        await check_access(self._access, *on("Read", self._topic))
        self._consumer = make_consumer(
            self._access,
            self._topic,
            on_skipped=self._skip,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=100,
        )
        await self._consumer.start()
        self._reading = asyncio.create_task(self._read(), name="latest recommendations")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)  # what ended it before, `get` has raised
        await self._consumer.stop()

    def __len__(self) -> int:
        """Users with a recommendation here."""
        return len(self._newest)

    def get(self, user_id: str) -> Recommendation | None:
        """The newest answer read so far, by the user's name in the topic; None without one."""
        self._check()
        value = self._newest.get(user_id.encode())
        if value is None:
            return None
        try:
            return read_recommendation(value)
        except UNREADABLE as error:
            self.unreadable += 1
            log.warning("a recommendation can't be read: was it written by another version? (%s)", error)
            return None

    async def caught_up(self) -> None:
        """Returns when all that was committed before the call has been read."""
        self._check()
        ends = await self._consumer.end_offsets(self._consumer.assignment())
        while any([await self._consumer.position(partition) < end for partition, end in ends.items()]):
            await asyncio.sleep(CATCH_UP_S)
            self._check()

    def _check(self) -> None:
        """Raises what ended the reading, if anything did."""
        if self._reading.done():
            self._reading.result()

    async def _read(self) -> None:
        while True:
            for records in (await self._consumer.getmany(timeout_ms=1_000, max_records=BATCH)).values():
                for record in records:
                    self._take(record.key, record.value)
            await asyncio.sleep(0)

    def _skip(self, record: Unreadable) -> None:
        self.unreadable += 1
        log_skipped(record)

    def _take(self, key: bytes | None, value: bytes | None) -> None:
        if not key:
            return
        self._newest.pop(key, None)
        if value:
            self._newest[key] = value
        if len(self._newest) > self._most_users:
            self._newest.popitem(last=False)
            self.left_out += 1


async def latest(user_id: str, settings: Settings) -> Recommendation | None:
    """The newest committed answer of a user; None for a user without one, or erased.

    Raises `UserError` when no broker answers, the topic does not exist, or the answer can't be read.
    """
    record = await newest_of(user_id, settings, settings.recommendations_topic)
    if record is None or not record.value:
        return None
    try:
        return read_recommendation(record.value)
    except UNREADABLE as error:
        raise UserError(f"the recommendation can't be read: was it written by another version? ({error})") from None


async def titles(item_ids: Collection[str], settings: Settings) -> dict[str, Item]:
    """The catalogue's entries of these items; one that the `items` topic does not hold, or not readably, is left out.

    Raises `UserError` when no broker answers or the topic does not exist.
    """
    if not item_ids:
        return {}
    async with KeyLookup(access(settings), settings.items_topic) as search:
        records = await search.newest({item_id.encode() for item_id in item_ids})
    found: dict[str, Item] = {}
    for key, record in records.items():
        with suppress(*UNREADABLE):
            if record.value:
                found[key.decode()] = read_item(record.value)
    return found
