"""Known bugs, put into a process that the harness starts: what it must be able to catch. Nothing else uses them.

A bug shows only where a process ends between two of its steps. So each one ends the first process that gets there, by
SIGKILL and once in a run: it creates the file `struck` before. All other processes have the bug too and go on.
"""

import asyncio
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

Bug = Callable[[Path], None]
"""Changes the classes of the process that calls it; takes the path of `struck`."""


def early(struck: Path) -> None:
    """Agents commit what Kafka has handed over, applied or not, and don't wait for their writes."""
    from faust.types import TP

    from stream_rec.pipeline.faust_kafka import Consumer
    from stream_rec.pipeline.faust_producer import Producer

    room, commit = Producer.room, Consumer._commit

    async def slow(self: Producer) -> None:
        await room(self)
        await asyncio.sleep(0.02)  # the agent holds an event that it has not applied: time for a commit

    async def confirmed(_self: Any) -> bool:
        return True

    def handed_over(self: Consumer, tp: TP) -> int | None:
        read = self._read_offset.get(tp)
        return None if read is None else int(read) + 1

    async def ahead(self: Consumer, offsets: Mapping[TP, int]) -> bool:
        committed = await commit(self, offsets)
        if committed and any(self.done.get(tp, offset) < offset for tp, offset in offsets.items()):
            _crash_once(struck)
        return committed

    Producer.room = slow  # type: ignore[method-assign]
    Producer.confirmed = confirmed  # type: ignore[method-assign]
    Consumer._new_offset = handed_over  # type: ignore[method-assign]
    Consumer._commit = ahead  # type: ignore[method-assign]


def again(struck: Path) -> None:
    """Agents apply an event that they read again once more."""
    from faust.types import TP
    from msgspec.structs import replace

    from stream_rec.messages import Window
    from stream_rec.pipeline.faust_kafka import Consumer
    from stream_rec.pipeline.keeper import Change, Keeper

    read, apply, commit = Keeper._read, Keeper._apply, Consumer._commit
    applied = asyncio.Event()

    def forgetful(self: Keeper, *given: Any) -> Window | None:
        held = read(self, *given)
        return None if held is None else replace(held, offset=-1)

    def noted(self: Keeper, message: Any, change: Change) -> None:
        apply(self, message, change)
        applied.set()

    async def behind(self: Consumer, offsets: Mapping[TP, int]) -> bool:
        if applied.is_set() and await self.app.producer.confirmed():
            _crash_once(struck)  # Kafka has the windows, and not the offsets: their events are read again
        return await commit(self, offsets)

    Keeper._read = forgetful  # type: ignore[method-assign]
    Keeper._apply = noted  # type: ignore[method-assign]
    Consumer._commit = behind  # type: ignore[method-assign]


def offsets_first(struck: Path) -> None:
    """Workers commit the offsets, and only then publish."""
    from aiokafka import TopicPartition

    from stream_rec.kafka.transactions import PartitionOutput, TransactionalPublisher

    publish = TransactionalPublisher.publish

    async def apart(self: TransactionalPublisher, done: Mapping[TopicPartition, PartitionOutput]) -> None:
        await publish(self, {partition: PartitionOutput((), offset) for partition, (_, offset) in done.items()})
        if any(replies for replies, _ in done.values()):
            _crash_once(struck)
        await publish(self, done)

    TransactionalPublisher.publish = apart  # type: ignore[method-assign]


def _crash_once(struck: Path) -> None:
    with suppress(FileExistsError):
        struck.touch(exist_ok=False)
        os.kill(os.getpid(), signal.SIGKILL)


BUGS: dict[str, Bug] = {"early": early, "again": again, "offsets-first": offsets_first}
