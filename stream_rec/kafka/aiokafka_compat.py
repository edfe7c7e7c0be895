"""Corrections of aiokafka 0.14 for the clients of this project; other users of aiokafka in the process keep theirs.

aiokafka makes its parts by the names of a module. `with_globals` gives one of its functions other parts to make.
"""

import asyncio
import types
from collections.abc import Callable
from typing import Any, TypeVar

from aiokafka import conn
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaConnectionError

F = TypeVar("F", bound=Callable[..., Any])

PAUSE_S = 0.2
"""Between two attempts to read the metadata while Kafka is away, seconds."""


def with_globals(function: F, **parts: Any) -> F:
    """A copy of `function` in which the global names in `parts` stand for something else.

    Raises `AttributeError` for a name that the function does not use.
    """
    if unused := parts.keys() - set(function.__code__.co_names):
        raise AttributeError(f"{function.__qualname__} uses no {', '.join(sorted(unused))}")
    copy: Any = types.FunctionType(
        function.__code__,
        {**function.__globals__, **parts},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy  # type: ignore[no-any-return]


class Connection(conn.AIOKafkaConnection):  # type: ignore[misc]  # aiokafka is partly typed
    """A connection that allows for how uvloop's transports end.

    uvloop raises `RuntimeError` for a write between the end of a transport and the moment when its reader is told;
    asyncio's own loop says nothing. aiokafka expects `OSError` (its issue 1038), and whichever of its background tasks
    was writing ends: without the one that refreshes the metadata, a worker waits for that for ever.

    And uvloop closes a TLS transport by waiting for the other side's close_notify, up to 30 s where that one is just
    sending (not reported).
    """

    def send(self, request: Any, expect_response: bool = True) -> Any:
        """Raises `KafkaConnectionError` where the connection is gone."""
        try:
            return super().send(request, expect_response)
        except RuntimeError as error:
            self.close(reason=conn.CloseReason.CONNECTION_BROKEN)
            raise KafkaConnectionError(f"the connection was closed: {error}") from error

    def close(self, reason: Any = None, exc: BaseException | None = None) -> Any:
        """Does not wait for the broker's close_notify: nothing that matters is on its way in either direction."""
        transport = self._writer.transport if self._writer is not None else None
        # asyncio's TLS transport forgets what it is made of when it is closed twice: asked before
        if transport is not None and not transport.is_closing() and transport.get_extra_info("ssl_object") is not None:
            transport.abort()
        return super().close(reason, exc)


create_conn = with_globals(conn.create_conn, AIOKafkaConnection=Connection)


class Client(AIOKafkaClient):  # type: ignore[misc]
    """A client whose connections are `Connection`s, and which pauses between attempts to read the metadata.

    While no broker answers, aiokafka's own makes 4,000 attempts a second (not reported).
    """

    bootstrap = with_globals(AIOKafkaClient.bootstrap, create_conn=create_conn)
    _get_conn = with_globals(AIOKafkaClient._get_conn, create_conn=create_conn)

    async def _metadata_update(self, *arguments: Any) -> bool:
        updated = bool(await super()._metadata_update(*arguments))
        if not updated:
            await asyncio.sleep(PAUSE_S)
        return updated


def correct(client: AIOKafkaClient) -> None:
    """Makes a `Client` of what a consumer, a producer or an admin client has made itself; before it connects."""
    client.__class__ = Client
