"""Serving: a batch of windows after the other, each answer committed with the offset that caused it.

Three things go on at once: Kafka's client fetches on the event loop, one thread runs the model, and the transaction of
the batch before is committed. A batch is no more than the model can afford in one step, so that no step stalls the
others; what was fetched beyond that waits for the next one. A batch is published only after the one before it, and what
goes wrong with a partition has one remedy: drop what waits and what is in flight, take the partition over anew, go on
from its last commit. Nothing in memory needs repair, because cached keys and values are known by their content and
learning twice is learning once.
"""

import asyncio
import logging
import math
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Coroutine, Sequence
from typing import Any, TypeVar

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from stream_rec.config import Settings
from stream_rec.health import MOVING, Health
from stream_rec.pipeline.answers import Answer, Answerer
from stream_rec.pipeline.connection import access
from stream_rec.pipeline.group import await_topics, heed_errors
from stream_rec.pipeline.host import Host
from stream_rec.pipeline.lag import Lag
from stream_rec.pipeline.spans import Span
from stream_rec.pipeline.transactions import Outlet
from stream_rec.telemetry import WorkerMetrics

log = logging.getLogger(__name__)

FETCH_MS = 200
"""How long a quiet worker waits for windows before it looks around."""
RETRY_S = 0.5
SESSION_MS = 6_000
"""After which a killed worker's partitions move, milliseconds."""
REBALANCE_MS = 6_000
"""How long the group waits for a member to let its partitions go; then it goes on without that one, milliseconds."""
FEW = 1_000
"""Windows that a new model may still have to learn when it is switched to."""
WORTH_KEEPING = 10_000
"""Windows learned at a start from which on the next start shall not have to."""

Records = dict[TopicPartition, list[ConsumerRecord]]

T = TypeVar("T")


class Worker(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka is partly typed
    """Serves the partitions that Kafka assigns to it until it is told to stop, with the model of `host`."""

    def __init__(self, settings: Settings, host: Host, metrics: WorkerMetrics, health: Health) -> None:
        self._settings = settings
        self._metrics = metrics
        self._health = health
        self.host = host
        self._answerer = Answerer(settings, metrics)
        self._turn = asyncio.Lock()  # held while a batch is between being fetched and being handed to its transaction
        self._waiting: list[ConsumerRecord] = []
        """Fetched and not answered yet, in the order of arrival."""
        self._long: asyncio.Task[Any] | None = None
        """What may take long and holds the turn: a rebalance does not wait for it, see `_unless_moved`."""
        self._moving = True
        """Whether Kafka has yet to say which partitions come next, or first."""
        self._publishing: asyncio.Task[None] | None = None
        self._assigned: frozenset[TopicPartition] = frozenset()
        self._outlets: dict[TopicPartition, Outlet] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Serves until `stop` is set; then what is in flight is published and the group is left."""
        self._consumer = AIOKafkaConsumer(
            **access(self._settings),
            group_id=self._settings.worker_group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            session_timeout_ms=SESSION_MS,
            rebalance_timeout_ms=REBALANCE_MS,
            heartbeat_interval_ms=SESSION_MS // 5,
            max_partition_fetch_bytes=self._settings.max_message_bytes,
            fetch_max_wait_ms=50,
        )
        self._consumer.subscribe([self._settings.windows_topic], listener=self)
        await self._consumer.start()
        heed_errors(self._consumer._coordinator)
        await_topics(self._consumer._coordinator)
        beside = [asyncio.create_task(self._measure()), asyncio.create_task(self._interrupt_at(stop))]
        try:
            while not stop.is_set():
                self.host.check()
                try:
                    async with self._turn:
                        await self._unless_moved(self._take_over())
                        await self._serve()
                except KafkaError as error:
                    log.warning("Kafka: %s; going on from the last commits", type(error).__name__)
                    await self._published()
                    await self._close_outlets()  # fetched records may be gone: everything is taken over anew
                    await asyncio.sleep(RETRY_S)
                await asyncio.sleep(0)  # a rebalance may want its turn
        finally:
            for task in beside:
                task.cancel()
            await self._published()
            await self._close_outlets()
            await self._consumer.stop()

    async def swap(self, host: Host) -> Host:
        """Goes on with `host` from one step to the next; returns the former one, which is no longer in use.

        Its memory is rebuilt first, while the former one serves; only the last few windows are learned in between.
        """
        await host.learning.begin(list(self._outlets), ())
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
                self._show()
                return former

    async def _teach(self, host: Host) -> int:
        """Teaches the memory of `host` the windows that the present one's has learned; returns how many."""
        ends = dict(self.host.learning.learned)
        if not ends:
            return 0
        begins = await self._consumer.beginning_offsets(list(ends))
        return await host.learning.remember({one: Span(begins[one], end) for one, end in ends.items()})

    async def on_partitions_revoked(self, revoked: Sequence[TopicPartition]) -> None:
        """Lets what is in flight be committed before the partitions go."""
        self._moving = True
        self._health.hindrances.add(MOVING)
        self._interrupt()
        async with self._turn:
            await self._published()
            self._assigned -= frozenset(revoked)
            self._drop(revoked)  # should they come back, they are fetched from their last commits

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

    async def _close_outlets(self) -> None:
        while self._outlets:
            _, outlet = self._outlets.popitem()
            await outlet.close()

    async def _take_over(self) -> None:
        """Makes the outlets those of the assigned partitions, and starts new ones where their last owner committed."""
        for partition in self._outlets.keys() - self._assigned:
            await self._outlets.pop(partition).close()
        fresh = sorted(self._assigned - self._outlets.keys())
        self._drop(fresh)
        if fresh:
            await self.host.learning.begin(fresh, self._outlets)
        learned = 0
        for partition in fresh:
            outlet = await Outlet.open(partition, self._settings)  # bars the former owner, then asks where it came to
            try:
                committed = await self._consumer.committed(partition)
                first = (await self._consumer.beginning_offsets([partition]))[partition]
                position = first if committed is None else committed
                learned += await self.host.learning.remember({partition: Span(first, position)})
                self._consumer.seek(partition, position)
            except BaseException:
                await outlet.close()
                raise
            self._outlets[partition] = outlet
        if learned > WORTH_KEEPING:
            await self.host.learning.keep()
        self._follow_others()
        if not self._moving:
            self._health.hindrances.discard(MOVING)
        if fresh:
            log.info("worker ready: %d partitions, model %s", len(self._assigned), self.host.engine.version)

    def _follow_others(self) -> None:
        every = self._consumer.partitions_for_topic(self._settings.windows_topic) or ()
        self.host.learning.follow({TopicPartition(self._settings.windows_topic, one) for one in every} - self._assigned)

    def _drop(self, partitions: Collection[TopicPartition]) -> None:
        """Forgets what waits of `partitions`."""
        self._waiting = [record for record in self._waiting if _partition(record) not in partitions]

    async def _serve(self) -> None:
        """Fetches, computes and hands to publishing one batch; has windows encoded ahead where there is none."""
        await self._gather()
        if not self._waiting:
            if self.host.recent:
                await self.host.call(self.host.encode_ahead)
            return
        answers, count = await self.host.call(self._answerer.answer, self.host, self._waiting)
        answered, self._waiting = self._waiting[:count], self._waiting[count:]
        await self._published()
        batch: Records = defaultdict(list)
        for record in answered:
            if _partition(record) in self._outlets:
                batch[_partition(record)].append(record)
        self._publishing = asyncio.create_task(self._publish(batch, answers))

    async def _gather(self) -> None:
        """Windows for a step: what waits, what is there, and what comes within the linger where none waited."""
        if not self._waiting:
            await self._fetch(0 if self.host.recent else FETCH_MS)
            if 0 < len(self._waiting) < self._settings.batch_windows:
                await self._published()  # its answers would wait for that anyway: rather let the batch grow
                await asyncio.sleep(self._settings.linger_ms / 1_000)
        await self._fetch(0)

    async def _fetch(self, wait_ms: int) -> None:
        """Adds to what waits as much as there is room for; nothing while partitions move or aren't taken over yet."""
        room = self._settings.batch_windows - len(self._waiting)
        served = self._outlets.keys() & self._assigned
        if self._moving or not served:  # to Kafka's client, no partitions are all that are assigned
            await asyncio.sleep(wait_ms / 1_000)
        elif room > 0:
            # from a rebalance on it would wait for the next assignment
            fetch = self._consumer.getmany(*served, timeout_ms=wait_ms, max_records=room)
            for records in (await self._unless_moved(fetch) or {}).values():
                self._waiting += records

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
        self._metrics.recommendations.labels(self.host.engine.version).inc(len(arrivals))
        for arrived in arrivals:
            self._metrics.latency.observe(max(0.0, now - arrived))
        self.host.learning.learned[partition] = records[-1].offset + 1

    async def _published(self) -> None:
        """Returns when the transaction in flight, if any, is over."""
        if self._publishing is not None:
            await asyncio.shield(self._publishing)
            self._publishing = None

    async def _measure(self) -> None:
        lag = Lag(self._metrics.lag, self._health)
        while True:
            self._show()
            await lag.measure(self._behind())
            await asyncio.sleep(1)

    async def _behind(self) -> dict[int, int]:
        """Windows that wait in each partition that is served."""
        served = self._outlets.keys() & self._assigned
        asked = served or {TopicPartition(self._settings.windows_topic, 0)}  # whether Kafka answers at all
        ends = await self._consumer.end_offsets(asked)
        waiting = Counter(map(_partition, self._waiting))
        places = {one: await self._consumer.position(one) for one in served}
        return {one.partition: max(0, ends[one] - place + waiting[one]) for one, place in places.items()}

    def _show(self) -> None:
        """What the metrics tell of the model that serves."""
        metrics, catalog, cache = self._metrics, self.host.engine.catalog, self.host.engine.incremental.cache
        available = catalog.count_available()
        metrics.items.labels("yes").set(available)
        metrics.items.labels("no").set(len(catalog) - 1 - available)
        metrics.cached_users.set(len(cache))
        metrics.bytes_per_user.set(cache.bytes_per_user)
        metrics.model_loaded.set(self.host.loaded)
        metrics.trained_until.set(self.host.engine.trained_until)


def _partition(record: ConsumerRecord) -> TopicPartition:
    return TopicPartition(record.topic, record.partition)
