"""What a dead letter says about itself, in its headers."""

from collections.abc import Iterable
from typing import NamedTuple

from stream_rec.messages import DeadLetterHeaders, as_headers

ERROR_CHARACTERS = 2_000
"""Of the error's text."""


class Place(NamedTuple):
    """Where a record stands."""

    topic: str
    partition: int
    offset: int


def headers(
    reason: str, error: str, *, topic: str, partition: int, offset: int, time_s: float
) -> list[tuple[str, bytes]]:
    """`reason` is one of a few short phrases, `error` the full text; the rest says which record it was.

    `time_s` is Kafka's timestamp of that record, in seconds.
    """
    return as_headers(
        DeadLetterHeaders(error[:ERROR_CHARACTERS], reason, topic, str(partition), str(offset), f"{time_s:.3f}")
    )


def place_of(headers: Iterable[tuple[str, bytes]]) -> Place | None:
    """Where the record that a dead letter holds came from; None where the headers don't say."""
    said = dict(headers)
    try:
        return Place(said["topic"].decode(), int(said["partition"]), int(said["offset"]))
    except (KeyError, ValueError):
        return None
