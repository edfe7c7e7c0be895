from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stream_rec.config import Settings
from stream_rec.local.broker import Broker
from tests.e2e.kafka import settings_for
from tests.e2e.process import Part


@pytest.fixture(scope="session")
def bootstrap() -> Iterator[str]:
    """host:port of a real Apache Kafka that all tests share."""
    with Broker() as broker:
        yield broker.bootstrap


@pytest.fixture
def make_settings(bootstrap: str, tmp_path: Path) -> Callable[..., Settings]:
    """Settings with topics and groups of their own at each call; the topics are not created."""

    def make(**changes: object) -> Settings:
        return settings_for(tmp_path, **{"bootstrap_servers": bootstrap, **changes})

    return make


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str, Settings], Part]]:
    """Starts `stream-rec COMMAND` in a process of its own; what still runs at the end of the test is killed."""
    parts: list[Part] = []

    def begin(command: str, settings: Settings) -> Part:
        parts.append(Part(command, settings, tmp_path / f"{command}-{len(parts)}.log"))
        return parts[-1]

    yield begin
    for part in parts:
        part.kill()
