import asyncio

import pytest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter

from stream_rec.config import Settings
from stream_rec.kafka import dead_letters
from stream_rec.kafka.dead_letters import DeadLetter, DeadLetterWriter, Place, place_of, to_dead_letter
from stream_rec.kafka.topics import layouts
from tests.kafka.records import Record

ROOM = 1 << 16
"""The smallest `max_message_bytes` that the settings allow."""

sizes = st.none() | st.integers(0, 3 * ROOM)


def filled(size: int | None) -> bytes | None:
    return None if size is None else bytes(size)


@given(sizes, sizes, st.text(max_size=3) | st.just("\U0001f600"), st.sampled_from([1, 10_000]))
def test_a_dead_letter_is_never_larger_than_its_topic_takes(
    key: int | None, value: int | None, error: str, times: int
) -> None:
    settings = Settings(max_message_bytes=ROOM)
    record = Record(filled(key), filled(value), 2**62, "t" * 249, 2**31 - 1)
    letter = to_dead_letter(record, "unreadable window", error * times, time_s=1e10, max_bytes=ROOM)
    batch = DefaultRecordBatchBuilder(2, 0, 1, 2**62, 9, 2**31 - 1, 1 << 20)
    batch.append(0, 2**62, letter.key, letter.value, letter.headers)
    assert len(batch.build()) <= int(layouts(settings)[settings.dead_letter_topic]["max.message.bytes"])
    assert (letter.key, letter.value) != (None, None)  # aiokafka writes no such record
    assert place_of(letter.headers) == Place("t" * 249, 2**31 - 1, 2**62, "10000000000.000")


@pytest.mark.parametrize(
    ("key", "value", "kept"),
    [
        (None, None, (None, b"")),
        (None, b"", (None, b"")),
        (b"key", None, (b"key", None)),
        (b"key", b"value", (b"key", b"value")),
        (b"key", b"values", (b"key", b"value")),
        (b"long key!", b"value", (b"long key", b"")),
        (b"long key!", None, (b"long key", None)),
    ],
)
def test_what_is_cut_says_how_long_it_was(
    key: bytes | None, value: bytes | None, kept: tuple[bytes | None, bytes | None]
) -> None:
    letter = to_dead_letter(Record(key, value, 0), "too large", "", time_s=0, max_bytes=8)
    assert (letter.key, letter.value) == kept
    length = len(key or b""), len(value or b"")
    truncated = dict(letter.headers).get("truncated")
    assert truncated == (f"from {length[0]} and {length[1]} bytes".encode() if sum(length) > 8 else None)


async def _write_to_nobody(unwritten: Counter, letters: list[DeadLetter]) -> bool:
    """Whether the writer goes on after that."""
    writer = DeadLetterWriter(Settings(bootstrap_servers="127.0.0.1:1"), unwritten)
    running = asyncio.create_task(writer.run())
    for letter in letters:
        writer.add(letter)
    while not unwritten._value.get():  # noqa: ASYNC110 - a counter tells nobody
        await asyncio.sleep(0.01)
    alive = not running.done()
    running.cancel()
    return alive


def test_dead_letters_that_kafka_does_not_take_are_counted_and_end_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letters, "WRITE_S", 0)
    registry = CollectorRegistry()
    unwritten = Counter("unwritten", "", registry=registry)
    letters = [DeadLetter(b"a", b"b", []), DeadLetter(b"c", None, [])]
    assert asyncio.run(_write_to_nobody(unwritten, letters))
    assert registry.get_sample_value("unwritten_total") == 2


def test_no_more_dead_letters_wait_than_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letters, "WAITING_BYTES", 10)
    registry = CollectorRegistry()
    writer = DeadLetterWriter(Settings(), Counter("unwritten", "", registry=registry))
    writer.add(DeadLetter(None, bytes(20), []))  # a single one may be larger
    assert registry.get_sample_value("unwritten_total") == 0
    writer.add(DeadLetter(None, b"x", []))
    assert registry.get_sample_value("unwritten_total") == 1
