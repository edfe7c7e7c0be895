import json
from contextlib import suppress
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_rec.features.item_features import unit
from stream_rec.messages import (
    ERASE,
    Event,
    RankedItem,
    Recommendation,
    Rejected,
    check_vector,
    encode,
    event_in,
    read_event,
    read_item,
    read_recommendation,
    read_window,
)

NOW = 1_700_000_000.0
LIMITS: dict[str, Any] = {"event_types": ("view", "cart"), "now": NOW, "max_bytes": 1_000, "max_future_s": 60.0}
GOOD = {"user_id": "u", "item_id": "tea", "event_type": "view", "timestamp": NOW}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def read(value: bytes | None, key: bytes | None = b"u") -> Event:
    return read_event(key, value, **LIMITS)


@given(st.none() | st.binary(max_size=40), st.none() | st.binary(max_size=200))
def test_any_bytes_are_an_event_or_rejected(key: bytes | None, value: bytes | None) -> None:
    with suppress(Rejected):
        read(value, key)


@given(st.dictionaries(st.sampled_from([*GOOD, "event_id", "price", "quantity", "context", "more"]), json_values))
def test_any_json_is_an_event_or_rejected(changes: dict[str, Any]) -> None:
    with suppress(Rejected):
        event = read(json.dumps(GOOD | changes).encode())
        assert event.user_id == "u"
        assert 0 <= event.timestamp <= NOW + 60
        assert event.event_type in ("view", "cart", ERASE)
        assert event.item_id or event.event_type == ERASE


@given(st.integers(1, 400_000), st.sampled_from(["[", '{"a":', '"', "9", "-", "\\u", "\x00"]))
def test_endless_values_are_an_event_or_rejected(times: int, piece: str) -> None:
    with suppress(Rejected):
        read_event(b"u", b'{"context":{"a":' + piece.encode() * times, **LIMITS | {"max_bytes": 1 << 30})


@given(st.integers(0, len(json.dumps(GOOD)) - 1), st.integers(0, 255))
def test_a_damaged_byte_is_an_event_or_rejected(at: int, byte: int) -> None:
    value = bytearray(json.dumps(GOOD).encode())
    value[at] = byte
    with suppress(Rejected):
        assert read(bytes(value)).user_id == "u"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"event_type": "share"}, "unknown event type"),
        ({"item_id": None}, "invalid field"),
        ({"item_id": ""}, "invalid field"),
        ({"item_id": 7}, "invalid field"),
        ({"item_id": "i" * 257}, "invalid field"),
        ({"user_id": "v"}, "key is not the user_id"),
        ({"timestamp": "today"}, "invalid field"),
        ({"timestamp": -1}, "timestamp before 1970"),
        ({"timestamp": NOW * 1_000}, "timestamp not in seconds"),
        ({"timestamp": NOW + 61}, "timestamp in the future"),
        ({"context": {"x": "y" * 1_000}}, "too large"),
    ],
)
def test_the_reason_is_named(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(Rejected) as raised:
        read(json.dumps(GOOD | changes).encode())
    assert raised.value.reason == reason
    assert str(raised.value).startswith(reason)


def test_an_erasure_needs_no_item_and_unknown_fields_are_ignored() -> None:
    assert read(json.dumps({**GOOD, "event_type": ERASE, "item_id": None, "more": 1}).encode()).event_type == ERASE


@given(
    st.builds(Event, user_id=st.text(min_size=1, max_size=20), event_type=st.just("view"), timestamp=st.floats(0, NOW))
)
def test_an_event_survives_the_wire(event: Event) -> None:
    event = msgspec.structs.replace(event, item_id="tea")
    try:
        value, key = encode(event), event.user_id.encode()
    except UnicodeEncodeError:
        return
    assert read(value, key) == event


@pytest.mark.parametrize(
    "vector", [[0.0, 0.0], [1e39, 0.0], [1e300] * 8, [1e308, 1e308], [-1e19], [1e-13], [1e-300, 0.0], [5e-324], []]
)
def test_a_vector_without_a_direction_in_single_precision_is_refused(vector: list[float]) -> None:
    with pytest.raises(Rejected, match="invalid field: vector has the length"):
        check_vector(vector)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=9))
def test_a_vector_that_is_not_refused_has_length_1_where_it_is_used(vector: list[float]) -> None:
    with suppress(Rejected):
        check_vector(vector)
        assert float(np.linalg.norm(unit(np.array([vector], np.float32)))) == pytest.approx(1, abs=1e-5)


def test_a_price_that_single_precision_cannot_hold_is_refused() -> None:
    assert read_item(b'{"item_id":"a","price":1e18}').price == 1e18
    with pytest.raises(msgspec.ValidationError, match=r"\$\.price"):
        read_item(b'{"item_id":"a","price":1e300}')


def test_the_event_of_a_record_is_its_users_own_and_under_the_name_that_the_user_goes_by() -> None:
    event = Event("u", "share", NOW, "tea")  # whether the agents accept it is not asked
    value = encode(event)
    assert event_in(b"u", value) == event
    assert event_in(b"u", value, str.upper) == msgspec.structs.replace(event, user_id="U")
    assert event_in(b"U", value, str.upper) is None
    for key in (b"v", b"", None):
        assert event_in(key, value) is None
    for broken in (None, b"", b"{", b"\xff"):
        assert event_in(b"u", broken) is None


class OldItem(msgspec.Struct, frozen=True):
    """A ranked item as consumers knew it before it had an interest."""

    item_id: str
    score: float
    probability: float


class OldRecommendation(msgspec.Struct, frozen=True):
    user_id: str
    items: tuple[OldItem, ...]


@pytest.mark.parametrize("interest", [None, 0.25])
def test_a_consumer_that_knows_no_interest_reads_what_has_one(interest: float | None) -> None:
    answer = Recommendation("u", 3, 2, NOW, (RankedItem("tea", 1.5, 0.5, interest),), {"view": 1.0}, (), "m")
    wire = encode(answer)
    assert (b'interest"' in wire) == (interest is not None)
    assert read_recommendation(wire) == answer
    assert msgspec.json.decode(wire, type=OldRecommendation).items == (OldItem("tea", 1.5, 0.5),)


@pytest.mark.parametrize(
    "changes",
    [
        {"events": [["tea", "view", 1e308]]},
        {"events": [["tea", "view", -1.0]]},
        {"offset": -2},
        {"offset": 1 << 63},
        {"n": 1 << 70, "start": (1 << 70) - 1},
    ],
)
def test_a_window_that_no_agent_writes_is_unreadable(changes: dict[str, Any]) -> None:
    window = {"user_id": "u", "n": 1, "start": 0, "offset": 0, "arrived": NOW, "events": [["tea", "view", NOW]]}
    assert read_window(encode(window)).user_id == "u"
    assert read_window(encode(window | {"offset": -1})).offset == -1  # made of what was before the topic
    with pytest.raises(msgspec.ValidationError):
        read_window(encode(window | changes))


@pytest.mark.parametrize("event_time", [1e308, 1e12, -1.0])
def test_a_recommendation_of_an_impossible_time_is_unreadable(event_time: float) -> None:
    told = Recommendation("u", 1, 0, NOW, (), {}, (), "m")
    assert read_recommendation(encode(told)) == told
    with pytest.raises(msgspec.ValidationError):
        read_recommendation(encode(msgspec.structs.replace(told, event_time=event_time)))
