"""The inference loop: fetches windows in batches, runs the model, and commits each answer with the offset it answers.

Three things run concurrently: the Kafka client fetches on the event loop, one thread runs the model, and the previous
batch's transaction is committed. A batch is limited to what the model can compute in one step; records beyond that stay
in the backlog. Batches are published in order. Every error has the same remedy: drop the backlog and the batch in
flight, acquire the partitions again, and resume from their last commits. State in memory needs no repair: cached keys
and values are identified by their content, and learning a window a second time changes nothing.
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
"""How long a fetch waits for windows when there are none, milliseconds."""
FRESH_MS = 3
"""How long a step waits for windows that have arrived in Kafka and are not fetched yet, milliseconds."""
RETRY_S = 0.5
"""Pause after an error of Kafka's, seconds."""
SESSION_MS = 6_000
"""After this time without heartbeats the partitions of a worker move to another one, milliseconds."""
REBALANCE_MS = 6_000
"""How long the group waits for a member to release its partitions before it continues without it, milliseconds."""
SWITCH_LAG = 1_000
"""Most windows that a new model may be behind the current one when it replaces it."""
SNAPSHOT_AFTER = 10_000
"""After a start that replayed more windows than this, a snapshot is saved, so that the next start is faster."""

TRIAL_S = 60.0
"""How long the previous model is kept after a new one has replaced it, seconds."""

T = TypeVar("T")


class InferenceLoop(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka is partly typed
    """Answers the windows of the assigned partitions with the model of `runner` until it is stopped."""

    def __init__(
        self, settings: Settings, runner: ModelRunner, metrics: WorkerMetrics, health: Health, guard: TopicGuard
    ) -> None:
        self._settings = settings
        self._guard = guard
        self._metrics = metrics
        self._health = health
        self.runner = runner
        self._former: ModelRunner | None = None
        """The previous model, kept for `TRIAL_S` after a swap; its statistics and cache are empty."""
        self._trial: asyncio.Task[None] | None = None
        self._processor = BatchProcessor(settings, metrics)
        self._joined = asyncio.Event()  # set once the consumer has joined the group
        self._turn = asyncio.Lock()  # held from fetching a batch until its transaction is started
        self._backlog: list[ConsumerRecord] = []
        """Records fetched and not answered yet, in the order of arrival."""
        self._interruptible: asyncio.Task[Any] | None = None
        """Work that holds `_turn` and may take long; a rebalance cancels it, see `_until_rebalance`."""
        self._rebalancing = True
        """True until Kafka has assigned partitions, at the start and in each rebalance."""
        self._publishing: asyncio.Task[None] | None = None
        self._assigned: frozenset[TopicPartition] = frozenset()
        self._publisher: TransactionalPublisher | None = None
        """Publishes for the acquired partitions; a new one for each assignment."""

    async def run(self, stop: asyncio.Event) -> None:
        """Serves until `stop` is set; then commits the batch in flight and leaves the group."""
        consumer = await run_until_stopped(start_with_retry(self._reader), stop)
        if consumer is None:
            return
        self._consumer = consumer
        self._joined.set()
        self._guard.protect(self._consumer)
        beside = [asyncio.create_task(self._report_lag()), asyncio.create_task(self._interrupt_at(stop))]
        try:
            while not stop.is_set():
                try:
                    async with self._turn:
                        await self._until_rebalance(self._acquire_partitions())
                        await self._serve_batch()
                except KafkaError as error:
                    log.warning("Kafka: %s; going on from the last commits", type(error).__name__)
                    await self._wait_for_commit()
                    await self._release_partitions()  # fetched records may be lost
                    await asyncio.sleep(RETRY_S)
                except ModelError as error:
                    await self._revert_model(error)
                await asyncio.sleep(0)  # lets a waiting rebalance take `_turn`
        finally:
            for task in beside:
                task.cancel()
            await self._wait_for_commit()
            await self._release_partitions()
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

    async def swap(self, runner: ModelRunner) -> None:
        """Replaces the model by that of `runner` between two steps.

        The new model replays the windows topic while the current one serves; only the last few windows are replayed
        while serving pauses. The previous model is kept for `TRIAL_S`, see `_revert_model`.
        """
        await self._joined.wait()
        await self._end_trial()
        await runner.statistics_sync.prepare_partitions(self._served)
        while True:
            try:
                before, count = math.inf, await self._replay_into(runner)
                while SWITCH_LAG < count < before:
                    before, count = count, await self._replay_into(runner)
                async with self._turn:
                    await self._wait_for_commit()
                    await self._replay_into(runner)
                    former, self.runner = self.runner, runner
                    self._metrics.drift.clear()  # its values are the previous model's
                    self._tail_other_partitions()
            except KafkaError as error:
                log.warning("Kafka: %s; the new model waits", type(error).__name__)
                await asyncio.sleep(RETRY_S)
            else:
                self.runner.update_metrics()
                await former.statistics_sync.reset()
                self._former = former
                self._trial = asyncio.create_task(self._keep_former_model())
                return

    async def _keep_former_model(self) -> None:
        await asyncio.sleep(TRIAL_S)
        former, self._former = self._former, None
        if former is not None:
            await former.close()

    async def _end_trial(self) -> None:
        """Closes the previous model if it is still kept."""
        if self._trial is not None:
            if self._former is not None:  # otherwise the trial is closing it
                self._trial.cancel()
            await asyncio.gather(self._trial, return_exceptions=True)
        former, self._former = self._former, None
        if former is not None:
            await former.close()

    async def _revert_model(self, error: ModelError) -> None:
        """Returns to the previous model, because the current one no longer gives answers.

        The batch in flight is dropped and the partitions are acquired again. Raises `error` if no previous model is
        kept.
        """
        await self._wait_for_commit()
        await self._release_partitions()
        async with self._turn:
            former, self._former = self._former, None
            if former is None or self._trial is None:
                raise error
            self._trial.cancel()
            bad, self.runner = self.runner, former
        self._metrics.drift.clear()
        self._metrics.model_loads.labels("reverted").inc()
        log.error("model %s is followed by the one before, %s: %s", bad.engine.version, former.engine.version, error)
        await bad.close()
        self.runner.update_metrics()

    async def _replay_into(self, runner: ModelRunner) -> int:
        """Replays into `runner` the windows that the current model has learned; returns how many."""
        ends = dict(self.runner.statistics_sync.learned)
        if not ends:
            return 0
        begins = await self._consumer.beginning_offsets(list(ends))
        return await runner.statistics_sync.replay_until(
            {one: OffsetRange(begins[one], end) for one, end in ends.items()}
        )

    async def on_partitions_revoked(self, revoked: Sequence[TopicPartition]) -> None:
        """Commits the batch in flight before the partitions move."""
        self._rebalancing = True
        self._health.not_ready_reasons.add(REBALANCING)
        self._interrupt()
        async with self._turn:
            await self._wait_for_commit()
            self._assigned -= frozenset(revoked)
            await self._release_partitions()  # a new owner of one of them fences the publisher

    async def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> None:
        """The loop acquires new partitions: that may take long, and heartbeats must continue meanwhile."""
        self._assigned = frozenset(assigned)
        self._rebalancing = False

    def _interrupt(self) -> None:
        if self._interruptible is not None:
            self._interruptible.cancel()

    async def _interrupt_at(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._interrupt()

    async def _until_rebalance(self, work: Coroutine[Any, Any, T]) -> T | None:
        """The result of `work`; None if a rebalance or a stop cancels it.

        The group removes a member that delays a rebalance. Two workers that replay long partitions would otherwise
        remove each other again and again.
        """
        self._interruptible = asyncio.create_task(work)
        try:
            await asyncio.wait({self._interruptible})
        finally:
            self._interruptible.cancel()
        return None if self._interruptible.cancelled() else self._interruptible.result()

    @property
    def _served(self) -> frozenset[TopicPartition]:
        return frozenset() if self._publisher is None else frozenset(self._publisher.partitions)

    async def _release_partitions(self) -> None:
        """Stops serving all partitions. Their next owner fetches the backlog again."""
        self._backlog = []
        publisher, self._publisher = self._publisher, None
        if publisher is not None:
            await publisher.close()

    async def _acquire_partitions(self) -> None:
        """Acquires the assigned partitions and resumes each from the last commit of its previous owner."""
        if self._served != self._assigned:
            await self._release_partitions()
            names = self._settings.windows_topic, self._settings.recommendations_topic
            state = state_of(*(self._guard.topics[name] for name in names))
            publisher = await TransactionalPublisher.open(self._settings, state, self._processor.room.batch)
            try:
                learned = await self._resume(publisher, sorted(self._assigned))
            except BaseException:
                await publisher.close()
                raise
            self._publisher = publisher
            if learned > SNAPSHOT_AFTER:
                await self.runner.statistics_sync.save_snapshot()
            process.freeze_gc()
            log.info("worker ready: %d partitions, model %s", len(self._assigned), self.runner.engine.version)
        self._tail_other_partitions()
        if not self._rebalancing:
            self._health.not_ready_reasons.discard(REBALANCING)

    async def _resume(self, publisher: TransactionalPublisher, partitions: Sequence[TopicPartition]) -> int:
        """Acquires `partitions` and replays the windows before their commits; returns how many."""
        await self.runner.statistics_sync.prepare_partitions(partitions)
        begins = await self._consumer.beginning_offsets(partitions)
        learned = 0
        for one, begin in sorted(begins.items()):
            position = await publisher.acquire_partition(
                one, begin, self._consumer._coordinator.fetch_committed_offsets
            )
            end = (await self._consumer.end_offsets([one]))[one]
            if position > end:
                log.warning("Kafka has lost windows of %s[%d]: answers continue at its end", *one)
                position = end
            learned += await self.runner.statistics_sync.replay_until({one: OffsetRange(begin, position)})
            self._consumer.seek(one, position)
        return learned

    def _tail_other_partitions(self) -> None:
        every = self._consumer.partitions_for_topic(self._settings.windows_topic) or ()
        self.runner.statistics_sync.tail_other_partitions(
            {TopicPartition(self._settings.windows_topic, one) for one in every} - self._assigned
        )

    async def _serve_batch(self) -> None:
        """Fetches a batch, computes its answers and starts its transaction; if there is none, encodes windows ahead."""
        await self._collect_batch()
        if not self._backlog:
            if self.runner.prewarm_queue:
                await self.runner.call(self.runner.encode_ahead)
            return
        answers, count = await self.runner.call(self._processor.process, self.runner, self._backlog)
        if any(answer.failed for answer in answers):
            await self.runner.probe()  # raises if the model is at fault, not the windows
        answered, self._backlog = self._backlog[:count], self._backlog[count:]
        await self._wait_for_commit()
        if self._publisher is not None:  # the previous batch was committed
            self._publishing = asyncio.create_task(self._publish(self._publisher, answered, answers))

    async def _collect_batch(self) -> None:
        """Collects up to `batch_windows` records: the backlog first, then whatever arrives within `linger_ms`."""
        if not self._backlog:
            await self._fetch(0 if self.runner.prewarm_queue else FETCH_MS)
            if 0 < len(self._backlog) < self._settings.batch_windows:
                # this batch waits for the commit of the previous one anyway, so it may grow meanwhile
                await asyncio.gather(self._wait_for_commit(), asyncio.sleep(self._settings.linger_ms / 1_000))
        await self._fetch(0)
        await self._fetch(FRESH_MS)  # records that arrived since the client's last fetch

    async def _fetch(self, wait_ms: int) -> None:
        """Fills the backlog up to `batch_windows`. Fetches nothing until assigned partitions are acquired."""
        room = self._settings.batch_windows - len(self._backlog)
        served = self._served & self._assigned
        if self._rebalancing or not served:  # for aiokafka, no partitions means all assigned ones
            await asyncio.sleep(wait_ms / 1_000)
        elif room > 0:
            # during a rebalance this would wait for the next assignment
            fetch = self._consumer.getmany(*served, timeout_ms=wait_ms, max_records=room)
            for records in (await self._until_rebalance(fetch) or {}).values():
                self._backlog += records

    async def _publish(
        self, publisher: TransactionalPublisher, records: Sequence[ConsumerRecord], answers: Sequence[Answer]
    ) -> None:
        """Publishes one batch in a transaction. If that fails, the loop acquires all partitions again."""
        replies: defaultdict[int, list[OutputRecord]] = defaultdict(list)
        for answer in answers:
            replies[answer.partition].append(answer.reply)
        ends = {_partition(record): record.offset + 1 for record in records}
        began = time.monotonic()
        try:
            await publisher.publish({one: PartitionOutput(replies[one.partition], end) for one, end in ends.items()})
        except (KafkaError, OSError, TimeoutError) as error:
            self._metrics.transactions.labels("failed").inc()
            log.warning("a transaction failed (%s), resuming from the last commits", type(error).__name__)
            await self._release_partitions()
            if isinstance(error, MessageSizeTooLargeError):
                await self._refresh_size_limit()
            return
        now = time.time()
        self._metrics.transactions.labels("committed").inc()
        self._metrics.commit_seconds.observe(time.monotonic() - began)
        arrivals = [answer.arrived for answer in answers if answer.arrived is not None]
        self._metrics.recommendations.labels(self.runner.engine.version).inc(len(arrivals))
        for arrived in arrivals:
            self._metrics.latency.observe(max(0.0, now - arrived))
        for answer in answers:
            if answer.prediction is not None:
                answer.prediction.committed_s = now
        self.runner.statistics_sync.learned |= ends

    async def _refresh_size_limit(self) -> None:
        """Reads the topic's size limit again: larger answers become dead letters.

        Raises `UserError` if the topic takes no dead letters.
        """
        try:
            room = await topics.room(self._settings, self._settings.recommendations_topic)
        except NoBrokerError:  # asked again after the next failed transaction
            return
        log.warning("Kafka takes answers of up to %d bytes: larger ones become dead letters", room.record)
        self._processor.room = room

    async def _wait_for_commit(self) -> None:
        """Waits for the transaction in flight, if there is one."""
        if self._publishing is not None:
            await asyncio.shield(self._publishing)
            self._publishing = None

    async def _report_lag(self) -> None:
        lag = LagMonitor(self._metrics.lag, self._health)
        while True:
            self.runner.update_metrics()
            self._health.troubles = self.runner.troubles
            show_failed(self._consumer.failed_fetches, self._metrics.failed_fetches, self._health)
            await lag.measure(self._lag_by_partition())
            await asyncio.sleep(1)

    async def _lag_by_partition(self) -> dict[int, int]:
        """Windows not answered yet, by partition served."""
        served = self._served & self._assigned
        asked = served or {TopicPartition(self._settings.windows_topic, 0)}  # only to see whether Kafka answers
        ends = await self._consumer.end_offsets(asked)
        waiting = Counter(map(_partition, self._backlog))
        places = {one: await self._consumer.position(one) for one in served}
        return {one.partition: max(0, ends[one] - place + waiting[one]) for one, place in places.items()}


def _partition(record: ConsumerRecord) -> TopicPartition:
    return TopicPartition(record.topic, record.partition)
