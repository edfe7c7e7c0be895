"""The model aside, opened at the first question: a page that nobody asks why costs no second model."""

import asyncio
import logging

from aiokafka.errors import KafkaError

from stream_rec.config import Settings
from stream_rec.console.explain.explainer_model import Aside
from stream_rec.console.topic_reader import read
from stream_rec.errors import UserError

log = logging.getLogger(__name__)


class NotReady(Exception):  # noqa: N818 - it is a state
    """Why there is no answer now, in words; `soon` where asking again will help."""

    def __init__(self, reason: str, *, soon: bool) -> None:
        super().__init__(reason)
        self.soon = soon


class Standby:
    """Opens the settings' model when it is asked for, if there is one, and has it learn what the topics teach."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._aside: Aside | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._failed = ""
        self._shares = {"items": 0.0, "windows": 0.0}

    async def ask(self) -> Aside:
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
            self._aside = aside = await Aside.open(self._settings)
            follow = ((self._settings.items_topic, "items"), (self._settings.windows_topic, "windows"))
            self._tasks += [asyncio.create_task(self._follow(aside, *one), name=one[1]) for one in follow]
        except UserError as error:
            self._failed = str(error)
        except Exception as error:
            log.exception("the model can't be opened")
            self._failed = type(error).__name__
            raise

    async def _follow(self, aside: Aside, topic: str, name: str) -> None:
        take = {"items": aside.admit, "windows": aside.learn}[name]
        try:
            async for batch in read(self._settings, topic, follow=True):
                if batch.records:
                    await take(batch.records)
                self._shares[name] = batch.share
        except (KafkaError, OSError) as error:
            log.warning("topic %s can't be read: %s", topic, type(error).__name__)
            self._failed = f"topic {topic} can't be read"
