"""The examples of `examples/`, on recommendations that were written by hand."""

import asyncio
import os
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from stream_rec.config import Settings
from stream_rec.kafka import topics
from stream_rec.local.java import CONSOLE, KAFKA_VERSION, java_command, pinned
from stream_rec.messages import RankedItem, Recommendation, TombstoneHeaders, as_headers, encode

pytestmark = pytest.mark.e2e

EXAMPLES = Path(__file__).parents[3] / "examples"
JAVA = f"org.apache.kafka:kafka-clients:{KAFKA_VERSION}+org.eclipse.jdt:ecj:3.44.0"
CHECKSUMS = pinned() | {"ecj-3.44.0.jar": "14c46ddc2e511c46c998da728f6a80f13a689c920f3832402f7ad150f6a6188d"}
"""The client, and a compiler in a jar: the tests' Java is a runtime alone."""


def answer(user: str, seq: int) -> Recommendation:
    ranked = tuple(RankedItem(name, 1.0, 0.5) for name in ("tea", "pot", "cup", "tray"))
    return Recommendation(user, seq, seq - 1, 0.0, ranked, {"view": 1.0}, (), "test")


@pytest.fixture
async def settings(make_settings: Callable[..., Settings]) -> Settings:
    """With a topic of a partition that holds two answers to `u`, one to `v`, an aborted one, and the erasure of `v`."""
    made = make_settings(partitions=1)
    await topics.create(made)
    topic = made.recommendations_topic
    async with AIOKafkaProducer(
        bootstrap_servers=made.bootstrap_servers, transactional_id=topic, retry_backoff_ms=5
    ) as producer:
        async with producer.transaction():
            for one in (answer("u", 1), answer("v", 1)):
                await producer.send(topic, encode(one), key=one.user_id.encode())
        await producer.begin_transaction()
        await producer.send(topic, encode(answer("w", 1)), key=b"w")
        await producer.flush()
        await producer.abort_transaction()
        async with producer.transaction():
            await producer.send(topic, key=b"v", headers=as_headers(TombstoneHeaders("nothing")))
            await producer.send(topic, encode(answer("u", 2)), key=b"u")
    return made


class Example:
    """A running example, which is ended as Ctrl-C ends it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def lines(self, count: int) -> list[str]:
        return [(await self._process.stdout.readline()).decode().rstrip("\n") for _ in range(count)]

    async def ask(self, line: str) -> str:
        self._process.stdin.write(f"{line}\n".encode())
        return (await self.lines(1))[0]

    async def code(self) -> int:
        return await self._process.wait()

    async def end(self) -> None:
        if self._process.returncode is None:
            self._process.terminate()
        await self._process.wait()


@pytest.fixture
async def run() -> AsyncIterator[Callable[..., Awaitable[Example]]]:
    """Starts a command."""
    running: list[Example] = []

    async def begin(*command: object, **environment: str) -> Example:
        pipe = subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *map(str, command), stdin=pipe, stdout=pipe, env=os.environ | environment
        )
        running.append(Example(process))
        return running[-1]

    yield begin
    for example in running:
        await example.end()


async def test_python(settings: Settings, run: Callable[..., Awaitable[Example]]) -> None:
    where = settings.bootstrap_servers, settings.recommendations_topic
    consumer = await run(sys.executable, EXAMPLES / "consumer.py", *where, "page")
    view = await run(sys.executable, EXAMPLES / "view.py", *where)
    assert await consumer.lines(4) == ["u 1 tea pot cup", "v 1 tea pot cup", "v was erased", "u 2 tea pot cup"]
    assert await view.lines(1) == ["1 users"]
    assert [await view.ask(user) for user in "uvw"] == ["u tea pot cup", "v -", "w -"]


@pytest.mark.parametrize("name", ["consumer.py", "view.py"])
@pytest.mark.parametrize("topic", ["no-such-topic", None])
async def test_a_topic_or_a_broker_that_is_missing_is_one_line(
    settings: Settings, name: str, topic: str | None
) -> None:
    where = ("127.0.0.1:99999",) if topic is None else (settings.bootstrap_servers, topic)
    command = (sys.executable, EXAMPLES / name, *where)
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"{name}: ")
    assert (topic or "127.0.0.1:99999") in done.stderr


async def test_shell(settings: Settings, run: Callable[..., Awaitable[Example]], tmp_path: Path) -> None:
    tool = tmp_path / "kafka-console-consumer.sh"  # a stand-in for the script of Kafka's distribution; the rest is real
    command = java_command("org.apache.kafka.tools.consumer.ConsoleConsumer", artifact=CONSOLE)
    tool.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    tool.chmod(0o755)
    where = settings.bootstrap_servers, settings.recommendations_topic
    path = f"{tmp_path}:{os.environ['PATH']}"
    consumer = await run(EXAMPLES / "consumer.sh", *where, "--from-beginning", "--group", "shell", PATH=path)
    written = [f"u\t{encode(answer('u', 1)).decode()}", f"v\t{encode(answer('v', 1)).decode()}", "v\tnull"]
    assert await consumer.lines(4) == [*written, f"u\t{encode(answer('u', 2)).decode()}"]


async def test_java(settings: Settings, run: Callable[..., Awaitable[Example]], tmp_path: Path) -> None:
    compiler = java_command("org.eclipse.jdt.internal.compiler.batch.Main", artifact=JAVA, checksums=CHECKSUMS)
    assert await (await run(*compiler, "-17", "-d", tmp_path, EXAMPLES / "Consumer.java")).code() == 0
    java = java_command(
        "Consumer",
        settings.bootstrap_servers,
        settings.recommendations_topic,
        "java",
        artifact=JAVA,
        checksums=CHECKSUMS,
    )
    at = java.index("-cp") + 1
    java[at] += f":{tmp_path}"
    consumer = await run(*java)
    written = [f"u {encode(answer('u', 1)).decode()}", f"v {encode(answer('v', 1)).decode()}", "v was erased"]
    assert await consumer.lines(4) == [*written, f"u {encode(answer('u', 2)).decode()}"]
