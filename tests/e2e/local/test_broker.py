import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from stream_rec.config import Settings
from stream_rec.errors import UserError
from stream_rec.kafka import topics
from stream_rec.local.broker import Broker
from stream_rec.local.java import CONSOLE, java_command
from tests.e2e.kafka import produce, read_topic, sent, settings_for, until

pytestmark = pytest.mark.e2e


def test_a_kept_folder_keeps_topics_records_and_cluster(tmp_path: Path) -> None:
    said: list[str] = []
    with Broker(tmp_path / "kafka", notify=said.append) as broker:
        settings = settings_for(tmp_path, bootstrap_servers=broker.bootstrap)
        asyncio.run(topics.create(settings))
        asyncio.run(produce(settings, [sent("u")]))
        cluster = (tmp_path / "kafka/log/meta.properties").read_text()
        assert broker.poll() is None
        with pytest.raises(UserError, match="another broker keeps its data in"):
            Broker(tmp_path / "kafka").start()
        assert broker.poll() is None
    assert broker.poll() is not None
    assert said[-1] == f"Apache Kafka 4.3.1 listens on {broker.bootstrap}"
    with Broker(tmp_path / "kafka") as again:
        settings = settings.model_copy(update={"bootstrap_servers": again.bootstrap})
        (record,) = asyncio.run(read_topic(settings, settings.events_topic))
    assert record.key == b"u"
    assert (tmp_path / "kafka/log/meta.properties").read_text() == cluster


OWNER = """
import sys, threading
from stream_rec.local.broker import Broker
broker = Broker()
starter = threading.Thread(target=broker.start)   # a thread that ends before the broker
starter.start(); starter.join()
print(broker.pid, broker._home, flush=True)
sys.stdin.read()
broker.stop()
"""


@pytest.fixture
def owner() -> Iterator[subprocess.Popen[str]]:
    """A process that owns a broker."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", OWNER], stdin=pipe, stdout=pipe, text=True) as process:
        yield process
        process.kill()


async def test_the_broker_ends_with_a_killed_owner_and_does_not_hear_its_terminal(
    owner: subprocess.Popen[str],
) -> None:
    java, _ = owner.stdout.readline().split()
    assert psutil.pid_exists(int(java))
    assert os.getsid(int(java)) != os.getsid(owner.pid)
    owner.send_signal(signal.SIGKILL)

    async def gone() -> bool:
        return not psutil.pid_exists(int(java)) or psutil.Process(int(java)).status() == psutil.STATUS_ZOMBIE

    await until(gone)


def test_stopping_leaves_neither_process_nor_files(owner: subprocess.Popen[str]) -> None:
    java, home = owner.stdout.readline().split()
    assert Path(home).is_dir()
    owner.stdin.close()
    assert owner.wait() == 0
    assert not psutil.pid_exists(int(java))
    assert not Path(home).exists()


def test_a_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} is taken"):
            Broker(port=port).start()


@pytest.mark.parametrize("where", ["a file", "/proc/kafka"])
def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path, where: str) -> None:
    folder = tmp_path / where
    if where == "a file":
        folder.write_text("in the way")
    with pytest.raises(UserError, match=f"cannot keep Kafka's data in .*{where}"):
        Broker(folder).start()


def test_the_console_tools_run(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings()
    asyncio.run(topics.create(settings))
    command = java_command(
        "org.apache.kafka.tools.TopicCommand", "--bootstrap-server", settings.bootstrap_servers, "--list",
        artifact=CONSOLE,
    )  # fmt: skip
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert set(settings.topics) <= set(listed)
