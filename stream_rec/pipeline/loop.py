"""The event loop of the processes that stay, uvloop; and what keeps aiokafka from going on, or from ending, there."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import uvloop
from aiokafka import conn
from aiokafka.consumer import consumer, fetcher
from aiokafka.errors import KafkaConnectionError

T = TypeVar("T")

AGAIN_S = 0.1
"""After which a task that goes on is told to end once more, seconds."""


class Connection(conn.AIOKafkaConnection):  # type: ignore[misc]  # aiokafka is partly typed
    """A connection that knows how uvloop's transports end.

    uvloop raises `RuntimeError` for a write between the end of a transport and the moment when its reader hears of it;
    asyncio's own loop says nothing. aiokafka expects `OSError` (its issue 1038), and whichever of its background tasks
    was writing ends: without the one that refreshes the metadata, a worker waits for that ever after.

    And it closes a TLS transport by waiting for the other side's goodbye, up to 30 s where that one is just sending.
    """

    def send(self, request: Any, expect_response: bool = True) -> Any:
        """Raises `KafkaConnectionError` where the connection is gone."""
        try:
            return super().send(request, expect_response)
        except RuntimeError as error:
            self.close(reason=conn.CloseReason.CONNECTION_BROKEN)
            raise KafkaConnectionError(f"the connection was closed: {error}") from error

    def close(self, reason: Any = None, exc: BaseException | None = None) -> Any:
        """Waits for no goodbye: nothing that matters is on its way in either direction."""
        transport = self._writer.transport if self._writer is not None else None
        closed = super().close(reason, exc)
        if transport is not None and transport.get_extra_info("ssl_object") is not None:
            transport.abort()
        return closed


class Fetcher(fetcher.Fetcher):  # type: ignore[misc]
    """A fetcher that ends when it is told to.

    aiokafka 0.14 cancels its fetches and lets the cancellation of one that waits for another attempt, as they do while
    Kafka is away, out of `close`: the consumer stays half open, and whoever stops it takes itself for cancelled. And
    its task loses the order to end that comes while it lets partitions go: whoever stops the consumer waits ever after.
    """

    async def close(self) -> None:
        self._closed = True
        while not self._fetch_task.done():
            self._fetch_task.cancel()
            await asyncio.wait({self._fetch_task}, timeout=AGAIN_S)
        fetches = set(self._pending_tasks)
        for fetch in fetches:
            fetch.cancel()
        if fetches:
            await asyncio.wait(fetches)
        self._pending_tasks.clear()
        await super().close()


def run(main: Coroutine[Any, Any, T]) -> T:
    """Runs `main` to its end, and returns what it returns; every Kafka client of the process is made of these parts."""
    conn.AIOKafkaConnection = Connection
    consumer.Fetcher = Fetcher
    result: T = uvloop.run(main)
    return result
