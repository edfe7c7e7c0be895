"""faust's Kafka driver, with what loses or doubles an event in faust-streaming 0.15.3 put right.

What each class here, in `faust_thread` and in `faust_producer` mends, and how it showed:

- A commit did not depend on the writes before it. faust flushes first, but its flush gives up after 0.1 s without
  progress (a slow broker), does not see the message that it is just handing over, and a write that Kafka refused is
  only logged. A crash after such a commit has lost windows.
- The offset to commit was guessed from acknowledgements. faust acknowledges an event whose agent raised; it takes an
  offset behind a gap (a transaction marker, an expired segment) for done before it was read, holds a list as long as
  the gap, and never commits again after a gap of two behind offset 0.
- Events that Kafka had handed over just before the tables were ready were thrown away, with their place in the queue.
- What is fetched before the tables are ready is set aside and read again from the last commit; a group that has not
  committed yet never read it again, until its next start.
- Events of aborted transactions were read.
- A process that stood still for longer than the group waits (a paused machine, say) went on with events that another
  one had done meanwhile, and wrote old windows over new ones.
- Events were read while faust still asked where to go back to, which takes as long as Kafka takes to answer. Those
  before them had been set aside; a commit in between has lost these, and without one all came a second time.
- A process that the group had given up, and took in again, wrote what was still on its way from before.
- Writes on their way to Kafka stood in a queue without end: an agent with more events than Kafka took windows grew, and
  its commits, which wait for the writes before them, came later and later.
- A look for partitions that stand still ended the process where it was not known yet where to read one from.
- A record that Kafka refused for its size ended the process, and the next one at the same record.
- Records of a recovery that a rebalance ended stayed in the queue, or came into it afterwards; the next one passed over
  those before them.

And two things that cost a fifth of an agent's time: four tasks for each message, and a fetch for each few messages.

The driver is chosen by the scheme of the broker's address, `SCHEME`.
"""

import asyncio
import logging
import time
from collections.abc import Collection, Coroutine, Generator, Iterator, Mapping
from typing import Any

import faust
from faust.transport.drivers import TRANSPORTS
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from faust.types.tuples import ConsumerMessage
from mode.utils.queues import FlowControlEvent, ThrowableQueue

from stream_rec.kafka.aiokafka_compat import with_globals
from stream_rec.kafka.connection import Access
from stream_rec.kafka.consumer import FailedFetches, log_skipped
from stream_rec.kafka.lag import Readable
from stream_rec.kafka.record_batches import Gap, Unreadable
from stream_rec.pipeline.faust_producer import Producer
from stream_rec.pipeline.faust_thread import SESSION_S, ConsumerThread


class ChangelogQueue(ThrowableQueue):  # type: ignore[misc]
    """Changelog records on their way to the tables; hands over none that was read before the last seek.

    To faust an offset below one that it has seen was read already. One record left over from a recovery that a
    rebalance ended would hide all those that come before it: their users would begin anew, or go on from an older
    window. That the queue is emptied when partitions are revoked is not enough: whoever waits for room to put a record,
    and has just been given it, puts the record afterwards, and it is taken before the next recovery looks up where to
    begin.
    """

    recovering = False
    """Whether what is put now was read behind the seek of the recovery that goes on, or went on last."""

    async def get(self) -> Any:
        while True:
            event = await super().get()
            if self.recovering:
                return event


class FlowControl(FlowControlEvent):  # type: ignore[misc]
    """Lets the streams go on without emptying their queues: what came meanwhile would be lost.

    The changelogs' queue is emptied elsewhere, see `Consumer.seek_wait`.
    """

    def resume(self) -> None:
        self._suspend.clear()
        self._resume.set()


SCHEME = "exact"
FRESH = 0.75
"""The share of it after which this process writes nothing more; at half of it, it asks."""

REVOKED_S = 30.0
"""How long writes may be on their way when partitions are to move, seconds; the group waits 60 for this process."""

NEWS_S = 0.2
"""How long a read waits for something to come, seconds; partitions resumed meanwhile are read after it."""

PAUSE_S = 0.02
"""Between two looks for a partition to read, seconds."""

log = logging.getLogger(__name__)


def credentials(access: Access) -> Any:
    """What aiokafka takes, in faust's own form."""
    context = access.get("ssl_context")
    if "sasl_mechanism" not in access:
        return context
    return faust.SASLCredentials(
        username=access["sasl_plain_username"],
        password=access["sasl_plain_password"],
        mechanism=access["sasl_mechanism"],
        ssl_context=context,
    )


class NoEvent(ConsumerMessage):  # type: ignore[misc]
    """Stands for what is no event, in its place among them: `record` says what it is."""

    __slots__ = ("record",)


_to_no_event = with_globals(driver.Consumer._to_message, ConsumerMessage=NoEvent)


class Consumer(driver.Consumer):  # type: ignore[misc]
    """Commits what the agent says it has done, once Kafka has confirmed what came of it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.done: dict[TP, int] = {}
        """The offset after the last event that the agent has done, in each partition; the agent writes it."""
        self._committed: dict[TP, int] = {}
        """What of it Kafka has confirmed."""
        self._committing = asyncio.Lock()
        self._sought: asyncio.Future[None] | None = None
        """The last return to what is committed, done or not."""

    def _new_consumer_thread(self) -> ConsumerThread:
        return ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Ends the process where its writes stay on their way: it joins anew, or for the first time, without any.

        As soon as it has joined, the group counts it in again, and nothing would keep them from Kafka: behind what the
        next owner of their partitions has read, or has written meanwhile.
        """
        self.app.tables.changelog_queue.recovering = False
        await super().on_partitions_revoked(revoked)
        try:
            async with asyncio.timeout(REVOKED_S):
                await self.app.producer.confirmed()
        except TimeoutError as late:
            log.error("Kafka took a write for %.0f s while partitions move: this process ends", REVOKED_S)
            self.app.producer.give_up(late)
        self.done.clear()
        self._committed.clear()

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        self._thread.counted_at = time.monotonic()
        await super().on_partitions_assigned(assigned, generation_id)

    async def perform_seek(self) -> None:
        """Hands nothing over meanwhile: what was read before would come a second time after it.

        Who waits for it may give up, because partitions move or Kafka is slow; it goes on, and a later one comes after.
        """
        held = {tp for tp in self._get_active_partitions() if not self._is_changelog_tp(tp)}
        self.pause_partitions(held)
        self._sought = asyncio.ensure_future(self._return(held, self._sought))
        self._sought.add_done_callback(_retrieve)
        await asyncio.shield(self._sought)

    async def _return(self, held: set[TP], earlier: asyncio.Future[None] | None) -> None:
        generation = self.app.consumer_generation_id
        if earlier is not None:
            await asyncio.wait({earlier})
        try:
            await super().perform_seek()
        except Exception as error:
            if self.app.consumer_generation_id == generation and not self.should_stop:
                log.error("no way back to the last commits (%s): this process ends", type(error).__name__)
                self.app.producer.give_up(error)  # nobody may be waiting any more, and the partitions would stay paused
            raise
        if self.app.consumer_generation_id == generation:
            self.resume_partitions(held)

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        """Also drops what was read of the changelogs for a recovery that came to nothing, see `ChangelogQueue`."""
        await super().seek_wait(partitions)
        self.app.tables.changelog_queue.clear()
        self.app.tables.changelog_queue.recovering = True

    async def verify_all_partitions_active(self) -> None:
        """Nothing: whether a partition stands still, its lag tells, see `waiting`."""

    def _to_message(self, tp: TP, record: Any) -> ConsumerMessage:
        """Also makes a `NoEvent` of an `Unreadable` or a `Gap`.

        In a changelog that is a tombstone of the empty key, which no user has: the table stays as it is, and a recovery
        gets to the end of what it has to read also where that is no record.
        """
        if not isinstance(record, Unreadable | Gap):
            return super()._to_message(tp, record)
        if self._is_changelog_tp(tp):
            if isinstance(record, Unreadable):
                log_skipped(record)
            record = Gap(tp.topic, tp.partition, record.offset, record.timestamp, 0, b"", None, None, 0, -1, ())
        message = _to_no_event(self, tp, record)
        message.record = record
        return message

    async def counted(self) -> bool:
        """Whether the group still counts this process in; False means that its partitions may have a new owner."""
        return bool(await self._thread.counted())

    @property
    def fresh(self) -> bool:
        """Whether the group's last answer is so young that no partition of this process can have a new owner."""
        return bool(time.monotonic() - self._thread.counted_at < FRESH * SESSION_S)

    async def waiting(self, topic: str) -> dict[int, int]:
        """Events not done yet, in each assigned partition of `topic`."""
        assigned = [tp for tp in self.assignment() if tp.topic == topic]
        ends = await self.highwaters(*assigned)
        return {tp.partition: max(0, ends[tp] - (self.done.get(tp) or await self.position(tp) or 0)) for tp in assigned}

    @property
    def failed_fetches(self) -> FailedFetches:
        failed: FailedFetches = self._thread._ensure_consumer().failed_fetches
        return failed

    def readable(self, topic: str) -> dict[int, Readable]:
        """How far each assigned partition of `topic` could be read when it was last fetched from."""
        assigned = self._thread._ensure_consumer()._subscription.subscription.assignment
        states = {tp.partition: assigned.state_value(tp) for tp in assigned.tps if tp.topic == topic}
        return {
            partition: Readable(state.lso, state.highwater)
            for partition, state in states.items()
            if state.highwater is not None and state.lso is not None
        }

    async def wait_first(self, *waits: Any, **options: Any) -> Any:
        """The same; but a message is handed over at once where no queue is full, without a task for each of `waits`."""
        first = waits[0]
        if isinstance(first, Coroutine):
            try:
                pause = first.send(None)
            except StopIteration:
                for other in waits[1:]:
                    other.close()
                return None
            waits = (_Rest(first, pause), *waits[1:])
        return await super().wait_first(*waits, **options)

    async def _getmany(self, **options: Any) -> Any:
        active = set(self._get_active_partitions())  # faust's own set changes while a read goes on
        if not active:  # aiokafka would read all
            await asyncio.sleep(PAUSE_S)
            return {}
        return await super()._getmany(active_partitions=active, timeout=min(options["timeout"], NEWS_S))

    def _filter_tps_with_pending_acks(self, topics: Collection[Any] | None = None) -> Iterator[TP]:
        return iter([tp for tp in self.done if topics is None or tp in topics or tp.topic in topics])

    def _new_offset(self, tp: TP) -> int | None:
        self._acked[tp].clear()
        self._acked_index[tp].clear()
        return self.done.get(tp)

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Gaps do not matter: `done` is no guess."""

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        """One after the other, and never back: an older commit that comes late must not have events read again."""
        if not await self.app.producer.confirmed():
            return False
        async with self._committing:
            newest = {tp: max(offset, self._committed.get(tp, 0)) for tp, offset in offsets.items()}
            committed = bool(await super()._commit(newest))
            if committed:
                self._committed.update(newest)
            return committed


def _retrieve(done: asyncio.Future[None]) -> None:
    """Keeps asyncio from logging a traceback of what fails when nobody waits for it any more."""
    if not done.cancelled():
        done.exception()


class Transport(driver.Transport):  # type: ignore[misc]
    Consumer = Consumer
    Producer = Producer


class _Rest:
    """What is left of a coroutine that has been begun and waits for `pause`."""

    def __init__(self, begun: Coroutine[Any, Any, Any], pause: Any) -> None:
        self._begun = begun
        self._pause = pause

    def __await__(self) -> Generator[Any, Any, Any]:
        try:
            yield self._pause
        except BaseException as error:
            self._begun.throw(error)
            raise
        return (yield from self._begun.__await__())


TRANSPORTS.aliases[SCHEME] = f"{__name__}:Transport"
