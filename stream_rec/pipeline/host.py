"""A model in service: its engine, the one thread that calls it, its catalogue, and how far its memory has read.

All of this is made from the model's folder, the items topic and the windows topic. So a second host can be made beside
the first while that one serves, and a new model comes into service by putting its host in the old one's place.
"""

import asyncio
import contextlib
import gc
import heapq
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from stream_rec.config import Settings
from stream_rec.messages import Item, Recommendation, Window, read_window
from stream_rec.pipeline.upserts import Upserts
from stream_rec.telemetry import WorkerMetrics

if TYPE_CHECKING:
    from stream_rec.model.engine import Engine

log = logging.getLogger(__name__)

READ = 2_000
"""Most windows that are learned in one go."""
RECENT_EVENTS = 1 << 17
"""In the windows that are kept to be encoded ahead."""
AHEAD = 4
"""Windows that are encoded ahead in one go: an event that comes meanwhile waits for no more than these."""

Load = Callable[[Settings], "Engine"]


class Span(NamedTuple):
    """Offsets of a partition: from `begin` up to but not including `end`."""

    begin: int
    end: int


class Host:
    """An engine and what keeps it up to date. `call` runs something on the engine's thread."""

    def __init__(
        self, settings: Settings, metrics: WorkerMetrics, engine: "Engine", thread: ThreadPoolExecutor
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._thread = thread
        self._texts = ThreadPoolExecutor(1, "texts")
        self._evicted = 0
        self._difference = 0.0
        self.engine = engine
        self.loaded = time.time()
        """When the model had been read, seconds since 1970."""
        self.learned: dict[TopicPartition, int] = {}
        """Next offset of each partition that the online memory hasn't learned."""
        self.recent = Recent(max(1, RECENT_EVENTS // engine.capacity))
        """Windows that the memory was rebuilt from, of users whom no step has met since."""
        catalog = engine.catalog
        self._upserts = Upserts(settings, metrics, admit=catalog.admit, known=catalog.find, apply=self._apply)
        self._following: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, settings: Settings, metrics: WorkerMetrics, load: Load) -> "Host":
        """Has the settings' model loaded on a thread of its own. Raises what `load` raises."""
        thread = ThreadPoolExecutor(1, "torch")
        try:
            engine = await asyncio.get_running_loop().run_in_executor(thread, load, settings)
        except BaseException:
            thread.shutdown(wait=False)
            raise
        return cls(settings, metrics, engine, thread)

    async def follow(self) -> None:
        """Begins to follow the items topic; returns when the catalogue stands where the topic stood.

        Raises what ended the following.
        """
        self._following = asyncio.create_task(self._upserts.follow())
        waiting = asyncio.create_task(self._upserts.caught_up.wait())
        try:
            await asyncio.wait({waiting, self._following}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        self.check()

    def check(self) -> None:
        """Raises what ended the following of the items topic, if anything did."""
        if self._following is not None and self._following.done():
            self._following.result()

    async def close(self) -> None:
        """Ends the following and the threads, and gives the model's memory back: nobody may use the host any more."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        for thread in (self._thread, self._texts):
            await asyncio.to_thread(thread.shutdown)
        del self.engine
        gc.collect()  # an engine is a cycle, and holds gigabytes

    async def call(self, work: Callable[..., Any], *given: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *given)

    async def remember(self, spans: Mapping[TopicPartition, Span]) -> int:
        """Teaches the online memory what it hasn't learned yet of `spans`; returns how many windows those were.

        Raises `KafkaError`; what was learned until then is not read again.
        """
        left: dict[TopicPartition, Span] = {}
        for partition, (begin, end) in spans.items():
            self.learned[partition] = max(begin, self.learned.get(partition, begin))
            if self.learned[partition] < end:
                left[partition] = Span(self.learned[partition], end)
        if not left:
            return 0
        began, count = time.monotonic(), 0
        reader = AIOKafkaConsumer(
            bootstrap_servers=self._settings.bootstrap_servers,
            max_partition_fetch_bytes=self._settings.max_message_bytes,
        )
        await reader.start()
        try:
            reader.assign(list(left))
            for partition, span in left.items():
                reader.seek(partition, span.begin)
            while left:
                for partition, records in (await reader.getmany(*left, timeout_ms=100, max_records=READ)).items():
                    known = [record for record in records if record.offset < left[partition].end]
                    await self.call(self._learn, known)
                    count += len(known)
                for partition in list(left):
                    position = await reader.position(partition)
                    self.learned[partition] = min(position, left[partition].end)
                    if position >= left[partition].end:
                        del left[partition]
        finally:
            await reader.stop()
        log.info("memory of model %s: %d windows in %.1f s", self.engine.version, count, time.monotonic() - began)
        return count

    # What follows is called on the engine's thread.

    def affordable(self, windows: Sequence[Window]) -> int:
        """How many leading ones of `windows` make a step, at least 1."""
        return self.engine.affordable(windows)

    def step(self, windows: Sequence[Window]) -> Sequence[Recommendation]:
        """Answers `windows` and counts what that took."""
        for window in windows:
            self.recent.forget(window.user_id)
        began = time.monotonic()
        step = self.engine.step(windows)
        metrics, work, cache = self._metrics, step.work, self.engine.incremental.cache
        metrics.step_seconds.observe(time.monotonic() - began)
        metrics.batch.observe(len(windows))
        metrics.tokens.labels("append").inc(work.appended)
        metrics.tokens.labels("prefill").inc(work.prefilled)
        metrics.positions.labels("needed").inc(work.needed)
        metrics.positions.labels("padding").inc(work.padding)
        metrics.cache.labels("hit").inc(work.hits)
        metrics.cache.labels("miss").inc(work.misses)
        metrics.unknown_items.inc(step.unknown_items)
        metrics.index_sampled.inc(step.recall.sampled)
        metrics.index_recalled.inc(step.recall.recalled)
        metrics.evictions.inc(cache.evictions - self._evicted)
        self._evicted = cache.evictions
        metrics.audited.inc(step.audit.windows)
        metrics.audit_changed.inc(step.audit.changed)
        self._difference = max(self._difference, step.audit.largest)
        metrics.audit_difference.set(self._difference)
        metrics.audit_tolerance.set(self.engine.tolerance.difference)
        return step.recommendations

    def forget(self, user_id: str) -> None:
        """Erases what is held of a user."""
        self.engine.forget(user_id)
        self.recent.forget(user_id)

    def encode_ahead(self) -> None:
        """Encodes the windows of a few of the users who were active last, so that their next event is an append."""
        cache = self.engine.incremental.cache
        windows = self.recent.take(AHEAD)
        if len(cache) + len(windows) > cache.slots:  # nobody makes room for a guess
            self.recent.clear()
            return
        try:
            self.engine.states(windows)
        except Exception as error:  # noqa: BLE001 - the window's own step will say what is wrong with it
            log.warning("%s while windows were encoded ahead", type(error).__name__)

    def _learn(self, records: Sequence[ConsumerRecord]) -> None:
        """What is no window teaches nothing. Who was erased is erased here too."""
        for record in records:
            if record.value is None:
                self.forget((record.key or b"").decode(errors="replace"))
                continue
            with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                window = read_window(record.value)
                self.engine.learn(window)
                self.recent.add(window)

    async def _apply(self, items: Sequence[Item]) -> None:
        """Not on the engine's thread, but for the change itself."""
        news = self.engine.catalog.news(items)
        if news:
            vectors = await asyncio.get_running_loop().run_in_executor(self._texts, self.engine.read, news)
            await self.call(self.engine.upsert, news, vectors)
            self._metrics.upserts.inc(len(news))


class Recent:
    """The newest windows of the `most` users who were active last, or of up to twice as many."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._windows: dict[str, Window] = {}

    def __len__(self) -> int:
        return len(self._windows)

    def add(self, window: Window) -> None:
        self._windows[window.user_id] = window
        if len(self._windows) > 2 * self._most:
            self._windows = {one.user_id: one for one in self._newest(self._most)}

    def take(self, count: int) -> list[Window]:
        """Removes and returns up to `count` windows, the latest active user's first."""
        taken = self._newest(count)
        for window in taken:
            del self._windows[window.user_id]
        return taken

    def forget(self, user_id: str) -> None:
        self._windows.pop(user_id, None)

    def clear(self) -> None:
        self._windows.clear()

    def _newest(self, count: int) -> list[Window]:
        return heapq.nlargest(count, self._windows.values(), key=lambda window: window.arrived)
