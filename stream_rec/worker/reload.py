"""A new model while the old one serves: found in the model's folder, loaded aside, switched to between two steps."""

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
"""How the names begin of what a training keeps for itself, or writes aside."""

Stamps = dict[str, tuple[int, int, int]]


def stamps(folder: Path) -> Stamps:
    """Inode, size and time of change of each of a folder's files, those of a link's folder too; none, no folder."""
    try:
        stats = {path.name: path.stat() for path in folder.iterdir() if not path.name.startswith(UNREAD)}
    except OSError:
        return {}
    return {name: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


class ModelReloader:
    """Looks for a new model every `watch_model_s` seconds, and when `told` is set.

    A folder is taken for a new model when it has changed since it was last read and then stood still from one look to
    the next: it may be in the course of being written. Whoever sets `told` knows that it is whole.
    """

    def __init__(self, settings: Settings, metrics: WorkerMetrics, load: Load, told: asyncio.Event) -> None:
        self._settings = settings
        self._metrics = metrics
        self._load = load
        self._told = told
        self._read: Stamps | None = None
        """The folder as it was when a model was last read from it; None asks for it to be read again."""

    async def first(self) -> ModelRunner:
        """The host of the model that is there at the start. Raises `UserError` for a bad folder."""
        for outcome in ("loaded", "refused", "reverted"):
            self._metrics.model_loads.labels(outcome).inc(0)  # shown before the first one: a rate needs a zero
        host = await self._open()
        await host.learning.load_snapshot()
        self._metrics.model_loads.labels("loaded").inc()
        return host

    async def watch(self, worker: InferenceLoop) -> None:
        """Runs until it is cancelled."""
        before: Stamps = {}
        while True:
            told = await self._pause()
            now = await asyncio.to_thread(stamps, self._settings.model)
            if told or (now == before and now != self._read):
                await self._change(worker)
            before = now

    async def _pause(self) -> bool:
        """Whether it was told to look; else it is time to."""
        try:
            async with asyncio.timeout(self._settings.watch_model_s or None):
                await self._told.wait()
        except TimeoutError:
            return False
        self._told.clear()
        return True

    async def _change(self, worker: InferenceLoop) -> None:
        """One line in the log whatever comes of it."""
        serving = worker.host.engine.version
        try:
            host = await self._open(serving)
            try:
                if host.engine.version != serving:
                    await worker.swap(host)
            finally:
                if worker.host is not host:
                    await host.close()
        except KafkaError as error:
            self._read = None  # nothing is wrong with the model: the next look tries again
            log.warning("Kafka: %s; the new model waits", type(error).__name__)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a new model, the old one goes on
            self._metrics.model_loads.labels("refused").inc()
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            log.error("model %s goes on, a new one is refused: %s", serving, " ".join(reason.split()))
        else:
            if worker.host is host:
                self._metrics.model_loads.labels("loaded").inc()
                log.info("model %s is followed by %s", serving, worker.host.engine.version)
            else:
                log.info("model %s goes on: it is what the folder holds", serving)

    async def _open(self, version: str = "") -> ModelRunner:
        """A host that answers probe windows and whose catalogue is up to date, unless its model is that `version`."""
        host = await self._whole()
        try:
            if host.engine.version != version:
                await host.follow()
                await host.probe()
        except BaseException:
            await host.close()
            raise
        return host

    async def _whole(self) -> ModelRunner:
        """A host of a model that didn't change while it was read."""
        folder = self._settings.model
        while True:
            self._read = await asyncio.to_thread(stamps, folder)
            host = await ModelRunner.open(self._settings, self._metrics, self._load)
            if await asyncio.to_thread(stamps, folder) == self._read:
                return host
            log.info("the model in %s changed while it was read: once more", folder)
            await host.close()
