"""Reloads the model while the worker serves: finds a new one in the folder, loads and probes it, then swaps it in."""

import asyncio
import logging
from pathlib import Path

from aiokafka.errors import KafkaError

from stream_rec.config import Settings
from stream_rec.errors import UserError
from stream_rec.metrics import WorkerMetrics
from stream_rec.worker.loop import InferenceLoop
from stream_rec.worker.model_runner import Load, ModelRunner

log = logging.getLogger(__name__)

UNREAD = ("checkpoint-", ".")
"""Prefixes of files that a training keeps for itself or has not finished writing."""

Stamps = dict[str, tuple[int, int, int]]


def file_stamps(folder: Path) -> Stamps:
    """Inode, size and modification time of each file in `folder`; empty if there is no such folder."""
    try:
        stats = {path.name: path.stat() for path in folder.iterdir() if not path.name.startswith(UNREAD)}
    except OSError:
        return {}
    return {name: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


class ModelReloader:
    """Looks for a new model every `watch_model_s` seconds, and whenever `told` is set.

    A folder that has changed is read only once it is unchanged between two looks, because it may still be being
    written. When `told` is set it is read at once: the caller knows that it is complete.
    """

    def __init__(self, settings: Settings, metrics: WorkerMetrics, load: Load, told: asyncio.Event) -> None:
        self._settings = settings
        self._metrics = metrics
        self._load = load
        self._told = told
        self._read: Stamps | None = None
        """The folder's files when a model was last read from it; None: read it again at the next look."""

    async def first(self) -> ModelRunner:
        """The runner of the model at the start. Raises `UserError` for a bad folder."""
        for outcome in ("loaded", "refused", "reverted"):
            self._metrics.model_loads.labels(outcome).inc(0)  # exported before the first load: a rate needs a zero
        runner = await self._open()
        await runner.statistics_sync.load_snapshot()
        self._metrics.model_loads.labels("loaded").inc()
        return runner

    async def watch(self, worker: InferenceLoop) -> None:
        """Runs until it is cancelled."""
        before: Stamps = {}
        while True:
            told = await self._pause()
            now = await asyncio.to_thread(file_stamps, self._settings.model)
            if told or (now == before and now != self._read):
                await self._change(worker)
            before = now

    async def _pause(self) -> bool:
        """Waits for the next look; returns whether it was requested through `told`."""
        try:
            async with asyncio.timeout(self._settings.watch_model_s or None):
                await self._told.wait()
        except TimeoutError:
            return False
        self._told.clear()
        return True

    async def _change(self, worker: InferenceLoop) -> None:
        """Tries to load and swap in the folder's model; logs one line with the outcome."""
        serving = worker.runner.engine.version
        try:
            runner = await self._open(serving)
            try:
                if runner.engine.version != serving:
                    await worker.swap(runner)
            finally:
                if worker.runner is not runner:
                    await runner.close()
        except KafkaError as error:
            self._read = None  # the model is not at fault: the next look tries again
            log.warning("Kafka: %s; the new model waits", type(error).__name__)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a new model, the current one keeps serving
            self._metrics.model_loads.labels("refused").inc()
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            log.error("model %s goes on, a new one is refused: %s", serving, " ".join(reason.split()))
        else:
            if worker.runner is runner:
                self._metrics.model_loads.labels("loaded").inc()
                log.info("model %s is followed by %s", serving, worker.runner.engine.version)
            else:
                log.info("model %s goes on: it is what the folder holds", serving)

    async def _open(self, version: str = "") -> ModelRunner:
        """A runner with an up-to-date catalogue that has passed its probe; unchecked if its model is `version`."""
        runner = await self._whole()
        try:
            if runner.engine.version != version:
                await runner.follow_catalog()
                await runner.probe()
        except BaseException:
            await runner.close()
            raise
        return runner

    async def _whole(self) -> ModelRunner:
        """A runner of a model whose files did not change while they were read."""
        folder = self._settings.model
        while True:
            self._read = await asyncio.to_thread(file_stamps, folder)
            runner = await ModelRunner.open(self._settings, self._metrics, self._load)
            if await asyncio.to_thread(file_stamps, folder) == self._read:
                return runner
            log.info("the model in %s changed while it was read: once more", folder)
            await runner.close()
