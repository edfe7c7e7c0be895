"""A model in service: its engine, the one thread that calls it, its catalogue, and how far its memory has read.

All of this is made from the model's folder, the items topic and the windows topic. So a second host can be made beside
the first while that one serves, and a new model comes into service by putting its host in the old one's place.
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
from stream_rec.worker.batch import Failed, Told
from stream_rec.worker.catalog_sync import CatalogConsumer
from stream_rec.worker.prewarm import PrewarmQueue
from stream_rec.worker.statistics_sync import StatisticsSync

if TYPE_CHECKING:
    from stream_rec.serving.engine import Engine

log = logging.getLogger(__name__)

RECENT_EVENTS = 1 << 17
"""In the windows that are kept to be encoded ahead."""
AHEAD = 4
"""Windows that are encoded ahead in one go: an event that comes meanwhile waits for no more than these."""

Load = Callable[[Settings], "Engine"]


class ModelRunner:
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
        self.recent = PrewarmQueue(max(1, RECENT_EVENTS // engine.capacity))
        """Windows that the memory was rebuilt from, of users whom no step has met since."""
        self.learning = StatisticsSync(settings, metrics, engine, self.recent, self.call)
        self._upserts = CatalogConsumer(
            settings, metrics, catalogue=engine.catalog, apply=self._apply, withdraw=self._withdraw
        )
        self._cache_failures = self._unmeasured = self._untaught = 0
        self._following: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, settings: Settings, metrics: WorkerMetrics, load: Load) -> "ModelRunner":
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

        Raises what ends the following before that; later, it begins again after an error.
        """
        self._following = asyncio.create_task(self._upserts.follow())
        waiting = asyncio.create_task(self._upserts.caught_up.wait())
        try:
            await asyncio.wait({waiting, self._following}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if self._following.done():
            self._following.result()

    async def probe(self) -> None:
        """Raises `ModelError` unless the model answers probe windows as it should."""
        await self.call(self.engine.probe)

    async def close(self) -> None:
        """Ends the following and the threads, and gives the model's memory back: nobody may use the host any more."""
        await self.learning.close()
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        for thread in (self._thread, self._texts):
            await asyncio.to_thread(thread.shutdown)
        del self.engine, self.learning
        process.freeze_gc()  # an engine is a cycle, and holds gigabytes

    def show(self) -> None:
        """What the metrics tell of the model that serves."""
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
        """What goes wrong beside the answers, and is tried again."""
        cache = "the cache of text vectors can't be used" if self.engine.texts.failing else None
        return {*self._upserts.troubles, *self.learning.troubles, *([cache] if cache else [])}

    async def call(self, work: Callable[..., Any], *given: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *given)

    # What follows is called on the engine's thread.

    def affordable(self, windows: Sequence[Window]) -> int:
        """How many leading ones of `windows` make a step, at least 1."""
        return self.engine.affordable(windows)

    def step(self, windows: Sequence[Window], partitions: Sequence[int]) -> Sequence[Told | Failed]:
        """Answers `windows`, which stand in `partitions`, and counts what that took."""
        for window in windows:
            self.recent.forget(window.user_id)
        began = time.monotonic()
        step = self.engine.step(windows, self.learning.logs(partitions))
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
        told = starmap(Told, zip(step.recommendations, step.floors, strict=True))
        return [Failed(step.failed[at]) if at in step.failed else next(told) for at in range(len(windows))]

    def forget(self, user_id: str) -> None:
        """Erases what is held of a user."""
        self.learning.forget(user_id)

    def __contains__(self, user_id: str) -> bool:
        """Whether anything of a user is held."""
        return user_id in self.engine or user_id in self.recent

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

    async def _apply(self, items: Sequence[Item]) -> None:
        """Not on the engine's thread, but for the change itself."""
        vectors = await asyncio.get_running_loop().run_in_executor(self._texts, self.engine.read, items)
        await self.call(self.engine.upsert, items, vectors)

    async def _withdraw(self, item_ids: Sequence[str]) -> None:
        await self.call(self.engine.withdraw, item_ids)
