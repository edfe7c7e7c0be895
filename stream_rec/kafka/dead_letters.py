"""Dead letters: records that can't be used, as they came, with headers that say why and where each of them stood.

Every part that refuses a record makes its dead letter by `to_dead_letter`, so that each one is of a size that Kafka
takes. Agents write theirs as they write windows, workers in the transactions of their answers; `DeadLetterWriter` is
for whoever follows a topic without either.
"""

import asyncio
import logging
import operator
from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple

from aiokafka import AIOKafkaProducer
from aiokafka.errors import MessageSizeTooLargeError
from prometheus_client import Counter
from tenacity import AsyncRetrying, retry_if_result, stop_after_delay, wait_exponential

from stream_rec.config import Settings
from stream_rec.kafka.aiokafka_compat import correct
from stream_rec.kafka.connection import access
from stream_rec.kafka.topics import DEAD_LETTER_ROOM
from stream_rec.messages import DeadLetterHeaders, as_headers

log = logging.getLogger(__name__)

ERROR_CHARACTERS = 2_000
"""Of the error's text; at most four times as many bytes, well below `DEAD_LETTER_ROOM`."""
WAITING_BYTES = 64 << 20
"""Keys and values of the dead letters that may wait to be written, bytes; a single one may be larger."""
WRITE_S = 60.0
"""How long a `DeadLetterWriter` tries again, seconds."""
ATTEMPT_S = 10.0
"""How long one attempt waits for Kafka, seconds."""
LONGEST_S = 15.0
"""The longest pause between two attempts, seconds."""


class Place(NamedTuple):
    """Where a record stands."""

    topic: str
    partition: int
    offset: int
    time: str
    """Kafka's timestamp of it, as `time_of` writes it: tells it from one in a topic that was deleted."""


def time_of(time_s: float) -> str:
    """Kafka's timestamp of a record (seconds) as it stands in the headers."""
    return f"{time_s:.3f}"


class DeadLetter(NamedTuple):
    """A record of the dead-letter topic."""

    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]

    def without_content(self) -> "DeadLetter":
        """Only why the record was refused and where it stood: what fits where the rest does not."""
        truncated = ("truncated", _lengths(self.key, self.value).encode())
        return DeadLetter(None, b"", [*self.headers, *([] if "truncated" in dict(self.headers) else [truncated])])


def to_dead_letter(record: Any, reason: str, error: str, *, time_s: float, max_bytes: int) -> DeadLetter:
    """The dead letter of `record`, which has `topic`, `partition`, `offset`, `key` and `value`.

    `reason` is one of a few short phrases, `error` the full text; `time_s` is Kafka's timestamp of the record, in
    seconds. Key and value are cut to `max_bytes` together, as a compressed batch can unfold to more than Kafka takes
    back. Of a record with neither, the value is empty: aiokafka writes none without both.
    """
    key, value = record.key, record.value
    truncated = None
    if len(key or b"") + len(value or b"") > max_bytes:
        truncated = _lengths(key, value)
        key = key and key[:max_bytes]
        value = value and value[: max_bytes - len(key or b"")]
    headers = DeadLetterHeaders(
        error[:ERROR_CHARACTERS],
        reason,
        record.topic,
        str(record.partition),
        str(record.offset),
        time_of(time_s),
        truncated,
    )
    return DeadLetter(key, b"" if key is None and value is None else value, as_headers(headers))


def _lengths(key: bytes | None, value: bytes | None) -> str:
    return f"from {len(key or b'')} and {len(value or b'')} bytes"


def place_of(headers: Iterable[tuple[str, bytes]]) -> Place | None:
    """Where the record that a dead letter holds came from; None where the headers don't say."""
    said = dict(headers)
    try:
        return Place(
            said["topic"].decode(), int(said["partition"]), int(said["offset"]), said.get("time", b"").decode()
        )
    except (KeyError, ValueError):
        return None


def reason_of(headers: Iterable[tuple[str, bytes]]) -> str:
    """Why the record was refused, as one of a few short phrases."""
    return dict(headers).get("reason", b"no reason given").decode(errors="replace")


class DeadLetterWriter:
    """Writes dead letters beside a stream, which neither waits for them nor ends for them.

    Each is written at least once. While Kafka has trouble they are tried again for `WRITE_S` seconds; those that it
    has not taken by then, and those beyond `WAITING_BYTES`, are logged and counted in `unwritten`.
    """

    def __init__(self, settings: Settings, unwritten: Counter) -> None:
        self._settings = settings
        self._unwritten = unwritten
        self._waiting: list[DeadLetter] = []
        self._bytes = 0
        self._added = asyncio.Event()

    def add(self, letter: DeadLetter) -> None:
        size = len(letter.key or b"") + len(letter.value or b"")
        if self._waiting and self._bytes + size > WAITING_BYTES:
            self._give_up(1)
            return
        self._waiting.append(letter)
        self._bytes += size
        self._added.set()

    async def run(self) -> None:
        """Runs until it is cancelled."""
        while True:
            await self._added.wait()
            self._added.clear()
            letters, self._waiting, self._bytes = deque(self._waiting), [], 0
            again = AsyncRetrying(
                retry=retry_if_result(operator.not_),
                wait=wait_exponential(max=LONGEST_S),
                stop=stop_after_delay(WRITE_S),
                retry_error_callback=lambda _: False,
            )
            written: bool = await again(self._write, letters)
            if not written:
                self._give_up(len(letters))

    async def _write(self, letters: deque[DeadLetter]) -> bool:
        """Takes those that are written from `letters`; whether that was all of them."""
        try:
            producer = AIOKafkaProducer(
                **access(self._settings),
                acks="all",
                max_request_size=self._settings.max_message_bytes + DEAD_LETTER_ROOM,
                request_timeout_ms=int(ATTEMPT_S * 1_000),
            )
            correct(producer.client)
            try:
                await producer.start()
                while letters:
                    await self._send(producer, letters[0])
                    letters.popleft()
            finally:
                await producer.stop()
        except Exception as error:  # noqa: BLE001 - whatever keeps them from Kafka, a file of the login for one
            log.warning("%d dead letters can't be written (%s)", len(letters), type(error).__name__)
        return not letters

    async def _send(self, producer: AIOKafkaProducer, letter: DeadLetter) -> None:
        """One at a time: Kafka refuses a batch for its size as a whole."""
        topic = self._settings.dead_letter_topic
        try:
            await producer.send_and_wait(topic, letter.value, key=letter.key, headers=letter.headers)
        except MessageSizeTooLargeError:  # the topic takes less than the settings say
            least = letter.without_content()
            await producer.send_and_wait(topic, least.value, headers=least.headers)

    def _give_up(self, count: int) -> None:
        self._unwritten.inc(count)
        log.error("dead letters that Kafka did not take: %d", count)
