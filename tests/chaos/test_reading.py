import json
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from stream_rec import window
from stream_rec.messages import ERASE, Rejected, Window, encode, read_event
from tests.chaos.reading import Reading, Rules, Written, read, start_of

RULES = Rules(frozenset({"view", "cart"}), capacity=4, stride=3, max_event_bytes=200, max_future_s=300.0)
NOW_MS = 1_700_000_000_500


class Stored(NamedTuple):
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


def event(user: str = "u", **fields: object) -> bytes:
    given = {"user_id": user, "item_id": "tea", "event_type": "view", "timestamp": 5.0} | fields
    return json.dumps({name: value for name, value in given.items() if value is not None}).encode()


def log(*records: tuple[bytes | None, bytes | None]) -> list[Stored]:
    return [Stored(0, offset, NOW_MS, key, value) for offset, (key, value) in enumerate(records)]


def test_a_window_begins_at_the_smallest_multiple_of_the_stride_that_leaves_no_more_than_the_capacity() -> None:
    assert [start_of(n, 4, 3) for n in range(12)] == [0, 0, 0, 0, 0, 3, 3, 3, 6, 6, 6, 9]


def test_windows_stand_in_the_order_of_the_events_and_an_erasure_is_a_tombstone() -> None:
    read_in = read(log(*[(b"u", event(item_id=name)) for name in "abcde"], (b"u", event(event_type=ERASE))), RULES)
    *windows, last = read_in.windows[0]
    assert [(one.offset, one.window["n"], one.window["start"], len(one.window["events"])) for one in windows] == [
        (0, 1, 0, 1),
        (1, 2, 0, 2),
        (2, 3, 0, 3),
        (3, 4, 0, 4),
        (4, 5, 3, 2),
    ]
    assert windows[-1].window["events"] == [["d", "view", 5.0, None], ["e", "view", 5.0, None]]
    assert windows[-1].window["arrived"] == NOW_MS / 1_000
    assert last == Written(5, b"u", None)


def test_who_was_erased_begins_anew_and_who_was_never_seen_leaves_no_tombstone() -> None:
    erase = event(event_type=ERASE, item_id=None)
    windows = read(log((b"u", erase), (b"u", event()), (b"u", erase), (b"u", event())), RULES).windows[0]
    assert [one.window and one.window["n"] for one in windows] == [1, None, 1]


def test_an_id_is_refused_as_long_as_the_window_holds_it() -> None:
    records = [(b"u", event(event_id="a")), (b"u", event(event_id="a")), *[(b"u", event())] * 4]
    read_in = read(log(*records, (b"u", event(event_id="a"))), RULES)
    assert read_in.refused == {(0, 1): "duplicate event_id"}
    assert read_in.windows[0][-1].window["n"] == 6


BYTES = st.one_of(
    st.binary(max_size=300).map(lambda some: b"?" + some),  # what begins like JSON may be broken or another thing
    st.builds(
        event,
        st.sampled_from(["u", "v", ""]),
        item_id=st.sampled_from(["tea", "cup", None, 7, ""]),
        event_type=st.sampled_from(["view", "cart", "share", ERASE, None]),
        timestamp=st.sampled_from([5.0, 7, -1, 1e12, NOW_MS / 1_000 + 301, True, "now", None]),
        event_id=st.sampled_from([None, None, "a", "b", "x" * 300]),
        note=st.sampled_from([None, "é", "x" * 200]),
    ),
    st.sampled_from([None, b"", b"null", b"[]", b'{"user_id":"\xff"}', b'{"timestamp":NaN}']),
)
KEYS = st.sampled_from([b"u", b"v", b"", None, b"\xff"])


@settings(max_examples=400)
@given(st.lists(st.tuples(KEYS, BYTES), max_size=40))
def test_the_product_reads_the_same(records: list[tuple[bytes | None, bytes | None]]) -> None:
    stored = log(*records)
    assert read(stored, RULES) == by_the_product(stored)


def by_the_product(records: list[Stored]) -> Reading:
    held: dict[str, Window] = {}
    written: list[Written] = []
    refused: dict[tuple[int, int], str] = {}
    for one in records:
        try:
            found = read_event(
                one.key,
                one.value,
                event_types=RULES.event_types,
                now=one.timestamp / 1_000,
                max_bytes=RULES.max_event_bytes,
                max_future_s=RULES.max_future_s,
            )
            user = found.user_id
            if found.event_type == ERASE:
                if held.pop(user, None):
                    written.append(Written(one.offset, user.encode(), None))
                continue
            held[user] = window.append(
                held.get(user),
                found,
                offset=one.offset,
                arrived=one.timestamp / 1_000,
                capacity=RULES.capacity,
                stride=RULES.stride,
            )
            written.append(Written(one.offset, user.encode(), json.loads(encode(held[user]))))
        except Rejected as rejected:
            refused[one.partition, one.offset] = rejected.reason
    return Reading({0: written} if written else {}, refused)
