import asyncio
import contextlib
import socket
import time
import urllib.request
from collections.abc import Iterator
from urllib.error import HTTPError

import pytest
from prometheus_client import CollectorRegistry, Counter

from stream_rec import health
from stream_rec.errors import UserError
from stream_rec.health import Health, serve


def read(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as page:
            return page.status, page.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def test_a_process_is_ready_when_nothing_hinders_it_and_little_waits() -> None:
    registry, state = CollectorRegistry(), Health(most_waiting=5)
    Counter("some_things", "Things", registry=registry).inc()
    port = serve(registry, state, "127.0.0.1", 0)
    assert read(port, "/healthz") == (200, "ok\n")
    assert read(port, "/readyz") == (503, "partitions move\n")
    state.not_ready_reasons.clear()
    assert read(port, "/readyz") == (200, "ok\n")
    state.waiting = 6
    assert read(port, "/readyz") == (503, "6 records wait\n")
    assert "\nsome_things_total 1.0\n" in read(port, "/metrics")[1]


async def test_a_process_whose_event_loop_stands_still_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "HUNG_S", 0.05)
    state = Health(5)
    state.not_ready_reasons.clear()
    watching = asyncio.create_task(state.watch())
    await asyncio.sleep(0.01)
    assert state.dead() is None
    time.sleep(0.1)  # noqa: ASYNC251 - the event loop stands still
    assert state.dead() is not None
    assert state.unready() == state.dead()
    watching.cancel()


def test_a_taken_port_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match="choose another port"):
        serve(CollectorRegistry(), Health(5), "127.0.0.1", taken.getsockname()[1])


def test_what_goes_wrong_beside_the_work_is_told_by_a_page_that_says_ok() -> None:
    registry, state = CollectorRegistry(), Health(most_waiting=5)
    port = serve(registry, state, "127.0.0.1", 0)
    state.troubles = {"the cache is full"}
    assert read(port, "/readyz") == (503, "partitions move\n")
    state.not_ready_reasons.clear()
    assert read(port, "/readyz") == (200, "ok, but the cache is full\n")
    assert read(port, "/healthz") == (200, "ok\n")


def test_a_partition_that_kafka_can_t_read_makes_a_process_unready() -> None:
    state = Health(most_waiting=5)
    state.not_ready_reasons.clear()
    state.unread = {"Kafka can't read topic t, partition 0 (CorruptRecordException)"}
    assert state.unready() == "Kafka can't read topic t, partition 0 (CorruptRecordException)"


@contextlib.contextmanager
def connections(port: int, count: int, request: bytes) -> Iterator[list[socket.socket]]:
    """`count` clients that send `request` and keep the connection open."""
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(count):
            clients.append(stack.enter_context(socket.create_connection(("127.0.0.1", port))))
            clients[-1].sendall(request)
        yield clients


@pytest.mark.parametrize("half", [b"", b"GET /metr", b"GET /metrics HTTP/1.1\r\nHost: a\r\nX: "])
def test_half_sent_requests_keep_no_probe_out(half: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "CONNECTIONS", 4)
    port = serve(CollectorRegistry(), Health(5), "127.0.0.1", 0)
    with connections(port, 20, half) as clients:
        assert read(port, "/healthz") == (200, "ok\n")
        for client in clients[:16]:
            assert client.recv(1) == b""  # it made room
        assert read(port, "/healthz") == (200, "ok\n")


def test_half_a_request_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(health._Handler, "timeout", 0.05)
    port = serve(CollectorRegistry(), Health(5), "127.0.0.1", 0)
    with connections(port, 2, b"GET /metr") as clients:
        for client in clients:
            assert client.recv(1) == b""
    assert capfd.readouterr().err == ""


def test_a_malformed_accept_header_is_refused() -> None:
    port = serve(CollectorRegistry(), Health(5), "127.0.0.1", 0)
    request = b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text; version=x\r\n\r\n"
    with connections(port, 1, request) as (client,):
        assert client.makefile("rb").readline().split()[1] == b"400"


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"secret\r\n\r\n",
        b"\x16\x03\x01secret\r\n\r\n",
        b"GET /secret\xff%ff%zz HTTP/1.1\r\n\r\n",
        b"GET /secret HTTP/9.9\r\n\r\n",
        b"GET /secret HTTP/1.1\r\nX: " + 70_000 * b"x" + b"\r\n\r\n",
        b"GET /secret" + 70_000 * b"x" + b" HTTP/1.1\r\n\r\n",
        b"GET /secret HTTP/1.1\r\n" + 200 * b"X: 1\r\n" + b"\r\n",
        b"GET /metrics?name[]=%ff&secret;=&&= HTTP/1.1\r\nAccept: application/openmetrics-text;q=secret,;;\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text; version=secret; escaping=\r\n\r\n",
        b"POST /metrics HTTP/1.1\r\nContent-Length: secret\r\n\r\n",
    ],
)
def test_a_malformed_request_is_answered_and_written_nowhere(
    request_bytes: bytes, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    port = serve(CollectorRegistry(), Health(5), "127.0.0.1", 0)
    with connections(port, 1, request_bytes) as (client,), contextlib.suppress(ConnectionResetError):
        while client.recv(1_000_000):
            pass
    assert read(port, "/healthz") == (200, "ok\n")
    assert capfd.readouterr().err == ""
    assert caplog.text == ""
