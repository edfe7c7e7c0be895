"""Mutated records through the embedded broker, with real agents, a worker, a console and clients."""

import asyncio
import shutil
import time
from collections.abc import Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from unittest import mock
from urllib.error import URLError

import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy

from stream_rec import window as windows
from stream_rec.client import LatestRecommendations
from stream_rec.kafka import topics
from stream_rec.kafka.connection import access
from stream_rec.messages import Event, Recommendation, Window, encode, read_recommendation
from stream_rec.models import model_store
from stream_rec.serving.engine import Engine, Limits
from tests.chaos.verdict import same_answer
from tests.e2e.kafka import LARGE, read_topic, settings_for, waiting
from tests.e2e.process import Part
from tests.fuzz.folders import check
from tests.fuzz.lane import Case, Outcome, Result
from tests.fuzz.records import CALM, CATEGORIES, EVENT_TYPES, ODD, TOPICS, USERS, odd, without_odd_interests
from tests.tiny import CAPACITY, STRIDE, tiny_model

ROUNDS = 4
"""Of a case; before the last one all processes are restarted."""
RECORDS = 50
"""Odd records of a round."""
BOMB = 20 << 20
"""Bytes of a value that compresses to a thousandth."""
STALLED_S = 90.0
"""Time after which processes that make no progress have stalled."""
COMMANDS = ("agents", "worker", "console")


class Bytes(str):
    """The key of a header that is no UTF-8."""

    def encode(self, *_: Any) -> bytes:
        return b"\xff\xfe"


class BadError(Exception):
    """What was found, and the outcome that it counts as."""

    def __init__(self, outcome: Outcome, detail: str) -> None:
        super().__init__(detail)
        self.outcome = outcome


class Record(NamedTuple):
    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()


@contextmanager
def any_header() -> Any:
    """aiokafka's batches in Python: those in C take no `Bytes`."""
    with (
        mock.patch("aiokafka.producer.message_accumulator.DefaultRecordBatchBuilder", _DefaultRecordBatchBuilderPy),
        mock.patch("aiokafka.producer.producer.DefaultRecordBatchBuilder", _DefaultRecordBatchBuilderPy),
    ):
        yield


class Pipeline:
    """Runs cases on one broker; each has topics and processes of its own."""

    def __init__(self, home: Path, keep: Path, bootstrap: str) -> None:
        self._home = home
        self._keep = keep
        self._model = home / "model"
        model_store.save(tiny_model(), self._model)
        self._bootstrap = bootstrap

    def run(self, seed: int, number: int, among: Sequence[str] = TOPICS) -> tuple[Result, int]:
        """The result, and how many odd records were written, all to topics `among` these."""
        case = Case("broker", seed, number)
        here = self._home / str(case)
        here.mkdir()
        stage = Stage(self._bootstrap, self._model, here, Random(str(case)), among)
        result = Result(case, Outcome.USED)
        try:
            asyncio.run(stage.play())
        except BadError as error:
            result = Result(case, error.outcome, str(error))
            (here / "outcome.txt").write_text(f"{result.outcome}\n{result.detail}\n")
            (here / "records.jsonl").write_bytes(b"".join(map(_line, stage.written)))
            shutil.copytree(here, self._keep / str(case), dirs_exist_ok=True)
        finally:
            stage.kill()
            shutil.rmtree(here)
        return result, len(stage.written)


def _line(record: Record) -> bytes:
    headers = [(str(name), value) for name, value in record.headers]
    return msgspec.json.encode(record._replace(headers=headers)._asdict()) + b"\n"


class Stage:
    """A case: rounds of odd records and of events of calm users.

    In half of the cases the worker recommends the calm users' categories alone. Then their answers are those of an
    engine that reads nothing odd. In the other half odd items may be recommended, and the answers must be sound.
    """

    def __init__(self, bootstrap: str, model: Path, here: Path, draw: Random, among: Sequence[str]) -> None:
        self._draw = draw
        self._among = among
        self._barring = draw.random() < 0.5
        self._headers = draw.random() < 0.3
        self._bombs = draw.random() < 0.3
        self._here = here
        self.settings = settings_for(
            here,
            bootstrap_servers=bootstrap,
            model=model,
            capacity=CAPACITY,
            stride=STRIDE,
            event_types=EVENT_TYPES,
            categories=tuple(CATEGORIES) if self._barring else (),
            memory="own",
            coalesce=False,
        )
        self.written: list[Record] = []
        self._calm = Engine.load(model, here, Limits(stride=STRIDE, categories=CATEGORIES), "cpu")
        self._windows: dict[str, Window] = {}
        self._expected: dict[str, Recommendation] = {}
        self._events = count()
        self._parts: dict[str, Part] = {}
        self._numbers = count()

    async def play(self) -> None:
        """Raises `BadError`."""
        await topics.create(self.settings)
        for number in range(ROUNDS):
            if number in (0, ROUNDS - 1):
                self._restart()
            await self._write()
            await self._drain()
            await self._compare()
        await self._read_as_a_client()

    def kill(self) -> None:
        for part in self._parts.values():
            part.kill()

    def _restart(self) -> None:
        for part in self._parts.values():
            part.stop()
        self._parts = {
            command: Part(command, self.settings, self._here / f"{command}-{next(self._numbers)}.log")
            for command in COMMANDS
        }

    async def _write(self) -> None:
        records = [self._odd() for _ in range(RECORDS)]
        self.written += records
        options = {**access(self.settings), "max_request_size": LARGE, "compression_type": "gzip"}
        with any_header():
            async with AIOKafkaProducer(**options) as producer:
                for record in records:
                    name = getattr(self.settings, f"{record.topic}_topic")
                    place = None if record.topic == "items" else record.partition
                    headers = list(record.headers)
                    await producer.send_and_wait(name, record.value, record.key, place, headers=headers)
                for event in self._calm_events():
                    key, value = event.user_id.encode(), encode(event)
                    done = await producer.send_and_wait(self.settings.events_topic, value, key, CALM)
                    self._expect(event, done.offset, done.timestamp / 1_000)

    def _odd(self) -> Record:
        draw = self._draw
        topic, key, value = odd(draw, self._among)
        if topic != "events" and key is None:  # Kafka refuses it in a compacted topic
            key = b"odd-0"
        if self._bombs and draw.random() < 0.05:
            return Record(topic, ODD, key, b'{"x":"' + b"x" * BOMB)
        if self._headers and draw.random() < 0.1:
            return Record(topic, draw.choice((ODD, CALM)), b"odd-0", b"{", [(Bytes("x"), b"1")])
        if draw.random() < 0.1:
            return Record(
                topic, draw.choice((ODD, CALM)), b"odd-0", draw.choice((b"{", b"", b"\xff")), [("x", b"\xff")]
            )
        return Record(topic, ODD, key, value)

    def _calm_events(self) -> list[Event]:
        now = time.time() - 60
        numbers = [next(self._events) for _ in range(2 * USERS)]
        return [Event(f"calm-{at % USERS}", EVENT_TYPES[at % 2], now + at * 0.01, f"i{at * 7 % 40}") for at in numbers]

    def _expect(self, event: Event, offset: int, arrived: float) -> None:
        window = windows.append(
            self._windows.get(event.user_id), event, offset=offset, arrived=arrived, capacity=CAPACITY, stride=STRIDE
        )
        self._windows[event.user_id] = window
        (self._expected[event.user_id],) = self._calm.step([window], [CALM]).recommendations

    async def _drain(self) -> None:
        """Returns when everything written is done and all processes are ready. Raises `BadError`."""
        settings, moved, before = self.settings, time.monotonic(), None
        while True:
            self._supervise()
            left = [
                await waiting(settings, settings.agents_group, settings.events_topic),
                await waiting(settings, settings.worker_group, settings.windows_topic),
            ]
            if left == [0, 0] and await asyncio.to_thread(self._ready):
                return
            if left != before:
                moved, before = time.monotonic(), left
            if time.monotonic() > moved + STALLED_S:
                raise BadError(Outcome.STALL, f"events and windows that nobody reads: {left}; ready: {self._ready()}")
            await asyncio.sleep(0.1)

    def _supervise(self) -> None:
        for command, part in self._parts.items():
            if not part.running:
                raise BadError(Outcome.CRASH, f"{command} ended with {part.wait()}:\n{part.said[-3_000:]}")
            if "Traceback" in part.said or "dead letter\n  File" in part.said:
                raise BadError(Outcome.TRACEBACK, f"{command}:\n{part.said[-5_000:]}")

    def _ready(self) -> bool:
        try:
            return all(self._parts[command].page("/readyz")[0] == 200 for command in ("agents", "worker"))
        except (URLError, OSError, AssertionError):
            return False

    async def _compare(self) -> None:
        newest: dict[str, bytes | None] = {}
        for record in await read_topic(self.settings, self.settings.recommendations_topic):
            if record.partition == CALM and record.key is not None:
                newest[record.key.decode(errors="replace")] = record.value
        for user, expected in self._expected.items():
            try:
                answer = read_recommendation(newest[user] or b"")
                check(answer)
            except Exception as error:
                raise BadError(Outcome.POISONED, f"{user}: {type(error).__name__}: {error}") from error
            if (answer.seq, answer.offset) != (expected.seq, expected.offset):
                raise BadError(Outcome.POISONED, f"{user}: {expected.seq} events are answered as {answer.seq}")
            if self._barring and not same_answer(*map(without_odd_interests, (expected, answer))):
                raise BadError(Outcome.POISONED, f"{user}: {expected} became {answer}")

    async def _read_as_a_client(self) -> None:
        try:
            async with (
                asyncio.timeout(STALLED_S),
                LatestRecommendations(
                    **access(self.settings), topic=self.settings.recommendations_topic
                ) as recommendations,
            ):
                await recommendations.caught_up()
                for user in self._expected:
                    if recommendations.get(user) is None:
                        raise BadError(Outcome.POISONED, f"a client finds no answer to {user}")
        except TimeoutError:
            raise BadError(Outcome.STALL, "a client does not come to the end of the recommendations") from None
