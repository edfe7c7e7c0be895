from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from prometheus_client import CollectorRegistry

from stream_rec.config import Settings
from stream_rec.kafka.dead_letters import Place
from stream_rec.kafka.topics import ENVELOPE
from stream_rec.messages import ERASE, Event, Window, encode, read_window
from stream_rec.metrics import AgentMetrics
from stream_rec.pipeline.buried import Done
from stream_rec.pipeline.keeper import RESERVED_KEY, Keeper
from stream_rec.pseudonyms import Naming


class Record(NamedTuple):
    """What faust hands over for a record of the events topic."""

    offset: int
    key: bytes | None
    value: bytes | None
    timestamp: float = 1_000.0
    topic: str = "events"
    partition: int = 0


class Graveyard:
    """Collects what would go to the dead-letter topic."""

    def __init__(self) -> None:
        self.letters: list[tuple[bytes | None, bytes | None, dict[str, str]]] = []

    def send_soon(self, *, key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]]) -> None:
        self.letters.append((key, value, {name: text.decode() for name, text in headers}))


class Bench:
    """A keeper with a dictionary for a table."""

    def __init__(
        self,
        table: dict[bytes, bytes] | None = None,
        name: Naming = str,
        topic_id: str = "",
        in_several: Callable[[bytes], bool] = lambda _: False,
        **settings: Any,
    ) -> None:
        self.registry = CollectorRegistry()
        self.table = {} if table is None else table
        self.graveyard = Graveyard()
        made = Settings(**{"capacity": 4, **settings})
        metrics = AgentMetrics(self.registry)
        self.keeper = Keeper(made, metrics, self.table, self.graveyard, name, topic_id=topic_id, in_several=in_several)

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"stream_rec_{name}", labels) or 0.0

    def window(self, user: str) -> Window:
        return read_window(self.table[user.encode()])


def record(offset: int, user: str = "u", event_type: str = "view", **fields: Any) -> Record:
    event = Event(user, event_type, 1_000.0, None if event_type == ERASE else f"item {offset}", **fields)
    return Record(offset, user.encode(), encode(event))


def bad(offset: int, user: str) -> Record:
    return Record(offset, user.encode(), b"no JSON")


kinds = st.sampled_from(["view", "view", "view", ERASE, "bad"])
logs = st.lists(st.tuples(st.sampled_from("uvw"), kinds, st.none() | st.sampled_from("ab")), max_size=30)


def written(log: list[tuple[str, str, str | None]]) -> list[Record]:
    return [
        bad(offset, user) if kind == "bad" else record(offset, user, kind, event_id=event_id)
        for offset, (user, kind, event_id) in enumerate(log)
    ]


@given(logs, st.data())
def test_reading_on_from_an_earlier_offset_gives_the_same_windows(log: list[Any], data: st.DataObject) -> None:
    once, again = Bench(), Bench()
    records = written(log)
    for one in records:
        once.keeper.take(one)
    crash = data.draw(st.integers(0, len(records)))
    committed = data.draw(st.integers(0, crash))
    for one in records[:crash]:
        again.keeper.take(one)
    restarted = Bench(dict(again.table))
    for one in records[committed:]:
        restarted.keeper.take(one)
    assert restarted.table == once.table


@given(logs)
def test_an_event_read_again_at_once_is_counted_and_changes_nothing(log: list[Any]) -> None:
    bench = Bench()
    for one in written(log):
        bench.keeper.take(one)
        if one.key in bench.table and bench.window(one.key.decode()).offset == one.offset:
            before, repeats = dict(bench.table), bench.count("events_read_again_total")
            bench.keeper.take(one)
            assert bench.table == before
            assert bench.count("events_read_again_total") == repeats + 1
    assert bench.count("users") == len(bench.table)


@given(logs)
def test_under_pseudonyms_the_windows_are_the_same_and_dead_letters_are_as_they_came(log: list[Any]) -> None:
    plain, hidden = Bench(), Bench(name=str.upper)
    for one in written(log):
        for bench in (plain, hidden):
            bench.keeper.take(one)
    assert hidden.table.keys() == {key.upper() for key in plain.table}
    for key in plain.table:
        user = key.decode()
        assert hidden.window(user.upper()) == structs.replace(plain.window(user), user_id=user.upper())
    assert hidden.graveyard.letters == plain.graveyard.letters


@given(logs)
def test_every_event_is_counted_once(log: list[Any]) -> None:
    bench = Bench()
    for one in written(log):
        bench.keeper.take(one)
    applied = bench.count("windows_written_total") + bench.count("users_erased_total")
    assert applied + len(bench.graveyard.letters) == len(log)
    refused = ("broken JSON", "duplicate event_id")
    assert sum(bench.count("dead_letters_total", reason=reason) for reason in refused) == len(bench.graveyard.letters)


def test_a_dead_letter_holds_the_bytes_and_says_where_they_stood() -> None:
    bench = Bench()
    bench.keeper.take(Record(7, b"\xff", b"\x00", 12.5, "clicks", 3))
    ((key, value, headers),) = bench.graveyard.letters
    assert (key, value) == (b"\xff", b"\x00")
    assert headers.pop("error").startswith("broken JSON: ")
    assert headers == {
        "reason": "broken JSON",
        "topic": "clicks",
        "partition": "3",
        "offset": "7",
        "time": "12.500",
    }


def test_what_kafka_would_refuse_is_cut_and_says_so() -> None:
    bench = Bench(max_message_bytes=1 << 16)
    bench.keeper.take(Record(0, b"key", b"x" * (1 << 17)))
    ((key, value, headers),) = bench.graveyard.letters
    assert (key, value) == (b"key", b"x" * ((1 << 16) - 3))
    assert headers["truncated"] == "from 3 and 131072 bytes"
    assert headers["reason"] == "too large"


def test_what_is_refused_is_counted_by_reason_for_the_log() -> None:
    bench = Bench()
    for one in (bad(0, "u"), record(1), record(2, event_type="share"), bad(3, "v")):
        bench.keeper.take(one)
    assert bench.keeper.refused == {"broken JSON": 2, "unknown event type": 1}


def test_a_window_that_no_record_can_hold_is_refused_and_the_old_one_stays() -> None:
    bench = Bench(capacity=4_096, max_message_bytes=1 << 16)
    for offset in range(500):
        bench.keeper.take(record(offset, event_id=f"{offset:0256}"))
    refused = bench.count("dead_letters_total", reason="window too large")
    assert refused > 0
    assert bench.window("u").n == 500 - refused
    assert 60_000 < len(bench.table[b"u"]) < 1 << 16


@pytest.mark.parametrize("spare", [0, -1])
def test_a_window_fits_when_kafka_takes_it_with_its_key_and_envelope(spare: int) -> None:
    user, plain = "u" * 256, Bench()
    plain.keeper.take(record(0, user))
    bench = Bench()
    size = len(user) + len(plain.table[user.encode()]) + ENVELOPE
    bench.keeper.room = bench.keeper.room._replace(record=size + spare)
    bench.keeper.take(record(0, user))
    assert bench.table == (plain.table if spare == 0 else {})
    batch = DefaultRecordBatchBuilder(2, 0, 0, 2**62, 2**15 - 1, 2**31 - 1, 1)
    batch.append(0, 2**62, user.encode(), plain.table[user.encode()], [])
    assert len(batch.build()) <= size


def test_a_user_whose_window_can_not_be_read_is_counted_once() -> None:
    bench = Bench()
    bench.keeper.take(record(0))
    bench.table[b"u"] = b"no window"
    bench.keeper.take(record(1))
    assert bench.window("u").n == 1
    assert bench.count("agent_windows_unreadable_total") == 1
    assert bench.count("users") == 1
    bench.table[b"u"] = b"no window"
    bench.keeper.take(record(2, event_type=ERASE))
    assert bench.count("users") == 0


def test_an_unforeseen_error_costs_one_event_and_tells_no_id(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Window | None, event: Event, **__: Any) -> Window:
        raise KeyError(event.user_id)

    bench = Bench()
    with monkeypatch.context() as patch:
        patch.setattr("stream_rec.window.append", fail)
        bench.keeper.take(record(0, "secret user"))
    bench.keeper.take(record(1, "secret user"))
    assert bench.window("secret user").n == 1
    ((_, _, headers),) = bench.graveyard.letters
    assert (headers["reason"], headers["error"]) == ("internal error", "KeyError")
    assert bench.count("dead_letters_total", reason="internal error") == 1
    assert "events[0]@0" in caplog.text
    assert "secret" not in caplog.text


def test_a_full_disk_is_no_fault_of_the_event() -> None:
    class Full(dict[bytes, bytes]):
        def __setitem__(self, key: bytes, value: bytes) -> None:
            raise OSError("no space left on device")

    bench = Bench(Full())
    with pytest.raises(OSError, match="no space"):
        bench.keeper.take(record(0))
    assert bench.graveyard.letters == []


@pytest.mark.parametrize("timestamp", [1_000.0, 2_000.0])
def test_the_clock_that_counts_is_kafkas(timestamp: float) -> None:
    bench = Bench(max_future_s=10)
    bench.keeper.take(Record(0, b"u", encode(Event("u", "view", 1_500.0, "tea")), timestamp))
    assert (b"u" in bench.table) == (timestamp > 1_490)


def test_what_is_a_dead_letter_already_is_not_buried_twice() -> None:
    bench = Bench()
    bench.keeper.recall(Done({Place("events", 0, 3, "1000.000"), Place("events", 1, 4, "1000.000")}, {}))
    for offset in (3, 4):
        bench.keeper.take(bad(offset, "u"))
    assert [headers["offset"] for _, _, headers in bench.graveyard.letters] == ["4"]
    assert bench.count("events_read_again_total") == 1


def test_what_stands_before_an_erasure_that_is_done_is_not_done_again() -> None:
    bench = Bench()
    bench.keeper.recall(Done(set(), {(0, b"u"): 3, (1, b"v"): 9}))
    for event in (record(1), record(2, "v"), record(3, event_type=ERASE), record(4)):
        bench.keeper.take(event)
    assert bench.count("events_read_again_total") == 2
    assert (bench.window("u").n, bench.window("v").n) == (1, 1)  # v was erased in another partition
    bench.keeper.take(record(3, event_type=ERASE))  # it must not erase what came after it
    assert bench.window("u").n == 1


def test_events_of_a_topic_that_was_made_anew_are_no_repeats() -> None:
    former = Bench(topic_id="former")
    for offset in range(3):
        former.keeper.take(record(offset))
    bench = Bench(former.table, topic_id="new")
    for offset in (0, 1, 1):
        bench.keeper.take(record(offset))
    assert (bench.window("u").n, bench.window("u").topic_id) == (5, "new")
    assert bench.count("events_read_again_total") == 1


def test_a_window_that_does_not_say_its_topic_is_of_the_one_that_is_read() -> None:
    first = Bench()
    first.keeper.take(record(0))
    bench = Bench(first.table, topic_id="new")
    bench.keeper.take(record(0))
    assert bench.window("u").n == 1
    bench.keeper.take(record(1))
    assert bench.window("u").topic_id == "new"


def test_a_dead_letter_of_a_topic_that_was_deleted_stands_for_no_event_of_the_new_one() -> None:
    bench = Bench()
    bench.keeper.recall(Done({Place("events", 0, 3, "999.000")}, {}))
    bench.keeper.take(bad(3, "u"))
    assert len(bench.graveyard.letters) == 1


def test_a_pseudonym_erases_its_user_and_does_nothing_else() -> None:
    bench = Bench(name=str.upper)
    bench.keeper.take(record(0, "u"))
    erase = record(1, "U", ERASE, pseudonym=True)
    bench.keeper.take(record(2, "U", pseudonym=True))
    assert [headers["reason"] for _, _, headers in bench.graveyard.letters] == ["invalid field"]
    bench.keeper.take(erase)
    assert bench.table == {}


def test_a_window_of_another_user_is_not_gone_on_with() -> None:
    bench = Bench()
    bench.keeper.take(record(0, "v"))
    bench.table[b"u"] = bench.table.pop(b"v")
    bench.keeper.take(record(1))
    assert (bench.window("u").user_id, bench.window("u").n) == ("u", 1)
    assert bench.count("agent_windows_unreadable_total") == 1


def test_the_key_that_faust_keeps_its_offset_under_is_no_user() -> None:
    bench = Bench()
    bench.keeper.take(record(0, RESERVED_KEY.decode()))
    assert bench.table == {}
    assert [headers["reason"] for _, _, headers in bench.graveyard.letters] == ["reserved key"]


def test_the_delay_is_from_kafkas_timestamp_to_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    with monkeypatch.context() as patch:
        patch.setattr("time.time", lambda: 1_030.0)
        bench.keeper.take(record(0))
        patch.setattr("time.time", lambda: 900.0)  # this machine's clock is behind the broker's
        bench.keeper.take(record(1))
    assert bench.count("agent_seconds_sum") == 30


def test_users_that_several_partitions_have_are_counted_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(in_several=lambda key: key != b"w")
    for offset, user in enumerate("uuvw"):
        bench.keeper.take(record(offset, user))
    bench.keeper.take(record(4, "u", ERASE))
    assert bench.count("users_in_several_partitions_total") == 2
    assert caplog.text.count("several partitions") == 1


def test_a_topic_that_was_made_anew_is_told_once_per_partition(caplog: pytest.LogCaptureFixture) -> None:
    former = Bench(topic_id="former")
    for offset, user in enumerate("uvw"):
        former.keeper.take(record(offset, user))
    bench = Bench(former.table, topic_id="new")
    for offset, (user, partition) in enumerate([("u", 0), ("v", 0), ("w", 1)]):
        bench.keeper.take(record(offset, user)._replace(partition=partition))
    told = [line for line in caplog.messages if "no more" in line]
    assert [line.split()[2] for line in told] == ["events[0]", "events[1]"]
