"""Record batches as a producer writes them, and as no producer should."""

import struct
from collections.abc import Sequence

from aiokafka import codec
from aiokafka.record.default_records import DefaultRecordBase
from aiokafka.record.util import calc_crc32c, encode_varint

HEADER = DefaultRecordBase.HEADER_STRUCT
COMPRESS = {
    0: bytes,
    DefaultRecordBase.CODEC_GZIP: codec.gzip_encode,
    DefaultRecordBase.CODEC_SNAPPY: codec.snappy_encode,
    DefaultRecordBase.CODEC_LZ4: codec.lz4_encode,
    DefaultRecordBase.CODEC_ZSTD: codec.zstd_encode,
}


def varint(number: int) -> bytes:
    written = bytearray()
    encode_varint(number, written.append)
    return bytes(written)


def field(value: bytes | None) -> bytes:
    return varint(-1) if value is None else varint(len(value)) + value


def record(
    key: bytes | None = b"u",
    value: bytes | None = b"v",
    headers: Sequence[tuple[bytes | None, bytes | None]] = (),
    *,
    offset: int = 0,
    headers_claimed: int | None = None,
) -> bytes:
    """A record with its length; `offset` counts from the beginning of its batch."""
    claimed = len(headers) if headers_claimed is None else headers_claimed
    body = b"".join(
        (
            b"\0",
            varint(0),
            varint(offset),
            field(key),
            field(value),
            varint(claimed),
            *(field(name) + field(content) for name, content in headers),
        )
    )
    return varint(len(body)) + body


def batch(
    *records: bytes,
    codec: int = 0,
    base: int = 0,
    time_ms: int = 1_000,
    count: int | None = None,
    offsets: int | None = None,
    attributes: int = 0,
    magic: int = 2,
    payload: bytes | None = None,
) -> bytes:
    """A batch with a right checksum: of `offsets` offsets, `count` records claimed, and `payload` as their bytes."""
    count = len(records) if count is None else count
    if payload is None:
        payload = bytes(COMPRESS[codec](b"".join(records)))
    last = (count if offsets is None else offsets) - 1
    length = HEADER.size - DefaultRecordBase.AFTER_LEN_OFFSET + len(payload)
    header = HEADER.pack(base, length, -1, magic, 0, codec | attributes, last, time_ms, time_ms, -1, -1, -1, count)
    return with_checksum(header + payload)


def with_checksum(data: bytes) -> bytes:
    written = bytearray(data)
    struct.pack_into(
        ">I", written, DefaultRecordBase.CRC_OFFSET, calc_crc32c(data[DefaultRecordBase.ATTRIBUTES_OFFSET :])
    )
    return bytes(written)


UNREADABLE = batch(record(b"u", b"v", [(b"\xff", b"x")]))
"""A batch of one record with a header whose key is not UTF-8: Kafka takes it, and aiokafka can't read it."""
