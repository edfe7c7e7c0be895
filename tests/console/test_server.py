"""The console's server beside clients that send half a request, do not read, or want all connections."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from stream_rec import config
from stream_rec.console import handlers, security, server
from stream_rec.console.sse import PAGES
from stream_rec.console.state import ConsoleState

GET = b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n"
HEALTHY = b"HTTP/1.1 200 OK"
Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[tuple[int, ConsoleState]]:
    """The port of a console without a broker, and what it follows."""
    settings = config.load_settings(bootstrap_servers="127.0.0.1:1")
    following = ConsoleState(settings)
    following._feed.ready.set()
    async with server.serving(handlers.app(settings, following, allow_events=True), "127.0.0.1", 0) as port:
        yield port, following


async def connect(stack: contextlib.ExitStack, port: int, request: bytes, client: str = "127.0.0.1") -> Client:
    """Sends `request` from the address `client`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(client, 0))
    stack.callback(writer.transport.abort)
    writer.write(request)
    return reader, writer


async def rest(client: Client) -> bytes:
    """What the server sends until it closes the connection."""
    with contextlib.suppress(ConnectionResetError):
        return await client[0].read()
    return b""


async def healthy(port: int, client: str = "127.0.0.2") -> bool:
    with contextlib.ExitStack() as stack:
        reader, _ = await connect(stack, port, GET % b"/healthz", client)
        return (await reader.readline()).strip() == HEALTHY


@pytest.mark.parametrize("half", [b"", b"GET /", b"GET /healthz HTTP/1.1\r\nHost: local", GET % b"/healthz" + b"GET /"])
async def test_half_a_request_is_not_waited_for_for_ever(half: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "IDLE_S", 0.05)
    async with serving() as (port, _):
        with contextlib.ExitStack() as stack:
            told = await rest(await connect(stack, port, half))
    assert told.count(HEALTHY) == half.count(b"\r\n\r\n")


async def test_half_a_body_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers, "BODY_S", 0.05)
    monkeypatch.setattr(server, "LINGER_S", 0.05)
    async with serving() as (port, _):
        head = b"POST /api/events HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\n"
        with contextlib.ExitStack() as stack:
            body = b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
            told = await rest(await connect(stack, port, head + body))
    assert told.startswith(b"HTTP/1.1 408")


async def test_who_does_not_read_loses_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security, "SEND_S", 0.05)
    async with serving() as (port, following):
        with contextlib.ExitStack() as stack:
            reader, writer = await connect(stack, port, GET % b"/stream")
            await reader.readuntil(b"event: hello")
            writer.transport.pause_reading()
            while following.hub:
                following.hub.send("point", "x" * 1_000_000)
                await asyncio.sleep(0.001)
            while any("RequestHandler.start" in repr(task.get_coro()) for task in asyncio.all_tasks()):  # noqa: ASYNC110
                await asyncio.sleep(0.001)


async def test_all_streams_of_one_client_leave_room_for_others() -> None:
    async with serving() as (port, _):
        with contextlib.ExitStack() as stack:
            streams = [await connect(stack, port, GET % b"/stream") for _ in range(PAGES)]
            for reader, _ in streams:
                await reader.readuntil(b"event: hello")
            other, _ = await connect(stack, port, GET % b"/stream", "127.0.0.2")
            assert (await other.readline()).strip() == HEALTHY
            await other.readuntil(b"event: hello")
            assert await streams[0][0].readuntil(b"0\r\n\r\n")  # the oldest one ends


async def test_all_connections_of_one_client_leave_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CONNECTIONS", 8)
    async with serving() as (port, _):
        with contextlib.ExitStack() as stack:
            mine = await connect(stack, port, GET % b"/stream", "127.0.0.2")
            await mine[0].readuntil(b"event: hello")
            greedy = [await connect(stack, port, b"GET /") for _ in range(20)]
            assert await healthy(port)
            for client in greedy[:12]:
                assert await rest(client) == b""
            assert not mine[0].at_eof()


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /recommendations/secret-user HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /recommendations/secret-user HTTP/1.1\r\n\r\n",
        b"GET /recommendations/secret-user HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"GET /recommendations/secret user HTTP/1.1 x\r\nHost: localhost\r\n\r\n",
        b"secret-user\r\n\r\n",
        b"BREW /recommendations/secret-user HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01secret-user\r\n\r\n",
        b"GET /recommendations/secret-user\xff HTTP/1.1\r\nHost: localhost\r\nsecret-user\r\n\r\n",
        b"GET /recommendations/secret-user HTTP/1.1\r\nHost: localhost\r\nX: " + 9_000 * b"x" + b"\r\n\r\n",
        b"GET /recommendations/secret-user" + 9_000 * b"x" + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /recommendations/secret-user HTTP/1.1\r\nHost: localhost\r\n" + 200 * b"X: 1\r\n" + b"\r\n",
        b"POST /recommendations/secret-user HTTP/1.1\r\nHost: localhost\r\nContent-Length: secret-user\r\n\r\n",
        b"GET http://evil.example/recommendations/secret-user HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET http://[/secret-user HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"CONNECT secret-user:1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
)
async def test_a_malformed_request_is_refused_in_one_line_that_holds_no_id(
    request_bytes: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as (port, _):
        with contextlib.ExitStack() as stack:
            reader, _ = await connect(stack, port, request_bytes)
            status = await reader.readline()
            assert status.split()[1] == b"400", status
            assert await healthy(port)
    assert "secret" not in caplog.text
    assert "Traceback" not in caplog.text
    assert len(caplog.text.splitlines()) <= 1
