"""Records of the windows topic as Kafka's client hands them over."""

from typing import NamedTuple


class Record(NamedTuple):
    key: bytes
    value: bytes | None
    offset: int
    topic: str = "windows"
    partition: int = 0
    timestamp: int = 0
