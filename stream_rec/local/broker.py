"""A real Apache Kafka on one machine: for the demo, the tests and the benchmarks.

One node in KRaft mode, broker and controller in one Java process: no Docker, no installed Java (`local.java`).
Nothing here is meant for production.
"""

import asyncio
import base64
import contextlib
import fcntl
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import IO, Any, Self

from stream_rec.errors import UserError
from stream_rec.kafka.connection import connect
from stream_rec.local import subprocesses
from stream_rec.local.java import KAFKA_VERSION, java_command, say

HOST = "127.0.0.1"


class Broker:
    """Apache Kafka in a Java process of its own; a context manager, or `start` and `stop`.

    `data` is a folder that keeps topics and offsets from one start to the next; None is a temporary folder, removed by
    `stop`. `port` 0 takes a free one. `heap_mb` is Java's heap in MiB (10^6 messages pass with 512).

    `listeners` are security protocols beside PLAINTEXT, each on a free port of its own. `properties` are Kafka's,
    and win over those that stand here; `formatting` are further arguments of `kafka-storage.sh format`.

    However this process ends, `kill -9` included, the Java process ends with it (on Linux). It stands in a session of
    its own, so that a terminal's Ctrl-C reaches this process alone, which then stops its parts in their order.
    """

    def __init__(
        self,
        data: Path | None = None,
        port: int = 0,
        heap_mb: int = 512,
        notify: Callable[[str], None] = say,
        *,
        listeners: Sequence[str] = (),
        properties: Mapping[str, str] = MappingProxyType({}),
        formatting: Sequence[str] = (),
    ) -> None:
        self._kept = data
        self._wanted = port
        self._heap_mb = heap_mb
        self._notify = notify
        self._listeners = listeners
        self._properties = properties
        self._formatting = formatting
        self._home: Path | None = None
        self._lock: IO[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.port = port
        self.ports: dict[str, int] = {}
        """Of each of `listeners`."""

    @property
    def bootstrap(self) -> str:
        """host:port, as `STREAM_REC_BOOTSTRAP_SERVERS` wants it."""
        return f"{HOST}:{self.port}"

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that reach it, whatever else is set."""
        return {"bootstrap_servers": self.bootstrap, "kafka_security_protocol": "PLAINTEXT"}

    @property
    def pid(self) -> int | None:
        """Of the Java process; None before `start`."""
        return self._process.pid if self._process else None

    def start(self, timeout_s: float = 60) -> Self:
        """Returns when the broker answers, which takes about 3 s.

        Raises `UserError` when the port is busy, the folder can't be used, or the broker dies or stays silent for
        `timeout_s` seconds; the message ends with the tail of the broker's log.
        """
        _ports(self._wanted)  # a taken one is told before anything is fetched
        server = java_command("kafka.Kafka", heap_mb=self._heap_mb, notify=self._notify)
        try:
            home = self._folder()
            while not self._started(server, home, timeout_s):
                pass
        except BaseException as error:
            self.stop(timeout_s=0)
            if isinstance(error, OSError):
                raise UserError(f"cannot keep Kafka's data in {self._kept}: {error.strerror}") from None
            raise
        self._notify(f"Apache Kafka {KAFKA_VERSION} listens on {self.bootstrap}")
        return self

    def stop(self, timeout_s: float = 8) -> None:
        """Ends Kafka in order, by force after `timeout_s` seconds; a temporary folder is removed. Can be repeated."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._lock is not None:
            self._lock.close()
        if self._kept is None and self._home is not None:
            shutil.rmtree(self._home, ignore_errors=True)

    def poll(self) -> int | None:
        """The exit code of the Java process, None while it runs."""
        return self._process.poll() if self._process else None

    def wait(self, timeout_s: float | None = None) -> int:
        """Waits until the Java process ends; returns its exit code. Raises `TimeoutError`."""
        if self._process is None:
            raise RuntimeError("the broker was not started")
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"the broker still runs after {timeout_s} s") from None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _folder(self) -> Path:
        """The data folder, locked until `stop`: a second Kafka would damage the first one's metadata unawares."""
        if self._kept is None:
            self._home = Path(tempfile.mkdtemp(prefix="stream-rec-kafka-"))
        else:
            self._home = self._kept.resolve()
            self._home.mkdir(parents=True, exist_ok=True)
        self._lock = (self._home / "lock").open("wb")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another broker keeps its data in {self._kept}: choose another folder") from None
        return self._home

    def _started(self, server: list[str], home: Path, timeout_s: float) -> bool:
        """Starts Kafka; False when another process took the free port meanwhile."""
        self.port, controller, *further = _ports(self._wanted, 0, *(0 for _ in self._listeners))
        self.ports = dict(zip(self._listeners, further, strict=True))
        properties = home / "server.properties"
        given = {**_properties(home, {"PLAINTEXT": self.port, **self.ports}, controller), **self._properties}
        properties.write_text("".join(f"{name}={value}\n" for name, value in given.items()), encoding="utf-8")
        output = home / "broker.log"
        with output.open("ab") as sink:
            since = sink.tell()
            if not (home / "log" / "meta.properties").exists() and _format(server, properties, self._formatting, sink):
                raise UserError(f"Kafka cannot use {home}: {_tail(output, since)}")
            self._process = subprocesses.start([*server, str(properties)], sink)
        with ThreadPoolExecutor(1) as aside:  # the caller may run an event loop of its own
            if aside.submit(asyncio.run, _answers(self._process, self.port, timeout_s)).result():
                return True
        tail = _tail(output, since)
        if self._process.poll() is None:
            raise UserError(f"Kafka does not answer on port {self.port} after {timeout_s:g} s: {tail}")
        if self._wanted == 0 and "Address already in use" in tail:
            return False
        raise UserError(f"Kafka ended with code {self._process.returncode}: {tail}")


def _ports(*wanted: int) -> list[int]:
    """The ports, a free one for each 0."""
    with contextlib.ExitStack() as held:
        ports = []
        for port in wanted:
            one = held.enter_context(socket.socket())
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind((HOST, port))
            except OSError as error:
                raise UserError(
                    f"port {port} is taken ({error.strerror}): stop what listens there, or choose another with --port"
                ) from None
            ports.append(one.getsockname()[1])
    return ports


def _properties(home: Path, ports: Mapping[str, int], controller: int) -> dict[str, str]:
    """Kafka's configuration for one node: nothing is replicated, and a group forms at once."""
    listeners = ",".join(f"{protocol}://{HOST}:{port}" for protocol, port in ports.items())
    return {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@{HOST}:{controller}",
        "listeners": f"{listeners},CONTROLLER://{HOST}:{controller}",
        "advertised.listeners": listeners,
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": ",".join(["CONTROLLER:PLAINTEXT", *(f"{one}:{one}" for one in ports)]),
        "log.dirs": f"{home}/log",
        "auto.create.topics.enable": "false",
        "group.initial.rebalance.delay.ms": "0",
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "4",  # of 50: each costs files and start-up time
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "transaction.state.log.num.partitions": "4",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        "share.coordinator.state.topic.num.partitions": "4",
        "num.network.threads": "1",
        "num.io.threads": "2",  # of 8: on a small machine they wake each other, and whatever else runs
        "log.segment.bytes": str(64 << 20),
        "log.index.size.max.bytes": str(1 << 20),  # of 10 MiB, allocated whole for every partition
        "message.max.bytes": str(64 << 20),  # the topics set their own, smaller limit
        "replica.fetch.max.bytes": str(64 << 20),
    }


def _format(server: list[str], properties: Path, further: Sequence[str], sink: IO[bytes]) -> int:
    """Makes the folder Kafka's, with a new cluster id; returns the exit code."""
    cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    tool = [*server[:-1], "kafka.tools.StorageTool", "format"]
    command = [*tool, f"--cluster-id={cluster}", "-c", str(properties), *further]
    return subprocess.run(  # noqa: S603 - our own command
        command, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True, check=False
    ).returncode


async def _answers(process: subprocess.Popen[bytes], port: int, timeout_s: float) -> bool:
    """Whether Kafka takes requests and knows itself as a broker, before it dies or the time is up."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while process.poll() is None:
                await asyncio.sleep(0.1)
                with contextlib.suppress(OSError, UserError):
                    _, writer = await asyncio.open_connection(HOST, port)  # a cheap knock, while Java still loads
                    writer.close()
                    async with connect({"bootstrap_servers": f"{HOST}:{port}"}):
                        return True
    return False


def _tail(output: Path, since: int, lines: int = 6) -> str:
    """The end of what was logged since the start, in one line."""
    with output.open("rb") as log_file:
        log_file.seek(since)
        said = log_file.read().decode(errors="replace").splitlines()
    telling = [line.strip() for line in said if line.strip() and not line.startswith(("WARNING:", "\tat "))]
    return " | ".join(telling[-lines:]) or "its log says nothing"
