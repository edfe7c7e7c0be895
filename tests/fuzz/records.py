"""Mutated records of all topics: how they are made, and through the readers in one process, without Kafka."""

import copy
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from msgspec.structs import replace

from stream_rec import window as windows
from stream_rec.messages import (
    UNREADABLE,
    Event,
    Recommendation,
    Rejected,
    Window,
    encode,
    event_in,
    read_event,
    read_item,
    read_recommendation,
    read_window,
)
from stream_rec.models import model_store
from stream_rec.serving.engine import Engine, Limits
from tests.chaos.verdict import same_answer
from tests.fuzz import mutate
from tests.fuzz.folders import check
from tests.fuzz.lane import Attempt, PoisonedError, RefusedError
from tests.tiny import CAPACITY, STRIDE, TEXT_DIM, tiny_model

TOPICS = ("events", "windows", "items", "recommendations")
EVENT_TYPES = ("view", "cart")
CATEGORIES = frozenset({"c0", "c1", "c2"})
"""Of the tiny model's items. Items of odd records have others and so take no part in any answer."""
CALM, ODD = 0, 1
"""The partitions of users who send nothing odd, and of those who do."""
USERS = 4
EVERY = 10
"""Odd records after which a calm user is answered."""

NOW = 1_700_000_000.0
GOOD: dict[str, dict[str, Any]] = {
    "events": {
        "user_id": "odd-0",
        "event_type": "view",
        "timestamp": NOW,
        "item_id": "i1",
        "event_id": "e",
        "price": 1.5,
        "quantity": 1,
        "context": {"a": [1, "b"]},
    },
    "windows": {
        "user_id": "odd-0",
        "n": 5,
        "start": 2,
        "offset": 9,
        "arrived": NOW,
        "events": [["i1", "view", NOW, "e"], ["i2", "cart", NOW + 1], ["i3", "view", NOW + 2]],
    },
    "items": {
        "item_id": "odd-0",
        "title": "a title",
        "category": "odd",
        "brand": "b",
        "price": 2.5,
        "attributes": {"a": {"b": [1]}},
        "vector": [0.1] * TEXT_DIM,
        "available": True,
    },
    "recommendations": {
        "user_id": "odd-0",
        "seq": 3,
        "offset": 2,
        "event_time": NOW,
        "next_event": {"view": 0.5},
        "items": [{"item_id": "i1", "score": 1.0, "probability": 0.5, "interest": 0.5}],
        "interests": [{"label": "c0", "weight": 0.5}],
        "model": "test",
    },
}


class Odd(NamedTuple):
    topic: str
    key: bytes | None
    value: bytes | None


def odd(draw: Random, topics: Sequence[str] = TOPICS) -> Odd:
    """A mutated record of one of the `topics`."""
    topic = draw.choice(topics)
    name = f"odd-{draw.randrange(8)}"
    good = copy.deepcopy(GOOD[topic])
    good["item_id" if topic == "items" else "user_id"] = name
    value = mutate.message(draw, good)
    match draw.randrange(25):
        case 0:
            return Odd(topic, name.encode(), None)
        case 1:
            return Odd(topic, draw.choice((None, b"", b"\xff", b"other", b"k" * 5_000)), value)
        case 2:
            return Odd(topic, name.encode(), b"")
        case 3 if topic == "events":
            return Odd(topic, name.encode(), encode(Event(name, "erase", NOW)))
    return Odd(topic, name.encode(), value)


def calm_windows() -> Iterator[Window]:
    """Windows of the users who send nothing odd, in turn, without end."""
    held: dict[str, Window] = {}
    for offset in count():
        user = f"calm-{offset % USERS}"
        event = Event(user, EVENT_TYPES[offset % 2], NOW + 10 * offset, f"i{offset * 7 % 40}")
        held[user] = windows.append(held.get(user), event, offset=offset, arrived=NOW, capacity=CAPACITY, stride=STRIDE)
        yield held[user]


def without_odd_interests(answer: Recommendation) -> Recommendation:
    """A category that nobody may be recommended is listed with a weight of 0 where there are few others."""
    return replace(answer, interests=tuple(one for one in answer.interests if one.label in CATEGORIES))


def prepare() -> Attempt:
    return Readers()


class Readers:
    """What agents, worker and clients do with a record of one of the `topics`.

    The engine `barring` recommends no odd items, so that it must give calm users the answers of the engine `_calm`,
    which reads nothing odd. `_open` recommends all items: its answers to calm users must be sound.
    """

    def __init__(self, topics: Sequence[str] = TOPICS) -> None:
        self._topics = topics
        home = Path(tempfile.mkdtemp(prefix="stream-rec-fuzz-model-"))
        model_store.save(tiny_model(), home)
        self._calm, self.barring, self._open = (
            Engine.load(home, home, Limits(stride=STRIDE, kv_cache_bytes=1e7, categories=categories), "cpu")
            for categories in (CATEGORIES, CATEGORIES, frozenset[str]())
        )
        self._windows: dict[str, Window] = {}
        self._offsets = count()
        self._calm_windows = calm_windows()
        self._readers = {
            "events": self._read_event,
            "windows": self._read_window,
            "items": self._read_item,
            "recommendations": self._read_recommendation,
        }

    def __call__(self, draw: Random, scratch: Path) -> None:
        record = odd(draw, self._topics)
        (scratch / record.topic).write_bytes(record.value or b"")
        try:
            self._readers[record.topic](record.key, record.value)
        finally:
            if next(self._offsets) % EVERY == 0:
                self.compare()

    def compare(self) -> None:
        """Answers a calm user's next window. Raises `PoisonedError`."""
        window = next(self._calm_windows)
        (expected,) = self._calm.step([window], [CALM]).recommendations
        try:
            (found,) = self.barring.step([window], [CALM]).recommendations
            check(*self._open.step([window], [CALM]).recommendations)
        except Exception as error:
            raise PoisonedError(f"{type(error).__name__}: {error}") from error
        if not same_answer(*map(without_odd_interests, (expected, found))):
            raise PoisonedError(f"{expected} became {found}")

    def _read_event(self, key: bytes | None, value: bytes | None) -> None:
        event_in(key, value)
        try:
            event = read_event(
                key, value, event_types=EVENT_TYPES, now=time.time(), max_bytes=65_536, max_future_s=3_600.0
            )
            if event.event_type == "erase":
                self._windows.pop(event.user_id, None)
                self.barring.forget(event.user_id)
                return
            held = self._windows.get(event.user_id)
            window = windows.append(
                held, event, offset=next(self._offsets), arrived=NOW, capacity=CAPACITY, stride=STRIDE
            )
        except Rejected as error:
            raise RefusedError(error.reason) from None
        self._windows[event.user_id] = window
        self._answer(read_window(encode(window)))

    def _read_window(self, key: bytes | None, value: bytes | None) -> None:
        try:
            window = read_window(value or b"")
        except (*UNREADABLE, ValueError) as error:
            raise RefusedError(str(error)) from None
        if window.user_id.encode() != key:
            raise RefusedError("key is not the user_id")
        self._answer(window)

    def _answer(self, window: Window) -> None:
        check(*self.barring.step([window], [ODD]).recommendations)

    def _read_item(self, key: bytes | None, value: bytes | None) -> None:
        try:
            item = read_item(value or b"")
            self._calm.catalog.admit(item)
        except (*UNREADABLE, Rejected) as error:
            raise RefusedError(str(error)) from None
        if item.item_id.encode() != key:
            raise RefusedError("key is not the item_id")
        try:
            vectors = self._calm.read([item])
        except Rejected as error:
            raise RefusedError(str(error)) from None
        for engine in (self.barring, self._open):
            engine.upsert([item], vectors)

    def _read_recommendation(self, _key: bytes | None, value: bytes | None) -> None:
        try:
            read_recommendation(value or b"")
        except UNREADABLE as error:
            raise RefusedError(str(error)) from None
