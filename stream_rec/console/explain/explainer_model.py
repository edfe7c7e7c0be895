"""Explains answers with a model beside the workers': it learns from the topics, answers nobody and writes nothing.

The console loads it at the first question, so that a console that nobody asks costs no second model.
"""

import asyncio
import contextlib
import logging
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from aiokafka import ConsumerRecord
from aiokafka.errors import KafkaError

from stream_rec.config import Settings
from stream_rec.console.topic_reader import read
from stream_rec.errors import UserError
from stream_rec.kafka.item_records import changes_in
from stream_rec.messages import UNREADABLE, Item, Rejected, Window, read_window
from stream_rec.serving.load import load_engine

if TYPE_CHECKING:
    from stream_rec.ranking.explanation import Explanation, Neighbours
    from stream_rec.serving.engine import Engine


log = logging.getLogger(__name__)


class NotReady(Exception):  # noqa: N818 - it is a state
    """Why there is no answer now, in words; `soon` where asking again will help."""

    def __init__(self, reason: str, *, soon: bool) -> None:
        super().__init__(reason)
        self.soon = soon


class ExplainerModel:
    """An engine on a thread of its own, so that the page goes on while it computes."""

    def __init__(self, engine: "Engine", thread: ThreadPoolExecutor, own: bool, max_item_bytes: int) -> None:
        self._engine = engine
        self._thread = thread
        self._own = own
        """Whether each partition of the windows topic has a memory of its own."""
        self._max_item_bytes = max_item_bytes

    @classmethod
    async def open(cls, settings: Settings) -> "ExplainerModel":
        """Loads the settings' model. Raises `UserError` for a bad folder."""
        thread = ThreadPoolExecutor(1, "model")
        no_cache = {"kv_cache_share": None, "kv_host_gb": 0}  # an explanation leaves the cache alone
        quiet = settings.model_copy(update={"audit_share": 0.0, "recall_share": 0.0, **no_cache})
        try:
            engine = await asyncio.get_running_loop().run_in_executor(thread, load_engine, quiet)
        except BaseException:
            thread.shutdown(wait=False)
            raise
        return cls(engine, thread, settings.memory == "own", settings.max_item_bytes)

    async def learn(self, records: Sequence[ConsumerRecord]) -> None:
        """Teaches the memory what records of the windows topic hold, as a worker's is taught after a restart."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._learn, records)

    async def admit(self, records: Sequence[ConsumerRecord]) -> None:
        """Brings the catalogue up to date from records of the items topic."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._admit, records)

    async def explain(self, window: Window, partition: int) -> "Explanation":
        """Why a window that stands in `partition` has its answer."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._explain, window, partition)

    async def neighbours(self, item_id: str) -> "Neighbours | None":
        """Where each partition has a memory of its own, by that of the first one."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.neighbours, item_id)

    def items(self, item_ids: Collection[str]) -> dict[str, Item]:
        """What the catalogue knows of them."""
        find = self._engine.catalog.find
        return {item_id: item for item_id in item_ids if (item := find(item_id)) is not None}

    async def close(self) -> None:
        await asyncio.to_thread(self._thread.shutdown, cancel_futures=True)

    # What follows runs on the engine's thread.

    def _log(self, partition: int) -> int:
        """Which memory learns from `partition`, see `serving.statistics`."""
        return partition if self._own else 0

    def _explain(self, window: Window, partition: int) -> "Explanation":
        """The answer to a window is given after it was learned."""
        self._engine.learn(window, self._log(partition))
        return self._engine.explain(window, self._log(partition))

    def _learn(self, records: Sequence[ConsumerRecord]) -> None:
        for record in records:
            if record.value is None:
                self._engine.forget((record.key or b"").decode(errors="replace"))
                continue
            with contextlib.suppress(*UNREADABLE):
                self._engine.learn(read_window(record.value), self._log(record.partition))

    def _admit(self, records: Sequence[ConsumerRecord]) -> None:
        """An item that can't be used, or whose text can't be encoded, stays unknown here."""
        catalog = self._engine.catalog
        changes = changes_in(records, catalog.admit, self._max_item_bytes, lambda *_: None)
        self._engine.withdraw(changes.withdrawn)
        news = catalog.news([item for _, item in changes.items])
        for told in (False, True):
            chosen = [item for item in news if catalog.needs_encoder(item) == told]
            with contextlib.suppress(Rejected, UserError):
                self._engine.upsert(chosen, self._engine.read(chosen))


class LazyExplainerModel:
    """Opens the settings' model when it is asked for, if there is one, and has it learn what the topics teach."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._aside: ExplainerModel | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._failed = ""
        self._shares = {"items": 0.0, "windows": 0.0}

    async def ask(self) -> ExplainerModel:
        """The model, once it knows what the topics know. Raises `NotReady`."""
        if "model" not in self._settings.model_fields_set:
            raise NotReady("This needs the model: start the console with --model FOLDER.", soon=False)
        if not self._tasks:
            self._tasks.append(asyncio.create_task(self._open(), name="model"))
        if self._failed:
            raise NotReady(f"The model can't be used: {self._failed}.", soon=False)
        if self._aside is None:
            raise NotReady("The model is being loaded.", soon=True)
        for topic, share in self._shares.items():
            if share < 1:
                raise NotReady(f"The model is learning what the {topic} topic holds: {share:.0%} read.", soon=True)
        return self._aside

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._aside is not None:
            await self._aside.close()

    async def _open(self) -> None:
        try:
            self._aside = aside = await ExplainerModel.open(self._settings)
            follow = ((self._settings.items_topic, "items"), (self._settings.windows_topic, "windows"))
            self._tasks += [asyncio.create_task(self._follow(aside, *one), name=one[1]) for one in follow]
        except UserError as error:
            self._failed = str(error)
        except Exception as error:
            log.exception("the model can't be opened")
            self._failed = type(error).__name__
            raise

    async def _follow(self, aside: ExplainerModel, topic: str, name: str) -> None:
        take = {"items": aside.admit, "windows": aside.learn}[name]
        try:
            async for batch in read(self._settings, topic, follow=True):
                if batch.records:
                    await take(batch.records)
                self._shares[name] = batch.share
        except (KafkaError, OSError) as error:
            log.warning("topic %s can't be read: %s", topic, type(error).__name__)
            self._failed = f"topic {topic} can't be read"
