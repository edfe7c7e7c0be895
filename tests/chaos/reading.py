"""What the topics must hold, read off the events topic in plain Python: nothing here is the product's code.

Windows are cut from each user's whole history by the definition in docs/design.md, not grown one from the other.
"""

import json
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

ERASE = "erase"
Json = dict[str, Any]


class Rules(NamedTuple):
    """The settings that the topics depend on."""

    event_types: frozenset[str]
    capacity: int
    stride: int
    max_event_bytes: int
    max_future_s: float
    topic_id: str = ""
    """Of the events topic."""


class Record(Protocol):
    partition: int
    offset: int
    timestamp: int
    """Kafka's, milliseconds."""
    key: bytes | None
    value: bytes | None


class Written(NamedTuple):
    """A record that the agents must write because of the event at `offset`; `window` None is a tombstone."""

    offset: int
    key: bytes
    window: Json | None


class Reading(NamedTuple):
    windows: dict[int, list[Written]]
    """Of each partition, in order."""
    refused: dict[tuple[int, int], str]
    """Why the event at (partition, offset) is a dead letter."""


class Refused(Exception):  # noqa: N818
    """An event that becomes a dead letter; its text is the reason."""


def read(records: Iterable[Record], rules: Rules) -> Reading:
    """`records` are the whole events topic, each partition in order."""
    windows: defaultdict[int, list[Written]] = defaultdict(list)
    refused: dict[tuple[int, int], str] = {}
    histories: dict[str, list[list[Any]]] = {}
    for record in records:
        try:
            event = _event(record, rules)
            user, kind = event["user_id"], event["event_type"]
            if kind == ERASE:
                if histories.pop(user, None):
                    windows[record.partition].append(Written(record.offset, user.encode(), None))
                continue
            window = _grown(histories.setdefault(user, []), event, record, rules)
            windows[record.partition].append(Written(record.offset, user.encode(), window))
        except Refused as reason:
            refused[record.partition, record.offset] = str(reason)
    return Reading(dict(windows), refused)


def start_of(n: int, capacity: int, stride: int) -> int:
    """The smallest multiple of the stride with at most `capacity` events behind it."""
    start = 0
    while n - start > capacity:
        start += stride
    return start


def _grown(history: list[list[Any]], event: Json, record: Record, rules: Rules) -> Json:
    held = history[start_of(len(history), rules.capacity, rules.stride) :]
    name = event.get("event_id")
    if name is not None and name in [one[3] for one in held]:
        raise Refused("duplicate event_id")
    history.append([event["item_id"], event["event_type"], event["timestamp"], name])
    start = start_of(len(history), rules.capacity, rules.stride)
    return {
        "user_id": event["user_id"],
        "n": len(history),
        "start": start,
        "offset": record.offset,
        "arrived": record.timestamp / 1_000,
        "events": history[start:],
        "topic_id": rules.topic_id,
    }


def _event(record: Record, rules: Rules) -> Json:
    key, value = record.key, record.value
    if not key:
        raise Refused("empty key")
    if not value:
        raise Refused("empty value")
    if len(value) > rules.max_event_bytes:
        raise Refused("too large")
    event = _fields(value)
    if event["user_id"].encode() != key:
        raise Refused("key is not the user_id")
    if event["event_type"] != ERASE:
        if event["event_type"] not in rules.event_types:
            raise Refused("unknown event type")
        if event.get("item_id") is None:
            raise Refused("invalid field")
    time = event["timestamp"]
    if time < 0:
        raise Refused("timestamp before 1970")
    if time > 1e11:
        raise Refused("timestamp not in seconds")
    if time > record.timestamp / 1_000 + rules.max_future_s:
        raise Refused("timestamp in the future")
    return event


def _fields(value: bytes) -> Json:
    """The fields that a window is made of; the others are only checked where the log spoils them."""
    try:
        event = json.loads(value, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise Refused("broken JSON") from None
    names = {"user_id": 256, "event_type": 64, "item_id": 256, "event_id": 256}
    optional = {"item_id", "event_id"}
    if not isinstance(event, dict):
        raise Refused("invalid field")
    for name, longest in names.items():
        given = event.get(name)
        if given is None and name in optional:
            continue
        if not (isinstance(given, str) and 0 < len(given) <= longest):
            raise Refused("invalid field")
    time = event.get("timestamp")
    if isinstance(time, bool) or not isinstance(time, int | float):
        raise Refused("invalid field")
    return event | {"timestamp": float(time)}


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
