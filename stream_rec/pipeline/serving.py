"""Serving: a batch of windows after the other, each answer committed with the offset that caused it.

Three things go on at once: Kafka's client fetches on the event loop, one thread runs the model, and the transaction of
the batch before is committed. A batch is published only after the one before it, and what goes wrong with a partition
has one remedy: drop what is in flight, take the partition over anew, go on from its last commit. Nothing in memory
needs repair, because cached keys and values are known by their content and learning twice is learning once.
"""

import asyncio
import contextlib
import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import msgspec
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from stream_rec.config import Settings
from stream_rec.messages import Recommendation, Window, read_window
from stream_rec.pipeline.answers import Answer, Answerer
from stream_rec.pipeline.transactions import Outlet
from stream_rec.telemetry import WorkerMetrics

if TYPE_CHECKING:
    from stream_rec.model.engine import Engine

log = logging.getLogger(__name__)

FETCH_MS = 200
"""How long a quiet worker waits for windows before it looks around."""
RETRY_S = 0.5
SESSION_MS = 10_000
"""After which a killed worker's partitions move, milliseconds."""

Records = dict[TopicPartition, list[ConsumerRecord]]


class Worker(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka is partly typed
    """Serves the partitions that Kafka assigns to it until it is told to stop."""

    def __init__(self, settings: Settings, engine: "Engine", metrics: WorkerMetrics, torch: ThreadPoolExecutor) -> None:
        self._settings = settings
        self._engine = engine
        self._metrics = metrics
        self._torch = torch
        self._answerer = Answerer(settings, metrics, self._step, self._forget)
        self._turn = asyncio.Lock()  # held while a batch is between being fetched and being handed to its transaction
        self._publishing: asyncio.Task[None] | None = None
        self._assigned: frozenset[TopicPartition] = frozenset()
        self._outlets: dict[TopicPartition, Outlet] = {}
        self._learned: dict[TopicPartition, int] = {}
        """Next offset of each partition that the online memory hasn't learned."""

    async def run(self, stop: asyncio.Event) -> None:
        """Serves until `stop` is set; then what is in flight is published and the group is left."""
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=self._settings.bootstrap_servers,
            group_id=self._settings.worker_group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            session_timeout_ms=SESSION_MS,
            heartbeat_interval_ms=SESSION_MS // 5,
            max_partition_fetch_bytes=self._settings.max_message_bytes,
            fetch_max_wait_ms=50,
        )
        self._consumer.subscribe([self._settings.windows_topic], listener=self)
        await self._consumer.start()
        measuring = asyncio.create_task(self._measure())
        try:
            while not stop.is_set():
                try:
                    async with self._turn:
                        await self._take_over()
                        await self._serve()
                except KafkaError as error:
                    log.warning("Kafka: %s; going on from the last commits", type(error).__name__)
                    await self._published()
                    await self._close_outlets()  # fetched records may be gone: everything is taken over anew
                    await asyncio.sleep(RETRY_S)
                await asyncio.sleep(0)  # a rebalance may want its turn
        finally:
            measuring.cancel()
            await self._published()
            await self._close_outlets()
            await self._consumer.stop()

    async def on_partitions_revoked(self, revoked: Sequence[TopicPartition]) -> None:
        """Lets what is in flight be committed before the partitions go."""
        async with self._turn:
            await self._published()
            self._assigned -= frozenset(revoked)

    async def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> None:
        """What is new is taken over in the loop: it may take long, and heartbeats must go on."""
        self._assigned = frozenset(assigned)
        for partition in self._learned.keys() - self._assigned:
            del self._learned[partition]

    async def _close_outlets(self) -> None:
        while self._outlets:
            _, outlet = self._outlets.popitem()
            await outlet.close()

    async def _take_over(self) -> None:
        """Makes the outlets those of the assigned partitions, and starts new ones where their last owner committed."""
        for partition in self._outlets.keys() - self._assigned:
            await self._outlets.pop(partition).close()
        fresh = sorted(self._assigned - self._outlets.keys())
        for partition in fresh:
            outlet = await Outlet.open(partition, self._settings)  # bars the former owner, then asks where it came to
            try:
                committed = await self._consumer.committed(partition)
                first = (await self._consumer.beginning_offsets([partition]))[partition]
                position = first if committed is None else committed
                await self._remember(partition, max(first, self._learned.get(partition, first)), position)
                self._consumer.seek(partition, position)
            except BaseException:
                await outlet.close()
                raise
            self._outlets[partition] = outlet
        if fresh:
            log.info("worker ready: %d partitions, model %s", len(self._assigned), self._engine.version)

    async def _remember(self, partition: TopicPartition, begin: int, end: int) -> None:
        """Teaches the online memory the windows that were answered before this worker had the partition."""
        self._learned[partition] = max(begin, end)
        if begin >= end:
            return
        began = time.monotonic()
        reader = AIOKafkaConsumer(
            bootstrap_servers=self._settings.bootstrap_servers,
            max_partition_fetch_bytes=self._settings.max_message_bytes,
        )
        await reader.start()
        try:
            reader.assign([partition])
            reader.seek(partition, begin)
            while await reader.position(partition) < end:
                records = (await reader.getmany(timeout_ms=FETCH_MS, max_records=2_000)).get(partition, [])
                await self._in_torch(self._learn, [record.value for record in records if record.offset < end])
        finally:
            await reader.stop()
        log.info("partition %d: memory rebuilt in %.1f s", partition.partition, time.monotonic() - began)

    async def _serve(self) -> None:
        """Fetches, computes and hands to publishing one batch."""
        batch = await self._gather()
        if not batch:
            return
        answers = await self._in_torch(self._answerer.answer, [r for records in batch.values() for r in records])
        await self._published()
        kept = {partition: records for partition, records in batch.items() if partition in self._outlets}
        self._publishing = asyncio.create_task(self._publish(kept, answers))

    async def _gather(self) -> Records:
        """Windows for a step: what is there, and what comes within the linger while there is room."""
        limit = self._settings.batch_windows
        batch: Records = defaultdict(list)
        for wait_ms in (FETCH_MS, self._settings.linger_ms):
            count = sum(map(len, batch.values()))
            if count < limit and (count or wait_ms == FETCH_MS):
                if count:
                    await asyncio.sleep(wait_ms / 1_000)
                fetched = await self._consumer.getmany(
                    *self._outlets, timeout_ms=0 if count else wait_ms, max_records=limit - count
                )
                for partition, records in fetched.items():
                    batch[partition] += records
        return batch

    async def _publish(self, batch: Records, answers: Sequence[Answer]) -> None:
        """One transaction a partition, side by side; a partition that fails is taken over anew in the loop."""
        answered: defaultdict[int, list[Answer]] = defaultdict(list)
        for answer in answers:
            answered[answer.partition].append(answer)
        await asyncio.gather(
            *(self._commit(partition, records, answered[partition.partition]) for partition, records in batch.items())
        )

    async def _commit(
        self, partition: TopicPartition, records: Sequence[ConsumerRecord], answers: Sequence[Answer]
    ) -> None:
        outlet = self._outlets[partition]
        began = time.monotonic()
        try:
            await outlet.publish([answer.reply for answer in answers], records[-1].offset + 1)
        except (KafkaError, OSError, TimeoutError) as error:
            self._metrics.transactions.labels("failed").inc()
            log.warning(
                "partition %d: a transaction failed (%s), going on from the last commit",
                partition.partition,
                type(error).__name__,
            )
            self._outlets.pop(partition, None)
            await outlet.close()
            return
        now = time.time()
        self._metrics.transactions.labels("committed").inc()
        self._metrics.commit_seconds.observe(time.monotonic() - began)
        arrivals = [answer.arrived for answer in answers if answer.arrived is not None]
        self._metrics.recommendations.labels(self._engine.version).inc(len(arrivals))
        for arrived in arrivals:
            self._metrics.latency.observe(max(0.0, now - arrived))
        self._learned[partition] = records[-1].offset + 1

    async def _published(self) -> None:
        """Returns when the transaction in flight, if any, is over."""
        if self._publishing is not None:
            await asyncio.shield(self._publishing)
            self._publishing = None

    async def _measure(self) -> None:
        while True:
            self._metrics.lag.clear()
            for partition in self._outlets.keys() & self._assigned:
                end = self._consumer.highwater(partition)
                if end is not None:
                    with contextlib.suppress(KafkaError):
                        waiting = end - await self._consumer.position(partition)
                        self._metrics.lag.labels(str(partition.partition)).set(max(0, waiting))
            await asyncio.sleep(1)

    async def _in_torch(self, work: Any, *given: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._torch, work, *given)

    def _step(self, windows: Sequence[Window]) -> Sequence[Recommendation]:
        """On the model's thread."""
        began = time.monotonic()
        evicted = self._engine.incremental.cache.evictions
        step = self._engine.step(windows)
        metrics, work = self._metrics, step.work
        metrics.step_seconds.observe(time.monotonic() - began)
        metrics.batch.observe(len(windows))
        metrics.tokens.labels("append").inc(work.appended)
        metrics.tokens.labels("prefill").inc(work.prefilled)
        metrics.positions.labels("needed").inc(work.needed)
        metrics.positions.labels("padding").inc(work.padding)
        metrics.cache.labels("hit").inc(work.hits)
        metrics.cache.labels("miss").inc(work.misses)
        metrics.unknown_items.inc(step.unknown_items)
        metrics.evictions.inc(self._engine.incremental.cache.evictions - evicted)
        metrics.cached_users.set(len(self._engine.incremental.cache))
        return step.recommendations

    def _learn(self, values: Sequence[bytes | None]) -> None:
        """On the model's thread. Tombstones and what is no window teach nothing."""
        for value in values:
            with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                if value:
                    self._engine.learn(read_window(value))

    def _forget(self, user_id: str) -> None:
        """On the model's thread."""
        self._engine.forget(user_id)
