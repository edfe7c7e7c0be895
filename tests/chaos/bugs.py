"""Known bugs, put into a process that the harness starts: what it must be able to catch. Nothing else uses them."""

import time
from collections.abc import Callable, Mapping
from typing import Any


def early() -> None:
    """Agents, slow ones, commit what Kafka has handed over, done or not, and don't wait for what they have written."""
    from stream_rec.pipeline import faust_kafka
    from stream_rec.pipeline.keeper import Keeper

    take = Keeper.take

    def slowly(self: Any, message: Any) -> None:
        time.sleep(0.02)  # else what is handed over is done before anybody can kill
        take(self, message)

    async def confirmed(_self: Any) -> bool:
        return True

    def handed_over(self: Any, tp: Any) -> int | None:
        read = self._read_offset.get(tp)
        return None if read is None else int(read) + 1

    Keeper.take = slowly  # type: ignore[method-assign]
    faust_kafka.Producer.confirmed = confirmed  # type: ignore[method-assign]
    faust_kafka.Consumer._new_offset = handed_over  # type: ignore[method-assign]


def again() -> None:
    """Agents apply an event that they read again once more."""
    from msgspec.structs import replace

    from stream_rec.messages import Window
    from stream_rec.pipeline.keeper import Keeper

    read = Keeper._read

    def forgetful(self: Any, *given: Any) -> Window | None:
        held = read(self, *given)
        return None if held is None else replace(held, offset=-1)

    Keeper._read = forgetful  # type: ignore[method-assign]


def offsets_first() -> None:
    """Workers commit the offsets, and only then publish."""
    from aiokafka import TopicPartition

    from stream_rec.pipeline.transactions import Done, Outlet

    publish = Outlet.publish

    async def apart(self: Outlet, done: Mapping[TopicPartition, Done]) -> None:
        await publish(self, {partition: Done((), offset) for partition, (_, offset) in done.items()})
        await publish(self, done)

    Outlet.publish = apart  # type: ignore[method-assign]


BUGS: dict[str, Callable[[], None]] = {"early": early, "again": again, "offsets-first": offsets_first}
