"""The thread on which faust reads from Kafka, with what it does there put right, see `faust_kafka`."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from aiokafka.errors import KafkaError
from aiokafka.structs import OffsetAndMetadata
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from stream_rec.kafka.consumer import corrected, log_skipped
from stream_rec.kafka.record_batches import Gap, Reading, Unreadable
from stream_rec.kafka.topic_guard import valid

SESSION_S = 10.0
"""How long the group waits for a silent process before the others get its partitions, seconds."""

GOODBYE_S = 3.0
"""How long leaving the group may take, seconds; whom Kafka does not hear leave, it misses after `SESSION_S`."""

log = logging.getLogger(__name__)

ASK_S = 1.0
"""How long to look for the group's coordinator and hear its answer, seconds, before another try."""

KEEPALIVE_S = 1.1
"""As faust has it, seconds."""

QUIET_MS = 500
"""How long Kafka keeps a fetch that finds nothing, milliseconds. What is assigned meanwhile is fetched after it."""

GATHER_MS, GATHER_BYTES = 20, 1 << 16
"""How long it keeps one while events come, milliseconds, and at how many bytes it answers at once."""


class ConsumerThread(driver.AIOKafkaConsumerThread):  # type: ignore[misc]
    """Reads committed records alone, and knows when the group last counted this process in."""

    counted_at = -SESSION_S

    def _create_worker_consumer(self, transport: driver.Transport) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._isolation_level = "read_committed"
        return corrected(consumer, Reading(self.app.max_batch_bytes, (Unreadable, Gap), log_skipped))

    async def on_start(self) -> None:
        await super().on_start()
        self.app.topic_guard.protect(self._consumer)
        self._consumer.commit = partial(self._commit_for, self._consumer.commit)
        coordinator = self._consumer._coordinator
        coordinator._do_heartbeat = partial(self._heartbeat, coordinator._do_heartbeat)

    async def _keepalive2(self) -> None:
        """Wakes the main thread's event loop as before; without an error in the log when this process had to wait.

        faust logs "Thread keepalive is not responding" where that loop itself, not the thread, was late by 3 s, as on a
        machine with other work. `/healthz` says when it stands still.
        """
        while not self.should_stop:
            await self.sleep(KEEPALIVE_S)
            await self._wakeup_timer_in_thread()

    async def _fetch_records(self, consumer: Any, *given: Any, **options: Any) -> Any:
        """Has Kafka gather what comes while events come: a fetch for each few of them costs more than they do.

        What is gathered there is new when it is read; a pause between two reads would make it older by as much.
        """
        records, fetcher = await super()._fetch_records(consumer, *given, **options), consumer._fetcher
        fetcher._fetch_max_wait_ms, fetcher._fetch_min_bytes = (GATHER_MS, GATHER_BYTES) if records else (QUIET_MS, 1)
        return records

    async def on_thread_stop(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(GOODBYE_S):  # while the group forms anew, faust and aiokafka wait for each other
                await super().on_thread_stop()

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Also back to the beginning where nothing is committed: the rest of faust relies on reading again."""
        offsets: Mapping[TP, int] = await self.call_thread(self._seek_back, self._ensure_consumer())
        return offsets

    async def _seek_back(self, consumer: Any) -> Mapping[TP, int]:
        assigned = consumer.assignment()
        committed = await consumer._coordinator.fetch_committed_offsets(list(assigned))
        changelogs, offsets = self.app.tables.changelog_topics, dict.fromkeys(assigned, 0)
        for tp, (offset, committed_for) in committed.items():
            if valid(committed_for, self.app.committed_for):
                offsets[tp] = offset
            else:
                log.warning("%s[%d] is read from its beginning: the last commit is for topics that are no more", *tp)
        fresh = [tp for tp, offset in offsets.items() if not offset and tp.topic not in changelogs]
        for tp, offset in offsets.items():
            if offset:
                consumer.seek(tp, offset)
        if fresh:
            await consumer.seek_to_beginning(*fresh)
        return offsets

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        """Commits what is still assigned; whether Kafka has taken it. Where it has not, a later commit does it.

        faust logs a traceback and ends the process where Kafka is in trouble, or a partition has just moved.
        """
        assigned = self.assignment()
        mine = {
            driver.ensure_aiokafka_TP(tp): OffsetAndMetadata(offset, "")
            for tp, offset in offsets.items()
            if tp in assigned
        }
        try:
            if mine:
                await self._ensure_consumer().commit(mine)
        except KafkaError as error:
            log.warning("a commit failed (%s) and is tried again", type(error).__name__)
            return False
        return True

    async def _commit_for(
        self, commit: Callable[[Mapping[TP, Any]], Awaitable[None]], offsets: Mapping[TP, OffsetAndMetadata]
    ) -> None:
        """Commits with what the offsets are valid for: Kafka keeps a commit that comes after a topic was made anew."""
        await commit({tp: OffsetAndMetadata(offset, self.app.commit_metadata) for tp, (offset, _) in offsets.items()})

    async def _heartbeat(self, beat: Callable[[], Awaitable[bool]]) -> bool:
        asked = time.monotonic()
        if counts := await beat():
            self.counted_at = asked
        return counts

    async def counted(self) -> bool:
        """Asks the group when its last answer is old, again and again while Kafka is away."""
        coordinator = self._consumer._coordinator
        while time.monotonic() - self.counted_at > SESSION_S / 2:
            if coordinator.member_id == "":  # what aiokafka makes of it when the group does not know this process
                return False
            if not await self.call_thread(self._ask, coordinator):
                await asyncio.sleep(0.1)
        return True

    async def _ask(self, coordinator: Any) -> bool:
        """Looks for the coordinator as well: aiokafka does so only between two rebalances."""
        with suppress(TimeoutError):
            async with asyncio.timeout(ASK_S):
                await coordinator.ensure_coordinator_known()
                return bool(await coordinator._do_heartbeat())
        return False
