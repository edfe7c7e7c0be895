"""Runs one model: its engine, the only thread that calls it, its catalogue and its online statistics.

All of its state is derived from the model folder, the items topic and the windows topic. A second runner can therefore
be built while the first one serves, and a new model is put into service by replacing the runner.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import starmap
from typing import TYPE_CHECKING, Any

from stream_rec.config import Settings
from stream_rec.messages import Item, Window
from stream_rec.metrics import WorkerMetrics
from stream_rec.runtime import process
from stream_rec.worker.batch import Failed, ModelAnswer
from stream_rec.worker.catalog_sync import CatalogConsumer
from stream_rec.worker.prewarm import PrewarmQueue
from stream_rec.worker.statistics_sync import StatisticsSync

if TYPE_CHECKING:
    from stream_rec.serving.engine import Engine

log = logging.getLogger(__name__)

PREWARM_EVENTS = 1 << 17
"""Events in the windows that are kept to be encoded ahead."""
PREWARM_WINDOWS = 4
"""Windows encoded ahead in one call; an event that arrives meanwhile waits for that call."""

Load = Callable[[Settings], "Engine"]


class ModelRunner:
    """An engine and the consumers that keep it up to date. `call` runs a function on the engine's thread."""

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
        """When the model was loaded, seconds since 1970."""
        self.prewarm_queue = PrewarmQueue(max(1, PREWARM_EVENTS // engine.capacity))
        """Replayed windows of users who have had no step since."""
        self.statistics_sync = StatisticsSync(settings, metrics, engine, self.prewarm_queue, self.call)
        self._catalog_consumer = CatalogConsumer(
            settings, metrics, catalogue=engine.catalog, apply=self._apply, withdraw=self._withdraw
        )
        self._cache_failures = self._unmeasured = self._untaught = 0
        self._following: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, settings: Settings, metrics: WorkerMetrics, load: Load) -> "ModelRunner":
        """Loads the settings' model on a new thread. Raises what `load` raises."""
        thread = ThreadPoolExecutor(1, "torch")
        try:
            engine = await asyncio.get_running_loop().run_in_executor(thread, load, settings)
        except BaseException:
            thread.shutdown(wait=False)
            raise
        return cls(settings, metrics, engine, thread)

    async def follow_catalog(self) -> None:
        """Starts to consume the items topic; returns once everything that it held at the call is in the catalogue.

        Raises what ends the consumer before that; after that, it restarts by itself.
        """
        self._following = asyncio.create_task(self._catalog_consumer.follow())
        waiting = asyncio.create_task(self._catalog_consumer.caught_up.wait())
        try:
            await asyncio.wait({waiting, self._following}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if self._following.done():
            self._following.result()

    async def probe(self) -> None:
        """Raises `ModelError` unless the model gives finite and consistent answers to probe windows."""
        await self.call(self.engine.probe)

    async def close(self) -> None:
        """Ends the consumers and threads and frees the model's memory. The runner can't be used afterwards."""
        await self.statistics_sync.close()
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        for thread in (self._thread, self._texts):
            await asyncio.to_thread(thread.shutdown)
        del self.engine, self.statistics_sync
        process.freeze_gc()  # an engine is a reference cycle that holds gigabytes

    def update_metrics(self) -> None:
        """Sets the metrics that describe the model in service."""
        metrics, catalog, cache = self._metrics, self.engine.catalog, self.engine.incremental.cache
        available = catalog.count_available()
        metrics.items.labels("yes").set(available)
        metrics.items.labels("no").set(len(catalog) - 1 - available)
        metrics.unusable_items.set(self.engine.unusable_items)
        metrics.cached_users.set(len(cache))
        metrics.bytes_per_user.set(cache.bytes_per_user)
        metrics.model_loaded.set(self.loaded)
        metrics.trained_until.set(math.nan if self.engine.trained_until is None else self.engine.trained_until)

        failures = self.engine.texts.failures
        metrics.failures.labels("text cache").inc(failures - self._cache_failures)
        self._cache_failures = failures

    @property
    def troubles(self) -> set[str]:
        """Failures that do not stop answers and are retried, in words."""
        cache = "the cache of text vectors can't be used" if self.engine.texts.failing else None
        return {*self._catalog_consumer.troubles, *self.statistics_sync.troubles, *([cache] if cache else [])}

    async def call(self, work: Callable[..., Any], *given: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *given)

    # The methods below are called on the engine's thread.

    def affordable(self, windows: Sequence[Window]) -> int:
        """How many of the first `windows` fit into one step, at least 1."""
        return self.engine.affordable(windows)

    def step(self, windows: Sequence[Window], partitions: Sequence[int]) -> Sequence[ModelAnswer | Failed]:
        """Answers `windows`, read from `partitions` (len(windows),), and updates the metrics."""
        for window in windows:
            self.prewarm_queue.forget(window.user_id)
        began = time.monotonic()
        step = self.engine.step(windows, self.statistics_sync.logs(partitions))
        metrics, work, cache = self._metrics, step.work, self.engine.incremental.cache
        metrics.step_seconds.observe(time.monotonic() - began)
        metrics.batch.observe(len(windows))
        metrics.tokens.labels("append").inc(work.appended)
        metrics.tokens.labels("prefill").inc(work.prefilled)
        metrics.tokens.labels("fill").inc(work.filled)
        metrics.positions.labels("needed").inc(work.needed)
        metrics.positions.labels("padding").inc(work.padding)
        metrics.cache.labels("hit").inc(work.hits)
        metrics.cache.labels("miss").inc(work.misses)
        metrics.unknown_items.inc(step.unknown_items)
        metrics.unscored.inc(step.unscored)
        metrics.index_sampled.inc(step.recall.sampled)
        metrics.index_recalled.inc(step.recall.recalled)
        metrics.evictions.inc(cache.evictions - self._evicted)
        self._evicted = cache.evictions
        for of, index in step.drift.items():
            metrics.drift.labels(of).set(index)
        metrics.audited.inc(step.audit.windows)
        metrics.audit_changed.inc(step.audit.changed)
        self._difference = max(self._difference, step.audit.largest)
        metrics.audit_difference.set(self._difference)
        metrics.audit_tolerance.set(self.engine.tolerance.difference)
        metrics.untaught.inc(self.engine.untaught - self._untaught)
        self._untaught = self.engine.untaught
        metrics.failures.labels("measurement").inc(self.engine.unmeasured - self._unmeasured)
        self._unmeasured = self.engine.unmeasured
        told = starmap(ModelAnswer, zip(step.recommendations, step.floors, strict=True))
        return [Failed(step.failed[at]) if at in step.failed else next(told) for at in range(len(windows))]

    def forget(self, user_id: str) -> None:
        """Erases all state of a user."""
        self.statistics_sync.forget(user_id)

    def __contains__(self, user_id: str) -> bool:
        """Whether any state of the user is held."""
        return user_id in self.engine or user_id in self.prewarm_queue

    def encode_ahead(self) -> None:
        """Encodes windows of the users who were active last, so that their next event only appends to the cache."""
        cache = self.engine.incremental.cache
        windows = self.prewarm_queue.take(PREWARM_WINDOWS)
        if len(cache) + len(windows) > cache.slots:  # a guess evicts no user
            self.prewarm_queue.clear()
            return
        try:
            self.engine.states(windows)
        except Exception as error:  # noqa: BLE001 - the window's own step will report the error
            log.warning("%s while windows were encoded ahead", type(error).__name__)

    async def _apply(self, items: Sequence[Item]) -> None:
        """Encodes texts on a thread of its own; only the change of the catalogue runs on the engine's thread."""
        vectors = await asyncio.get_running_loop().run_in_executor(self._texts, self.engine.read, items)
        await self.call(self.engine.upsert, items, vectors)

    async def _withdraw(self, item_ids: Sequence[str]) -> None:
        await self.call(self.engine.withdraw, item_ids)
