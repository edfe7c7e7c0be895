"""Serving: a batch of windows after the other, each answer committed with the offset that caused it.

Three things go on at once: Kafka's client fetches on the event loop, one thread runs the model, and the transaction of
the batch before is committed. A batch is no more than the model can afford in one step, so that no step stalls the
others; what was fetched beyond that waits for the next one. A batch is published only after the one before it, and what
goes wrong has one remedy: drop what waits and what is in flight, take the partitions over anew, go on from their last
commits. Nothing in memory needs repair, because cached keys and values are known by their content and learning twice is
learning once.
"""

import asyncio
import logging
import math
import time
from collections import Counter, defaultdict
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from stream_rec.config import Settings
from stream_rec.errors import ModelError, NoBrokerError
from stream_rec.health import REBALANCING, Health
from stream_rec.kafka import topics
from stream_rec.kafka.connection import access
from stream_rec.kafka.consumer import make_consumer
from stream_rec.kafka.lag import LagMonitor, show_failed
from stream_rec.kafka.offset_ranges import OffsetRange
from stream_rec.kafka.record_batches import Unreadable
from stream_rec.kafka.topic_guard import TopicGuard, state_of
from stream_rec.kafka.transactions import OutputRecord, PartitionOutput, TransactionalPublisher
from stream_rec.metrics import WorkerMetrics
from stream_rec.runtime import process
from stream_rec.runtime.retry import run_until_stopped, start_with_retry
from stream_rec.worker.batch import Answer, BatchProcessor
from stream_rec.worker.model_runner import ModelRunner

log = logging.getLogger(__name__)

FETCH_MS = 200
"""How long a quiet worker waits for windows before it looks around."""
NEWS_MS = 3
"""How long a step waits for what stands in Kafka and is not fetched yet, milliseconds."""
RETRY_S = 0.5
SESSION_MS = 6_000
"""After which a killed worker's partitions move, milliseconds."""
REBALANCE_MS = 6_000
"""How long the group waits for a member to let its partitions go; then it goes on without that one, milliseconds."""
FEW = 1_000
"""Windows that a new model may still have to learn when it is switched to."""
WORTH_KEEPING = 10_000
"""Windows learned at a start from which on the next start shall not have to."""

TRIAL_S = 60.0
"""How long the model before is kept after a swap, seconds."""

T = TypeVar("T")


class InferenceLoop(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka is partly typed
    """Serves the partitions that Kafka assigns to it until it is told to stop, with the model of `host`."""

    def __init__(
        self, settings: Settings, host: ModelRunner, metrics: WorkerMetrics, health: Health, guard: TopicGuard
    ) -> None:
        self._settings = settings
        self._guard = guard
        self._metrics = metrics
        self._health = health
        self.host = host
        self._former: ModelRunner | None = None
        """Of the model before, for `TRIAL_S` after a swap; it holds nothing of users."""
        self._trial: asyncio.Task[None] | None = None
        self._answerer = BatchProcessor(settings, metrics)
        self._joined = asyncio.Event()  # the group, for the first time: from then on there is a consumer
        self._turn = asyncio.Lock()  # held while a batch is between being fetched and being handed to its transaction
        self._waiting: list[ConsumerRecord] = []
        """Fetched and not answered yet, in the order of arrival."""
        self._long: asyncio.Task[Any] | None = None
        """What may take long and holds the turn: a rebalance does not wait for it, see `_unless_moved`."""
        self._moving = True
        """Whether Kafka has yet to say which partitions come next, or first."""
        self._publishing: asyncio.Task[None] | None = None
        self._assigned: frozenset[TopicPartition] = frozenset()
        self._outlet: TransactionalPublisher | None = None
        """Of the partitions that are served; one for each assignment."""

    async def run(self, stop: asyncio.Event) -> None:
        """Serves until `stop` is set; then what is in flight is published and the group is left."""
        consumer = await run_until_stopped(start_with_retry(self._reader), stop)
        if consumer is None:
            return
        self._consumer = consumer
        self._joined.set()
        self._guard.protect(self._consumer)
        beside = [asyncio.create_task(self._measure()), asyncio.create_task(self._interrupt_at(stop))]
        try:
            while not stop.is_set():
                try:
                    async with self._turn:
                        await self._unless_moved(self._take_over())
                        await self._serve()
                except KafkaError as error:
                    log.warning("Kafka: %s; going on from the last commits", type(error).__name__)
                    await self._published()
                    await self._let_go()  # fetched records may be gone
                    await asyncio.sleep(RETRY_S)
                except ModelError as error:
                    await self._fall_back(error)
                await asyncio.sleep(0)  # a rebalance may want its turn
        finally:
            for task in beside:
                task.cancel()
            await self._published()
            await self._let_go()
            await self._end_trial()
            await self._consumer.stop()

    def _reader(self) -> AIOKafkaConsumer:
        consumer = make_consumer(
            access(self._settings),
            max_batch_bytes=self._settings.max_batch_bytes,
            passed_on=(Unreadable,),
            group_id=self._settings.worker_group,
            auto_offset_reset="earliest",
            session_timeout_ms=SESSION_MS,
            rebalance_timeout_ms=REBALANCE_MS,
            heartbeat_interval_ms=SESSION_MS // 5,
            max_partition_fetch_bytes=self._settings.max_message_bytes,
            fetch_max_wait_ms=50,
        )
        consumer.subscribe([self._settings.windows_topic], listener=self)
        return consumer

    async def swap(self, host: ModelRunner) -> None:
        """Goes on with `host` from one step to the next.

        Its memory is rebuilt first, while the former one serves; only the last few windows are learned in between. The
        former one is closed after a trial of `TRIAL_S`, see `_fall_back`.
        """
        await self._joined.wait()
        await self._end_trial()
        await host.learning.prepare_partitions(self._served)
        while True:
            try:
                before, count = math.inf, await self._teach(host)
                while FEW < count < before:
                    before, count = count, await self._teach(host)
                async with self._turn:
                    await self._published()
                    await self._teach(host)
                    former, self.host = self.host, host
                    self._metrics.drift.clear()  # it was said of the former one
                    self._follow_others()
            except KafkaError as error:
                log.warning("Kafka: %s; the new model waits", type(error).__name__)
                await asyncio.sleep(RETRY_S)
            else:
                self.host.show()
                await former.learning.reset()
                self._former = former
                self._trial = asyncio.create_task(self._try())
                return

    async def _try(self) -> None:
        await asyncio.sleep(TRIAL_S)
        former, self._former = self._former, None
        if former is not None:
            await former.close()

    async def _end_trial(self) -> None:
        """Closes the model before, if it is still there."""
        if self._trial is not None:
            if self._former is not None:  # else the trial is closing it
                self._trial.cancel()
            await asyncio.gather(self._trial, return_exceptions=True)
        former, self._former = self._former, None
        if former is not None:
            await former.close()

    async def _fall_back(self, error: ModelError) -> None:
        """Goes on with the model before: the present one gives no answers any more.

        What it has computed is dropped, and the partitions are taken over anew. Raises `error` where no other model is
        there.
        """
        await self._published()
        await self._let_go()
        async with self._turn:
            former, self._former = self._former, None
            if former is None or self._trial is None:
                raise error
            self._trial.cancel()
            bad, self.host = self.host, former
        self._metrics.drift.clear()
        self._metrics.model_loads.labels("reverted").inc()
        log.error("model %s is followed by the one before, %s: %s", bad.engine.version, former.engine.version, error)
        await bad.close()
        self.host.show()

    async def _teach(self, host: ModelRunner) -> int:
        """Teaches the memory of `host` the windows that the present one's has learned; returns how many."""
        ends = dict(self.host.learning.learned)
        if not ends:
            return 0
        begins = await self._consumer.beginning_offsets(list(ends))
        return await host.learning.replay_until({one: OffsetRange(begins[one], end) for one, end in ends.items()})

    async def on_partitions_revoked(self, revoked: Sequence[TopicPartition]) -> None:
        """Lets what is in flight be committed before the partitions go."""
        self._moving = True
        self._health.not_ready_reasons.add(REBALANCING)
        self._interrupt()
        async with self._turn:
            await self._published()
            self._assigned -= frozenset(revoked)
            await self._let_go()  # who takes one of them over bars the outlet

    async def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> None:
        """What is new is taken over in the loop: it may take long, and heartbeats must go on."""
        self._assigned = frozenset(assigned)
        self._moving = False

    def _interrupt(self) -> None:
        if self._long is not None:
            self._long.cancel()

    async def _interrupt_at(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._interrupt()

    async def _unless_moved(self, work: Coroutine[Any, Any, T]) -> T | None:
        """What `work` gives; None if partitions move, or the worker is told to stop, before it is done.

        The group goes on without a member who makes it wait: of two workers, each would be given all partitions while
        the other still reads what they hold, again and again.
        """
        self._long = asyncio.create_task(work)
        try:
            await asyncio.wait({self._long})
        finally:
            self._long.cancel()
        return None if self._long.cancelled() else self._long.result()

    @property
    def _served(self) -> frozenset[TopicPartition]:
        return frozenset() if self._outlet is None else frozenset(self._outlet.partitions)

    async def _let_go(self) -> None:
        """Serves no partition any more. What waits is fetched again by whoever takes it over."""
        self._waiting = []
        outlet, self._outlet = self._outlet, None
        if outlet is not None:
            await outlet.close()

    async def _take_over(self) -> None:
        """Serves the assigned partitions from now on, each from where its last owner committed."""
        if self._served != self._assigned:
            await self._let_go()
            names = self._settings.windows_topic, self._settings.recommendations_topic
            state = state_of(*(self._guard.topics[name] for name in names))
            outlet = await TransactionalPublisher.open(self._settings, state, self._answerer.room.batch)
            try:
                learned = await self._go_on(outlet, sorted(self._assigned))
            except BaseException:
                await outlet.close()
                raise
            self._outlet = outlet
            if learned > WORTH_KEEPING:
                await self.host.learning.save_snapshot()
            process.freeze_gc()
            log.info("worker ready: %d partitions, model %s", len(self._assigned), self.host.engine.version)
        self._follow_others()
        if not self._moving:
            self._health.not_ready_reasons.discard(REBALANCING)

    async def _go_on(self, outlet: TransactionalPublisher, partitions: Sequence[TopicPartition]) -> int:
        """Takes `partitions` over and learns what came before in them; returns how many windows those were."""
        await self.host.learning.prepare_partitions(partitions)
        begins = await self._consumer.beginning_offsets(partitions)
        learned = 0
        for one, begin in sorted(begins.items()):
            position = await outlet.acquire_partition(one, begin, self._consumer._coordinator.fetch_committed_offsets)
            end = (await self._consumer.end_offsets([one]))[one]
            if position > end:
                log.warning("Kafka has lost windows of %s[%d]: answers go on at its end", *one)
                position = end
            learned += await self.host.learning.replay_until({one: OffsetRange(begin, position)})
            self._consumer.seek(one, position)
        return learned

    def _follow_others(self) -> None:
        every = self._consumer.partitions_for_topic(self._settings.windows_topic) or ()
        self.host.learning.tail_other_partitions(
            {TopicPartition(self._settings.windows_topic, one) for one in every} - self._assigned
        )

    async def _serve(self) -> None:
        """Fetches, computes and hands to publishing one batch; has windows encoded ahead where there is none."""
        await self._gather()
        if not self._waiting:
            if self.host.recent:
                await self.host.call(self.host.encode_ahead)
            return
        answers, count = await self.host.call(self._answerer.process, self.host, self._waiting)
        if any(answer.failed for answer in answers):
            await self.host.probe()  # whether the windows are at fault, or the model
        answered, self._waiting = self._waiting[:count], self._waiting[count:]
        await self._published()
        if self._outlet is not None:  # the batch before has gone well
            self._publishing = asyncio.create_task(self._publish(self._outlet, answered, answers))

    async def _gather(self) -> None:
        """Windows for a step: what waits, what is there, and what comes within the linger where none waited."""
        if not self._waiting:
            await self._fetch(0 if self.host.recent else FETCH_MS)
            if 0 < len(self._waiting) < self._settings.batch_windows:
                # its answers would wait for those before them anyway: rather let the batch grow
                await asyncio.gather(self._published(), asyncio.sleep(self._settings.linger_ms / 1_000))
        await self._fetch(0)
        await self._fetch(NEWS_MS)  # what was there was fetched when the last was taken: what has come since

    async def _fetch(self, wait_ms: int) -> None:
        """Adds to what waits as much as there is room for; nothing while partitions move or aren't taken over yet."""
        room = self._settings.batch_windows - len(self._waiting)
        served = self._served & self._assigned
        if self._moving or not served:  # to Kafka's client, no partitions are all that are assigned
            await asyncio.sleep(wait_ms / 1_000)
        elif room > 0:
            # from a rebalance on it would wait for the next assignment
            fetch = self._consumer.getmany(*served, timeout_ms=wait_ms, max_records=room)
            for records in (await self._unless_moved(fetch) or {}).values():
                self._waiting += records

    async def _publish(
        self, outlet: TransactionalPublisher, records: Sequence[ConsumerRecord], answers: Sequence[Answer]
    ) -> None:
        """One transaction; if it fails, all partitions are taken over anew in the loop."""
        replies: defaultdict[int, list[OutputRecord]] = defaultdict(list)
        for answer in answers:
            replies[answer.partition].append(answer.reply)
        ends = {_partition(record): record.offset + 1 for record in records}
        began = time.monotonic()
        try:
            await outlet.publish({one: PartitionOutput(replies[one.partition], end) for one, end in ends.items()})
        except (KafkaError, OSError, TimeoutError) as error:
            self._metrics.transactions.labels("failed").inc()
            log.warning("a transaction failed (%s), going on from the last commits", type(error).__name__)
            await self._let_go()
            if isinstance(error, MessageSizeTooLargeError):
                await self._ask_for_room()
            return
        now = time.time()
        self._metrics.transactions.labels("committed").inc()
        self._metrics.commit_seconds.observe(time.monotonic() - began)
        arrivals = [answer.arrived for answer in answers if answer.arrived is not None]
        self._metrics.recommendations.labels(self.host.engine.version).inc(len(arrivals))
        for arrived in arrivals:
            self._metrics.latency.observe(max(0.0, now - arrived))
        for answer in answers:
            if answer.prediction is not None:
                answer.prediction.committed_s = now
        self.host.learning.learned |= ends

    async def _ask_for_room(self) -> None:
        """Has larger answers than the topic takes now become dead letters. Raises `UserError` where those can't be."""
        try:
            room = await topics.room(self._settings, self._settings.recommendations_topic)
        except NoBrokerError:  # the next transaction asks again
            return
        log.warning("Kafka takes answers of up to %d bytes: larger ones become dead letters", room.record)
        self._answerer.room = room

    async def _published(self) -> None:
        """Returns when the transaction in flight, if any, is over."""
        if self._publishing is not None:
            await asyncio.shield(self._publishing)
            self._publishing = None

    async def _measure(self) -> None:
        lag = LagMonitor(self._metrics.lag, self._health)
        while True:
            self.host.show()
            self._health.troubles = self.host.troubles
            show_failed(self._consumer.failed_fetches, self._metrics.failed_fetches, self._health)
            await lag.measure(self._behind())
            await asyncio.sleep(1)

    async def _behind(self) -> dict[int, int]:
        """Windows that wait in each partition that is served."""
        served = self._served & self._assigned
        asked = served or {TopicPartition(self._settings.windows_topic, 0)}  # whether Kafka answers at all
        ends = await self._consumer.end_offsets(asked)
        waiting = Counter(map(_partition, self._waiting))
        places = {one: await self._consumer.position(one) for one in served}
        return {one.partition: max(0, ends[one] - place + waiting[one]) for one, place in places.items()}


def _partition(record: ConsumerRecord) -> TopicPartition:
    return TopicPartition(record.topic, record.partition)
