import asyncio
import socket
import time
import urllib.request
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
    state.hindrances.clear()
    assert read(port, "/readyz") == (200, "ok\n")
    state.waiting = 6
    assert read(port, "/readyz") == (503, "6 records wait\n")
    assert "\nsome_things_total 1.0\n" in read(port, "/metrics")[1]


async def test_a_process_whose_event_loop_stands_still_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "HUNG_S", 0.05)
    state = Health(5)
    state.hindrances.clear()
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
    state.hindrances.clear()
    assert read(port, "/readyz") == (200, "ok, but the cache is full\n")
    assert read(port, "/healthz") == (200, "ok\n")
