import tracemalloc
from collections.abc import Sequence

import pytest
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.consumer.fetcher import READ_COMMITTED
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBase, DefaultRecordBatch
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder

from stream_rec.kafka import record_batches
from stream_rec.kafka.record_batches import Batches, Gap, Reading, Records, Unreadable
from tests.batches import COMPRESS, batch, record, varint

MOST = 1 << 20
CODECS = [one for one in COMPRESS if one]
EVENTS = TopicPartition("events", 1)
GZIP = DefaultRecordBase.CODEC_GZIP


def read(
    data: bytes,
    begin: int = 0,
    *,
    highwater: int = 1_000,
    passed_on: tuple[type, ...] = (Unreadable,),
    aborted: Sequence[tuple[int, int]] = (),
    skipped: list[Unreadable] | None = None,
) -> list[ConsumerRecord]:
    """What a consumer gets of a fetch response, and where it goes on."""
    reading = Reading(MOST, passed_on, [].append if skipped is None else skipped.append)
    records = Records(reading, highwater, EVENTS, Batches(data), list(aborted), begin, None, None, True, READ_COMMITTED)
    return [*records, records.next_fetch_offset]


def told(found: Sequence[ConsumerRecord]) -> list[object]:
    """Values, or what is said of what can't be read, and where reading goes on."""
    *records, position = found
    return [
        *((one.first, one.offset, one.error) if isinstance(one, Unreadable) else one.value for one in records),
        position,
    ]


def three(middle: bytes, **options: int) -> bytes:
    return batch(record(value=b"a"), middle, record(value=b"c", offset=2), **options)


@pytest.mark.parametrize("codec", COMPRESS)
def test_a_record_whose_header_is_not_utf8_is_left_out_alone(codec: int) -> None:
    bad = record(b"key", b"value", [(b"\xff", b"x")], offset=1)
    a, unreadable, c, position = read(three(bad, codec=codec))
    assert (a.value, c.value, position) == (b"a", b"c", 3)
    assert (unreadable.reason, unreadable.error) == ("unreadable record", "offset 1: the key of a header is not UTF-8")
    assert (unreadable.topic, unreadable.partition, unreadable.first, unreadable.offset) == (*EVENTS, 1, 1)
    assert (unreadable.key, unreadable.value, unreadable.timestamp) == (b"key", b"value", 1_000)


BAD_RECORDS = {
    "a header key that is none": (record(headers=[(None, b"x")], offset=1), "a header has no key"),
    "more headers than it has": (record(headers_claimed=3, offset=1), "it is cut off"),
    "headers without end": (record(headers_claimed=1 << 60, offset=1), "at most 10000 are read"),
    "fewer than no headers": (record(headers_claimed=-1, offset=1), "at most 10000 are read"),
    "a field past its end": (b"\x14\0\0\x02\x7e" + bytes(6), "is cut off"),
    "a number without end": (b"\x18\0" + b"\xff" * 11, "Out of int64 range"),
    "an offset outside of its batch": (record(offset=1_000_000), "its offset 1000000 is out of order, or outside"),
    "an offset before its own": (record(offset=0), "its offset 0 is out of order, or outside"),
    "a byte behind its fields": (varint(9) + record(offset=1)[1:] + b"\0", "its length says 9 bytes"),
}


@pytest.mark.parametrize("name", BAD_RECORDS)
def test_a_malformed_record_is_left_out_alone(name: str) -> None:
    bad, error = BAD_RECORDS[name]
    a, unreadable, c, position = read(three(bad))
    assert (a.value, c.value, c.offset, position) == (b"a", b"c", 2, 3)
    assert (unreadable.first, unreadable.offset) == (1, 1)
    assert error in unreadable.error


def test_without_it_a_malformed_record_ends_the_reading() -> None:
    with pytest.raises(UnicodeDecodeError):
        list(DefaultRecordBatch(three(record(headers=[(b"\xff", b"")], offset=1))))
    with pytest.raises(CorruptRecordException):
        list(DefaultRecordBatch(three(BAD_RECORDS["a header key that is none"][0])))


def test_a_length_that_cannot_be_ends_a_batch_there() -> None:
    good = record(value=b"a")
    for broken in (b"\xff\xff\x7f" + bytes(9), b"\x01" + bytes(9), b"\0" * 10):
        data = batch(good, broken, offsets=5, count=5) + batch(record(value=b"next"), base=5)
        assert told(read(data)) == [b"a", (1, 4, "offsets 1 to 4: a record's length is wrong"), b"next", 6]


def test_what_follows_the_last_record_has_no_offset_and_is_logged() -> None:
    skipped: list[Unreadable] = []
    assert told(read(batch(record(value=b"a"), b"more", count=1), skipped=skipped)) == [b"a", 1]
    assert "4 bytes follow its last record" in skipped[0].error


BATCH = three(record(value=b"b", offset=1), base=5)
NEXT = batch(record(value=b"next"), base=8)
NOT_GZIP = batch(codec=GZIP, payload=b"no gzip", base=5, count=3)
BAD_BATCHES = {
    "a wrong checksum": (BATCH[:70] + b"?" + BATCH[71:], "its checksum is wrong"),
    "an unknown compression": (batch(payload=b"x", attributes=7, base=5, count=3), "its compression is unknown (7)"),
    "a broken payload": (NOT_GZIP, "it is no gzip"),
    "another message format": (batch(record(), base=5, count=3, magic=3), "its message format is 3"),
    "a payload cut off": (
        batch(codec=GZIP, payload=COMPRESS[GZIP](record() * 50)[:-9], base=5, count=3),
        "it is no gzip (it is cut off)",
    ),
}


@pytest.mark.parametrize("name", BAD_BATCHES)
def test_a_malformed_batch_is_left_out_alone(name: str) -> None:
    bad, error = BAD_BATCHES[name]
    unreadable, after, position = read(bad + NEXT, 5)
    assert (unreadable.first, unreadable.offset, unreadable.reason) == (5, 7, "unreadable batch")
    assert unreadable.error.startswith(f"offsets 5 to 7: {error}")
    assert (after.value, position) == (b"next", 9)


@pytest.mark.parametrize("codec", CODECS)
def test_a_broken_payload_of_any_compression_is_left_out(codec: int) -> None:
    whole = bytes(COMPRESS[codec](record() * 500))
    for payload in (b"", b"\xff" * 30, whole[:-5], whole[:20] + b"??" + whole[22:]):
        (unreadable, position) = read(batch(codec=codec, payload=payload, count=500))
        assert (unreadable.first, unreadable.offset, position) == (0, 499, 500)


@pytest.mark.parametrize("codec", CODECS)
def test_a_batch_is_decompressed_to_no_more_than_its_bound(codec: int) -> None:
    data = batch(record(value=bytes(50 << 20)), codec=codec)
    assert len(data) < 50 << 20
    tracemalloc.start()
    (unreadable, _) = read(data + batch(record(), base=1), 0)[:2]
    peak = tracemalloc.get_traced_memory()[1] - len(data)
    tracemalloc.stop()
    assert "hold more than 1048576: raise max_batch_bytes" in unreadable.error
    assert (unreadable.key, unreadable.value, unreadable.timestamp) == (None, None, 1_000)
    assert peak < 4 * MOST + len(data)


@pytest.mark.parametrize("codec", COMPRESS)
def test_a_batch_as_large_as_its_bound_is_read(codec: int) -> None:
    value = bytes(MOST - 40)
    assert told(read(batch(record(value=value), codec=codec))) == [value, 1]


def test_a_large_batch_is_read_as_a_small_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    data = batch(*(record(b"k", b"%d" % n, [(b"h", None), (b"\xc3\xa9", b"x")], offset=n) for n in range(9)))
    small = read(data)
    monkeypatch.setattr(record_batches, "CAREFUL_BYTES", 0)
    assert read(data) == small
    assert small[3].headers == (("h", None), ("\u00e9", b"x"))


def test_a_record_of_a_large_batch_has_no_more_headers_than_memory_has_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(record_batches, "CAREFUL_BYTES", 1_000)
    many = record(b"k", b"v", [(b"", b"")] * (record_batches.MOST_HEADERS + 1), offset=1)
    assert told(read(three(many))) == [b"a", (1, 1, "offset 1: it has 10001 headers, at most 10000 are read"), b"c", 3]


def test_reading_goes_on_in_the_middle_of_a_batch() -> None:
    bad = record(headers=[(b"\xff", b"")], offset=1)
    assert told(read(three(bad), 2)) == [b"c", 3]
    assert told(read(three(bad), 1)) == [(1, 1, "offset 1: the key of a header is not UTF-8"), b"c", 3]
    assert told(read(BAD_BATCHES["a broken payload"][0], 6))[0][:2] == (6, 7)


def test_a_batch_that_lies_about_its_offsets_moves_reading_by_one() -> None:
    broken = bytearray(BATCH)
    broken[23:27] = (1 << 30).to_bytes(4, "big")  # the last offset: far behind the partition's end
    (unreadable, position) = read(bytes(broken), 5)
    assert (unreadable.first, unreadable.offset, position) == (5, 5, 6)
    assert told(read(BATCH, 20)) == [21]  # a response with nothing for its position


def test_a_length_that_no_batch_has_moves_reading_by_one() -> None:
    for length in (-20, 0, 30):
        data = bytearray(BATCH)
        data[8:12] = length.to_bytes(4, "big", signed=True)
        assert told(read(bytes(data), 5)) == [(5, 5, "offset 5: its length is wrong"), 6]


def test_a_batch_that_is_cut_off_comes_with_the_next_fetch() -> None:
    assert told(read(BATCH + NEXT[:-1], 5)) == [b"a", b"b", b"c", 8]
    assert not Batches(BATCH[:-1]).has_next()
    assert not Batches(b"").has_next()
    assert not Batches(None).has_next()


COMMIT = batch(record(b"\0\0\0\1", bytes(6)), base=8, attributes=0x30)
ABORT = batch(record(b"\0\0\0\0", bytes(6)), base=8, attributes=0x30)
TRANSACTIONAL = three(record(value=b"b", offset=1), base=5, attributes=0x10)


def test_marks_of_transactions_and_what_was_aborted_are_passed_over() -> None:
    assert told(read(TRANSACTIONAL + COMMIT, 5)) == [b"a", b"b", b"c", 9]
    assert told(read(TRANSACTIONAL + ABORT, 5, aborted=[(-1, 5)])) == [9]
    no_mark = batch(record(b"?", b""), base=8, attributes=0x30)
    *_, unreadable, position = read(TRANSACTIONAL + no_mark, 5)
    assert (unreadable.offset, position) == (8, 9)
    assert "it is no transaction marker" in unreadable.error


def test_what_holds_no_record_at_the_end_is_stood_for_where_it_is_asked_for() -> None:
    *records, gap, position = read(TRANSACTIONAL + COMMIT, 5, passed_on=(Gap,))
    assert [one.value for one in records] == [b"a", b"b", b"c"]
    assert (type(gap), gap.offset, position) == (Gap, 8, 9)
    assert [type(one) for one in read(TRANSACTIONAL, 5, passed_on=(Gap,))[:-1]] == [ConsumerRecord] * 3
    assert [type(one) for one in read(TRANSACTIONAL + ABORT, 5, aborted=[(-1, 5)], passed_on=(Gap,))[:-1]] == [Gap]


def test_what_is_not_passed_on_is_told_and_nothing_else_changes() -> None:
    skipped: list[Unreadable] = []
    bad = BAD_BATCHES["a broken payload"][0]
    assert told(read(bad + NEXT, 5, passed_on=(), skipped=skipped)) == [b"next", 9]
    assert [(one.first, one.offset) for one in skipped] == [(5, 7)]
    assert str(skipped[0]).startswith("topic events, partition 1, offsets 5 to 7: it is no gzip")


def test_a_message_of_kafka_before_0_11_is_left_out_alone() -> None:
    old = LegacyRecordBatchBuilder(magic=1, compression_type=0, batch_size=1_000)
    old.append(0, timestamp=1_000, key=b"u", value=b"v")
    (unreadable, after, position) = read(bytes(old.build()) + batch(record(), base=1))
    assert (unreadable.first, unreadable.offset, after.offset, position) == (0, 0, 1, 2)
    assert "its message format is 1" in unreadable.error
