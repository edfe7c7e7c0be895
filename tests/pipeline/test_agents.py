"""How an agent process begins and ends, without Kafka."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stream_rec.config import Settings
from stream_rec.pipeline import agents


class App:
    """An app of which nothing comes to an end by itself for a while."""

    crashed = False

    def __init__(self) -> None:
        self.topic_guard = SimpleNamespace(watch=asyncio.Event().wait)
        self.stopped = asyncio.Event()
        self.ended_by_itself = False

    async def start(self) -> None:
        await self.stopped.wait()

    async def stop(self) -> None:
        self.stopped.set()

    async def wait_until_stopped(self) -> None:
        await asyncio.sleep(20)
        self.ended_by_itself = True


@pytest.fixture(autouse=True)
def heeded() -> Iterator[None]:
    """A signal that agents do not heed ends no test run."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("moment", ["while the topics are looked at", "while the app is built"])
def test_a_signal_that_comes_during_the_start_ends_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, moment: str
) -> None:
    apps: list[App] = []

    async def fit(_: Settings) -> dict[str, Any]:
        if moment == "while the topics are looked at":
            os.kill(os.getpid(), number)
        return {}

    def build(*_: Any) -> App:
        if moment == "while the app is built":
            os.kill(os.getpid(), number)
        apps.append(App())
        return apps[0]

    monkeypatch.setattr(agents, "_fit", fit)
    monkeypatch.setattr(agents, "build", build)
    monkeypatch.setattr(agents, "_log", lambda _: None)  # logging stays as it is for other tests
    assert agents.run(Settings(cache_dir=tmp_path, agents_metrics_port=0)) == 0
    assert not any(app.ended_by_itself for app in apps)
