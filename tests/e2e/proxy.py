"""A TCP proxy between Kafka clients and a broker that delays, drops and cuts off chosen requests.

It reads Kafka's framing (size, API key, version, correlation id) and forwards the bytes unchanged. The broker has a
second listener that advertises the proxy's address; a client that must not be disturbed uses the first one. PLAINTEXT
and one broker only.

    proxy = KafkaProxy()
    with Broker(port=free, listeners=["PROXIED"], properties=proxy.properties(free)) as broker:
        async with proxy.serving(broker.ports["PROXIED"]):        # clients: bootstrap_servers=proxy.bootstrap
            late = proxy.add(ApiKey.END_TXN, delay_s=None, reset="on request")
            ...                    # the client sees a reset at once and would send again on a new connection
            late.release()         # only now the broker gets the first request
            await late.answer()    # the broker's answer to it, which the client never sees

Requests of one connection stay in order: those behind a delayed request wait for it. A request that has reached the
proxy is forwarded even if its client has closed the connection since, as TCP does with data that is on its way.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from enum import IntEnum
from math import inf
from typing import Literal, NamedTuple

HOST = "127.0.0.1"
LINGER_S = 60.0
"""How long the broker may take to answer a client that is gone, seconds."""
_HEAD, _INT = struct.Struct(">hhi"), struct.Struct(">i")


class ApiKey(IntEnum):
    """The requests of Kafka's protocol that tests disturb."""

    PRODUCE = 0
    ADD_PARTITIONS_TO_TXN = 24
    ADD_OFFSETS_TO_TXN = 25
    END_TXN = 26
    TXN_OFFSET_COMMIT = 28


class Request(NamedTuple):
    api_key: int
    version: int
    correlation_id: int
    frame: bytes
    """The whole request but its size."""


@dataclass
class Fault:
    """What happens to the next `times` requests of an API key for which `only` holds.

    `delay_s` is the time until a request is forwarded, seconds; None waits for `release`, `inf` drops the request.
    `reset` resets the client's connection when the request arrives, or when the broker has answered it. With `mute`
    the client does not get the answer and waits until its own time-out.
    """

    api_key: ApiKey
    delay_s: float | None = 0.0
    reset: Literal["", "on request", "on answer"] = ""
    mute: bool = False
    times: float = 1
    only: Callable[[Request], bool] = lambda _: True
    caught: int = field(default=0, init=False)
    """Requests that it has happened to."""
    answers: "asyncio.Queue[bytes]" = field(default_factory=asyncio.Queue, init=False)
    """Of the broker to those requests, behind the correlation id."""
    _arrived: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _released: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    def matches(self, request: Request) -> bool:
        return self.times > 0 and self.api_key == request.api_key and self.only(request)

    def catch(self) -> None:
        self.times -= 1
        self.caught += 1
        self._arrived.set()

    def release(self) -> None:
        self._released.set()

    async def forwarded(self) -> None:
        """Returns when a caught request may go on to the broker."""
        await (self._released.wait() if self.delay_s is None else asyncio.sleep(self.delay_s))

    async def arrived(self) -> None:
        """Returns when a request has been caught."""
        await self._arrived.wait()

    async def answer(self, timeout_s: float = 30) -> bytes:
        """The broker's next answer. Raises `TimeoutError`."""
        async with asyncio.timeout(timeout_s):
            return await self.answers.get()


class KafkaProxy:
    """Listens from its construction, so that the broker's configuration can name its port; forwards while `serving`."""

    def __init__(self) -> None:
        self._socket = socket.create_server((HOST, 0))
        self.bootstrap = f"{HOST}:{self._socket.getsockname()[1]}"
        self.faults: list[Fault] = []
        """The first one that matches a request applies to it."""
        self._links: dict[_Link, asyncio.Task[None]] = {}

    def properties(self, direct: int) -> dict[str, str]:
        """Configuration of a broker whose other listener has the port `direct`."""
        names = ("CONTROLLER", "PLAINTEXT", "PROXIED")
        return {
            "listener.security.protocol.map": ",".join(f"{name}:PLAINTEXT" for name in names),
            "advertised.listeners": f"PLAINTEXT://{HOST}:{direct},PROXIED://{self.bootstrap}",
        }

    def add(
        self,
        api_key: ApiKey,
        *,
        delay_s: float | None = 0.0,
        reset: Literal["", "on request", "on answer"] = "",
        mute: bool = False,
        times: float = 1,
        only: Callable[[Request], bool] = lambda _: True,
    ) -> Fault:
        self.faults.append(Fault(api_key, delay_s, reset, mute, times, only))
        return self.faults[-1]

    def clear(self) -> None:
        """Ends all faults; what is held goes on to the broker."""
        for fault in self.faults:
            fault.release()
        self.faults.clear()

    def reset(self) -> None:
        """Resets every connection of a client; delayed requests stay on their way."""
        for link in list(self._links):
            link.reset()

    @contextlib.asynccontextmanager
    async def serving(self, port: int) -> AsyncIterator[None]:
        """Forwards to the broker's listener at `port`. Can be repeated."""

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            link = _Link(self.faults, reader, writer)
            self._links[link] = asyncio.create_task(link.run(port))
            self._links[link].add_done_callback(lambda _: self._links.pop(link))

        server = await asyncio.start_server(accept, sock=self._socket.dup())
        try:
            yield
        finally:
            server.close()
            tasks = list(self._links.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class _Link:
    """A client's connection and the connection to the broker that stands for it."""

    def __init__(self, faults: list[Fault], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._faults = faults
        self._reader = reader
        self._writer = writer
        self._client_gone = False
        self._unanswered: dict[int, Fault | None] = {}
        """By correlation id."""

    async def run(self, port: int) -> None:
        try:
            reader, writer = await asyncio.open_connection(HOST, port)
        except OSError:  # the broker is away
            self.reset()
            return
        up, down = asyncio.create_task(self._to_broker(writer)), asyncio.create_task(self._to_client(reader))
        try:
            await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
            self._client_gone = True
            if self._unanswered:
                await asyncio.wait({down}, timeout=LINGER_S)
        finally:
            up.cancel()
            down.cancel()
            writer.close()
            self._writer.close()

    async def _to_broker(self, broker: asyncio.StreamWriter) -> None:
        while frame := await _frame(self._reader):
            request = Request(*_HEAD.unpack_from(frame), frame)
            fault = next((one for one in self._faults if one.matches(request)), None)
            if fault is not None:
                fault.catch()
                if fault.reset == "on request":
                    self.reset()
                if fault.delay_s == inf:
                    continue
                await fault.forwarded()
            self._unanswered[request.correlation_id] = fault
            broker.write(_INT.pack(len(frame)) + frame)

    async def _to_client(self, broker: asyncio.StreamReader) -> None:
        while (self._unanswered or not self._client_gone) and (frame := await _frame(broker)):
            fault = self._unanswered.pop(_INT.unpack_from(frame)[0], None)
            if fault is not None:
                fault.answers.put_nowait(frame[4:])
                if fault.reset == "on answer":
                    self.reset()
            if not (fault is not None and fault.mute) and not self._writer.is_closing():
                self._writer.write(_INT.pack(len(frame)) + frame)

    def reset(self) -> None:
        linger = struct.pack("ii", 1, 0)  # closing sends RST
        self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._writer.transport.abort()


async def _frame(reader: asyncio.StreamReader) -> bytes:
    """The next request or answer; empty when the connection has ended, in order or not."""
    try:
        return await reader.readexactly(*_INT.unpack(await reader.readexactly(4)))
    except (OSError, asyncio.IncompleteReadError):
        return b""
