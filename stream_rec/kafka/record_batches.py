"""Record batches as Kafka returns them: reads what is good of them, and says what can't be read instead of raising.

aiokafka 0.14 raises at the first record that it can't parse, and does not move its position: the consumer meets the
same record at each further attempt and at each start, and never reads what stands behind it. Kafka checks little of
what it stores: any producer can write a header key that is not UTF-8, or a record whose offset lies outside of its
batch. A damaged disk does the rest.

`Records` takes the place of aiokafka's `PartitionRecords`. What it can't read becomes an `Unreadable`: a single record
where its batch can be taken apart, else the whole batch.

It also bounds the size that a batch is decompressed to, because 32 KB of zstd can hold 500 MB.
"""

import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import cramjam
from aiokafka import ConsumerRecord
from aiokafka.consumer import fetcher
from aiokafka.errors import KafkaError
from aiokafka.record.default_records import DefaultRecordBase, DefaultRecordBatch
from aiokafka.record.util import decode_varint_py as decode_varint

HEADER = DefaultRecordBase.HEADER_STRUCT
OVERHEAD = DefaultRecordBase.AFTER_LEN_OFFSET
"""Bytes of a batch before those that its length counts."""
MAGIC = 2
"""The message format of Kafka 0.11 and later, the first one with headers and transactions."""
MAGIC_OFFSET = DefaultRecordBase.CRC_OFFSET - 1
LEGACY_BYTES = 26
"""Of the smallest message of a format before it."""
XERIAL, XERIAL_BYTES = b"\x82SNAPPY\0", 16
"""How the framing begins that Java's snappy writes, and how many bytes stand before its first block."""
PADDING = bytes(32)
"""Behind every buffer: aiokafka's C reader looks up to 20 bytes past a record that claims more headers than it has."""
PIECE_BYTES = 4 << 20
"""Of gzip, decompressed in one go: a piece is in memory twice."""
CAREFUL_BYTES = 2 << 20
"""A batch beyond this size is read in Python, which can refuse a record with too many headers before it makes them."""
MOST_HEADERS = 10_000
"""In one record: an empty header takes 2 bytes in Kafka and about 64 in memory."""

UNREADABLE_RECORD, UNREADABLE_BATCH = "unreadable record", "unreadable batch"

FAILURES = (KafkaError, ValueError, OverflowError, SystemError, MemoryError)
"""What aiokafka's C reader raises for bytes that are no record, SystemError and MemoryError for lengths below zero."""
BROKEN = (ValueError, IndexError, struct.error)
"""What reading them in Python raises."""


@dataclass
class Unreadable(ConsumerRecord):  # type: ignore[misc]  # aiokafka is partly typed
    """A record, or a batch of records, that can't be read. It has the key and the value where these can be read."""

    first: int
    """It stands for the offsets from `first` to `offset`: reading goes on at `offset + 1`."""
    reason: str
    """One of a few short phrases."""
    error: str
    """What was wrong, in full, behind the offsets."""

    def __str__(self) -> str:
        return f"topic {self.topic}, partition {self.partition}, {self.error}"


@dataclass
class Gap(ConsumerRecord):  # type: ignore[misc]
    """Offsets up to `offset` that hold no record to read: transaction markers, aborted or compacted records."""


class Reading(NamedTuple):
    """How a consumer treats what is no record."""

    max_bytes: int
    """The largest batch that it reads, decompressed."""
    passed_on: tuple[type, ...]
    """Which of `Unreadable` and `Gap` it returns among the records, in the order of offsets."""
    on_skipped: Callable[[Unreadable], None]
    """Called with each `Unreadable` that it does not return."""


class BatchError(Exception):
    """Why a batch can't be read."""


class Header(NamedTuple):
    """The fields of a batch before its records, see aiokafka's `DefaultRecordBase`."""

    base_offset: int
    length: int
    leader_epoch: int
    magic: int
    crc: int
    attributes: int
    last_offset_delta: int
    first_timestamp: int
    max_timestamp: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    num_records: int

    @property
    def last_offset(self) -> int:
        return self.base_offset + self.last_offset_delta


@dataclass(slots=True)
class Read:
    """What was read of a record until an error came, if one came."""

    offset: int | None
    timestamp: int
    timestamp_type: int
    key: bytes | None = None
    value: bytes | None = None
    headers: Sequence[tuple[str, bytes | None]] = ()
    error: str | None = None
    is_rest: bool = False
    """Whether this is all that follows in the batch, because nothing says where the next record begins."""
    checksum: None = None


class Batches:
    """The batches of a fetch response, each as its bytes; takes the place of aiokafka's `MemoryRecords`.

    aiokafka's own one takes the message format of every batch from the first one.
    """

    def __init__(self, data: bytes | None) -> None:
        self._size = len(data or b"")
        self._data = memoryview((data or b"") + PADDING)
        self._at = 0

    def size_in_bytes(self) -> int:
        return self._size

    def has_next(self) -> bool:
        """Kafka cuts the last batch of a response off at the fetch size: that one comes whole with the next fetch."""
        return self._size - self._at >= OVERHEAD and self._end() <= self._size

    def next_batch(self) -> memoryview:
        """The bytes up to where the batch says it ends. Nothing follows one that can't end there."""
        begin, end = self._at, self._end()
        least = HEADER.size if self._data[begin + MAGIC_OFFSET] >= MAGIC else LEGACY_BYTES
        self._at = end if end - begin >= least else self._size
        return self._data[begin : max(begin, end)]

    def _end(self) -> int:
        length: int = struct.unpack_from(">i", self._data, self._at + OVERHEAD - 4)[0]
        return self._at + int(OVERHEAD) + length


class Records(fetcher.PartitionRecords):  # type: ignore[misc]
    """The records of a partition in a fetch response; `highwater` is where the partition ended at that time."""

    next_fetch_offset: int

    def __init__(self, reading: Reading, highwater: int, *given: Any) -> None:
        self._reading = reading
        self._highwater = highwater
        super().__init__(*given)

    def _unpack_records(self) -> Iterator[ConsumerRecord]:
        begin = returned = self.next_fetch_offset
        while self._records.has_next():
            for record in self._unpack(self._records.next_batch()):
                if isinstance(record, Unreadable) and Unreadable not in self._reading.passed_on:
                    self._reading.on_skipped(record)
                else:
                    returned = record.offset + 1
                    yield record
        if self.next_fetch_offset == begin:  # the same response would come again, without end
            self.next_fetch_offset += 1
        if returned < self.next_fetch_offset and Gap in self._reading.passed_on:
            topic, partition = self._tp
            yield Gap(topic, partition, self.next_fetch_offset - 1, 0, 0, b"", None, None, 0, -1, ())

    def _unpack(self, data: memoryview) -> Iterator[ConsumerRecord]:
        """The committed records of a batch from `next_fetch_offset` on, which moves on with them."""
        header, intact = None, False
        try:
            header = read_header(data)
            if header.magic != MAGIC:
                raise BatchError(f"its message format is {header.magic}, only 2 (Kafka 0.11 and later) is read")
            batch = DefaultRecordBatch(data)
            if self._check_crcs and not batch.validate_crc():
                raise BatchError("its checksum is wrong")
            intact = True
            passed_over = self._passes_over(batch)
            plain = None if passed_over else decompressed(data, header, self._reading.max_bytes)
        except BatchError as error:
            yield self._unreadable_batch(header, intact, str(error))
            return
        if plain is not None:
            yield from self._read(plain, header)
        self.next_fetch_offset = max(self.next_fetch_offset, header.last_offset + 1)

    def _passes_over(self, batch: Any) -> bool:
        """Whether a batch is none for the consumer: a transaction marker, or part of an aborted transaction."""
        if self._isolation_level == fetcher.READ_COMMITTED:
            self._consume_aborted_up_to(batch.base_offset)
            if batch.is_control_batch and self._ends_aborted(batch):
                self._aborted_producers.discard(batch.producer_id)
            if batch.is_transactional and batch.producer_id in self._aborted_producers:
                return True
        return bool(batch.is_control_batch)

    def _ends_aborted(self, batch: Any) -> bool:
        try:
            return bool(self._contains_abort_marker(batch))
        except (*FAILURES, *BROKEN) as error:
            raise BatchError(f"it is no transaction marker ({error})") from None

    def _read(self, plain: memoryview, header: Header) -> Iterator[ConsumerRecord]:
        """The records of a decompressed batch: by aiokafka's C reader as far as it comes, then with care."""
        expected, count = header.base_offset, 0
        if len(plain) <= CAREFUL_BYTES:
            try:
                for record in DefaultRecordBatch(plain):
                    if not expected <= record.offset <= header.last_offset:
                        break
                    expected, count = record.offset + 1, count + 1
                    if record.offset >= self.next_fetch_offset:
                        self.next_fetch_offset = expected
                        yield self._consumer_record(self._tp, record)
                else:
                    return
            except FAILURES:
                pass  # reading with care finds out what it is
        for found in islice(carefully(plain, header), count, None):
            inside = found.offset is not None and expected <= found.offset <= header.last_offset
            if found.error is None and not inside:
                found.error = f"its offset {found.offset} is out of order, or outside of its batch"
            first = found.offset if inside and found.offset is not None else expected
            last = header.last_offset if found.is_rest else first
            expected = max(expected, last + 1)
            record = self._consumer_record(self._tp, found) if found.error is None else self._bad(first, last, found)
            if first > header.last_offset:
                self._reading.on_skipped(record)  # it has no offset that it could be passed on with
            elif last >= self.next_fetch_offset:
                self.next_fetch_offset = last + 1
                yield record

    def _bad(self, first: int, last: int, found: Read) -> Unreadable:
        reason = UNREADABLE_BATCH if found.is_rest else UNREADABLE_RECORD
        return self._unreadable(first, last, found.timestamp, reason, str(found.error), found.key, found.value)

    def _unreadable_batch(self, header: Header | None, intact: bool, error: str) -> Unreadable:
        """Stands for the offsets that the header tells where these can be true, else for one."""
        first = last = self.next_fetch_offset
        if header is not None and first <= header.last_offset < self._highwater:
            last = header.last_offset
        self.next_fetch_offset = last + 1
        time_ms = header.max_timestamp if header is not None and intact else 0
        return self._unreadable(first, last, time_ms, UNREADABLE_BATCH, error)

    def _unreadable(
        self,
        first: int,
        last: int,
        time_ms: int,
        reason: str,
        error: str,
        key: bytes | None = None,
        value: bytes | None = None,
    ) -> Unreadable:
        topic, partition = self._tp
        error = f"offset {first}: {error}" if first == last else f"offsets {first} to {last}: {error}"
        return Unreadable(topic, partition, last, time_ms, 0, key, value, None, -1, -1, (), first, reason, error)


def read_header(data: memoryview) -> Header:
    """Of a message format before `MAGIC`, the offset and the magic alone are true. Raises `BatchError`."""
    header = Header(*HEADER.unpack(bytes(data[: HEADER.size]).ljust(HEADER.size, b"\0")))
    if len(data) < (HEADER.size if header.magic >= MAGIC else LEGACY_BYTES):
        raise BatchError("its length is wrong")
    return header if header.magic >= MAGIC else header._replace(last_offset_delta=0)


def carefully(plain: memoryview, header: Header) -> Iterator[Read]:
    """Each record of a decompressed batch by the length that stands before it; raises nothing."""
    at = HEADER.size
    for _ in range(header.num_records):
        try:
            length, begin = decode_varint(plain, at)
            at = begin + length
            if not begin < at <= len(plain):
                raise ValueError
        except BROKEN:
            yield _rest(header, "a record's length is wrong")
            return
        yield read_record(plain[begin:at], header)
    if at != len(plain):
        yield _rest(header, f"{len(plain) - at} bytes follow its last record")


def _rest(header: Header, error: str) -> Read:
    return Read(None, header.max_timestamp, 0, error=error, is_rest=True)


def read_record(data: memoryview, header: Header) -> Read:
    """A record without its length. Raises nothing: `error` says why there is no more of it than there is."""
    appended = bool(header.attributes & DefaultRecordBase.TIMESTAMP_TYPE_MASK)
    read = Read(None, header.max_timestamp if appended else header.first_timestamp, int(appended))
    try:
        delta, at = decode_varint(data, 1)
        read.timestamp += 0 if appended else delta
        delta, at = decode_varint(data, at)
        read.offset = header.base_offset + delta
        read.key, at = _bytes(data, at)
        read.value, at = _bytes(data, at)
        read.headers, at = _headers(data, at)
        if at != len(data):
            raise ValueError(f"its length says {len(data)} bytes, its fields have {at}")
    except UnicodeDecodeError:
        read.error = "the key of a header is not UTF-8"
    except IndexError:
        read.error = "it is cut off"
    except ValueError as error:
        read.error = str(error)
    return read


def _headers(data: memoryview, at: int) -> tuple[Sequence[tuple[str, bytes | None]], int]:
    count, at = decode_varint(data, at)
    if not 0 <= count <= MOST_HEADERS:
        raise ValueError(f"it has {count} headers, at most {MOST_HEADERS} are read")
    headers = []
    for _ in range(count):
        key, at = _bytes(data, at)
        value, at = _bytes(data, at)
        if key is None:
            raise ValueError("a header has no key")
        headers.append((key.decode(), value))
    return headers, at


def _bytes(data: memoryview, at: int) -> tuple[bytes | None, int]:
    length, at = decode_varint(data, at)
    if length < 0:
        return None, at
    if at + length > len(data):
        raise ValueError(f"a field of {length} bytes is cut off")
    return bytes(data[at : at + length]), at + length


def decompressed(data: memoryview, header: Header, most: int) -> memoryview:
    """A batch as if it had never been compressed; `most` bounds its size. Raises `BatchError`."""
    codec = header.attributes & DefaultRecordBase.CODEC_MASK
    if codec == DefaultRecordBase.CODEC_NONE:
        return data
    if codec not in CODECS:
        raise BatchError(f"its compression is unknown ({codec})")
    name, decompress = CODECS[codec]
    payload = data[HEADER.size :]
    try:
        plain = decompress(payload, HEADER.size + most) if header.num_records else bytearray(HEADER.size)
    except TooLargeError:
        raise BatchError(
            f"its {len(payload)} bytes of {name} hold more than {most}: raise max_batch_bytes, or write smaller batches"
        ) from None
    except (*BROKEN, zlib.error, cramjam.DecompressionError) as error:
        raise BatchError(f"it is no {name} ({error})") from None
    plain[: HEADER.size] = data[: HEADER.size]
    plain[DefaultRecordBase.ATTRIBUTES_OFFSET + 1] &= ~DefaultRecordBase.CODEC_MASK
    size = len(plain)
    plain += PADDING
    return memoryview(plain)[:size]


class TooLargeError(Exception):
    """A batch holds more than may be read."""


def _gunzip(payload: bytes | memoryview, most: int) -> bytearray:
    """Behind room for the header, as the following ones; `most` counts that room. Raises `TooLargeError`."""
    plain = bytearray(HEADER.size)
    while payload:  # gzip may have several members
        member = zlib.decompressobj(wbits=31)
        while not member.eof:
            piece = member.decompress(payload, min(PIECE_BYTES, most + 1 - len(plain)))
            plain += piece
            payload = member.unconsumed_tail
            if len(plain) > most:
                raise TooLargeError
            if not piece and not payload:
                raise ValueError("it is cut off")
        payload = member.unused_data
    return plain


def _unsnap(payload: memoryview, most: int) -> bytearray:
    plain = bytearray(HEADER.size)
    for block in _snappy_blocks(payload):
        if len(plain) + cramjam.snappy.decompress_raw_len(block) > most:
            raise TooLargeError
        plain += cramjam.snappy.decompress_raw(block)
    return plain


def _snappy_blocks(payload: memoryview) -> Iterator[memoryview]:
    if payload[: len(XERIAL)] != XERIAL:
        yield payload
        return
    at = XERIAL_BYTES
    while at < len(payload):
        size: int = struct.unpack_from(">i", payload, at)[0]
        at += 4
        if not 0 < size <= len(payload) - at:
            raise ValueError("a block is cut off")
        yield payload[at : at + size]
        at += size


def _unframe(decompress_into: Callable[[memoryview, memoryview], int], payload: memoryview, most: int) -> bytearray:
    """By a decompressor that only says whether its output has room: the room grows until it has."""
    size = min(most, max(1 << 16, 8 * len(payload)))
    while True:
        plain = bytearray(size)
        try:
            with memoryview(plain) as whole, whole[HEADER.size :] as room:
                count = decompress_into(payload, room)
        except cramjam.DecompressionError as error:
            if NO_ROOM not in str(error):
                raise
            if size == most:
                raise TooLargeError from None
            size = min(most, 4 * size)
        else:
            del plain[HEADER.size + count :]
            return plain


NO_ROOM = "failed to write whole buffer"
"""How cramjam says that what it was to write into is too small."""
CODECS: Mapping[int, tuple[str, Callable[[memoryview, int], bytearray]]] = {
    DefaultRecordBase.CODEC_GZIP: ("gzip", _gunzip),
    DefaultRecordBase.CODEC_SNAPPY: ("snappy", _unsnap),
    DefaultRecordBase.CODEC_LZ4: ("lz4", partial(_unframe, cramjam.lz4.decompress_into)),
    DefaultRecordBase.CODEC_ZSTD: ("zstd", partial(_unframe, cramjam.zstd.decompress_into)),
}
"""By their numbers in a batch's attributes."""
