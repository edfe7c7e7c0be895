"""A topic as a log to train on, without Kafka: records of its own making in the order in which a partition has them."""

from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_rec import config, messages, window
from stream_rec.data.source import Period
from stream_rec.errors import UserError
from stream_rec.messages import ERASE, Event, Item, Rejected, Window, encode
from stream_rec.pseudonyms import naming
from stream_rec.replay.kafka_source import Catalogue, History

CAPACITY, STRIDE = 4, 2


class Record(NamedTuple):
    """What of an aiokafka `ConsumerRecord` is read."""

    key: bytes | None
    value: bytes | None
    partition: int = 0
    timestamp: int = 1_000_000


SETTINGS = config.load_settings(capacity=CAPACITY, stride=STRIDE, event_types="view,cart")
EVERYTHING = Period()


def record(event: Event, partition: int = 0) -> Record:
    return Record(event.user_id.encode(), encode(event), partition)


def rows_of(records: list[Record], period: Period = EVERYTHING) -> list[tuple[str, str, str, float]]:
    history = History(SETTINGS, period)
    for one in records:
        history.take(one)
    return history.frame().rows()


events = st.builds(
    Event,
    user_id=st.sampled_from(["ann", "bob", "cy"]),
    event_type=st.sampled_from(["view", "view", "cart", "share", ERASE]),
    timestamp=st.integers(0, 20).map(float),
    item_id=st.sampled_from(["tea", "cup", None]),
    event_id=st.sampled_from(["1", "2", "3", None]),
)
logs = st.lists(events, max_size=60)


@settings(deadline=None)
@given(logs)
def test_what_is_trained_on_is_what_the_agents_would_apply(log: list[Event]) -> None:
    """The reference is the agents' own reading: `read_event`, then `window.append`."""
    windows: dict[str, Window] = {}
    kept: list[Event] = []
    refused = 0
    for offset, event in enumerate(log):
        one = record(event)
        try:
            read = messages.read_event(
                one.key, one.value, event_types=("view", "cart"), now=1_000.0, max_bytes=1 << 16, max_future_s=300
            )
            if read.event_type == ERASE:
                windows.pop(read.user_id, None)
                kept = [held for held in kept if held.user_id != read.user_id]
                continue
            windows[read.user_id] = window.append(
                windows.get(read.user_id), read, offset=offset, arrived=0.0, capacity=CAPACITY, stride=STRIDE
            )
            kept.append(read)
        except Rejected:
            refused += 1
    history = History(SETTINGS, EVERYTHING)
    for event in log:
        history.take(record(event))
    wanted = [(one.user_id, one.item_id, one.event_type, one.timestamp) for one in kept]
    assert history.frame().rows() == sorted(wanted, key=lambda row: row[3])
    assert history.refused.total() == refused


@settings(deadline=None)
@given(logs, st.sampled_from(["ann", "bob", "cy"]), st.integers(0, 60), st.integers(0, 20), st.integers(1, 20))
def test_an_erased_user_is_not_trained_on(log: list[Event], user: str, place: int, since: int, length: int) -> None:
    """Wherever the erasure stands, whatever its own time is and whichever period is asked for."""
    place = min(place, len(log))
    erased = [*log[:place], Event(user, ERASE, 999.0), *log[place:]]
    period = Period(float(since), float(since + length))
    rows = rows_of([record(event) for event in erased], period)
    others = [event for event in log if event.user_id != user]
    assert [row for row in rows if row[0] != user] == rows_of([record(event) for event in others], period)
    after = [event for event in log[place:] if event.user_id == user]
    assert [row for row in rows if row[0] == user] == rows_of([record(event) for event in after], period)
    assert all(row[3] in period for row in rows)


@settings(deadline=None)
@given(logs, st.randoms(use_true_random=False))
def test_the_order_in_which_partitions_are_read_does_not_matter(log: list[Event], draw) -> None:
    partition_of = {"ann": 0, "bob": 1, "cy": 1}
    records = [record(event, partition_of[event.user_id]) for event in log]
    one, other = ([r for r in records if r.partition == number] for number in (0, 1))
    mixed = []
    left = [list(one), list(other)]
    while any(left):
        mixed.append(draw.choice([queue for queue in left if queue]).pop(0))
    assert rows_of(records) == rows_of([*other, *one]) == rows_of(mixed)


def test_records_that_are_no_events_are_counted_by_reason() -> None:
    history = History(SETTINGS, EVERYTHING)
    for odd in (
        Record(None, b"{}"),
        Record(b"ann", None),
        Record(b"ann", b"{"),
        Record(b"ann", encode(Event("bob", "view", 1.0, "tea"))),
        Record(b"ann", encode(Event("ann", "view", 1e12, "tea"))),
        record(Event("ann", "view", 1.0, "tea")),
    ):
        history.take(odd)
    assert history.refused == {
        "empty key": 1,
        "empty value": 1,
        "broken JSON": 1,
        "key is not the user_id": 1,
        "timestamp not in seconds": 1,
    }
    assert history.frame().rows() == [("ann", "tea", "view", 1.0)]


def test_the_newest_of_an_item_counts_and_a_withdrawn_one_keeps_its_text() -> None:
    catalogue = Catalogue()
    for one in (
        Record(b"b", encode(Item("b", "old"))),
        Record(b"b", encode(Item("b", "new"))),
        Record(b"a", encode(Item("a", "gone"))),
        Record(b"a", None),
        Record(b"c", None),
        Record(b"d", b"no JSON"),
        Record(b"e", encode(Item("f"))),
        Record(None, b""),
    ):
        catalogue.take(one)
    assert catalogue.sorted() == [Item("a", "gone", available=False), Item("b", "new")]
    assert catalogue.refused.total() == 3


def test_who_is_erased_by_a_pseudonym_is_left_out(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(bytes(32))
    erase = Event(naming(key)("ann"), ERASE, 2.0, pseudonym=True)
    log = [record(Event(user, "view", 1.0, "tea")) for user in ("ann", "bob")]
    history = History(SETTINGS.model_copy(update={"pseudonym_key_file": key}), EVERYTHING)
    for one in [*log, record(erase)]:
        history.take(one)
    assert history.frame()["user"].to_list() == ["bob"]
    with pytest.raises(UserError, match="set pseudonym_key_file"):
        rows_of([*log, record(erase)])


def test_an_erasure_is_of_the_user_of_its_partition() -> None:
    view, erase = Event("ann", "view", 1.0, "tea", event_id="1"), Event("ann", ERASE, 2.0)
    assert rows_of([record(view), record(view, 1), record(erase, 1)]) == [("ann", "tea", "view", 1.0)]
