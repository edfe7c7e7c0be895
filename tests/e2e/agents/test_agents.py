import asyncio
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from aiokafka import AIOKafkaProducer, ConsumerRecord
from faust.types import TP
from prometheus_client import CollectorRegistry

from stream_rec import window
from stream_rec.config import Settings
from stream_rec.health import Health
from stream_rec.kafka import access_control, topics
from stream_rec.kafka.access_control import describe_topics, on
from stream_rec.kafka.connection import access
from stream_rec.local.broker import Broker
from stream_rec.messages import ERASE, Event, Rejected, Window, WindowEvent, encode, read_event, read_window
from stream_rec.metrics import AgentMetrics
from stream_rec.pipeline import agents
from stream_rec.pipeline.faust_kafka import Consumer
from stream_rec.replay import refusals
from stream_rec.replay.command import _refused
from stream_rec.replay.producer import feed
from stream_rec.replay.refusals import Sent as Feeding
from tests import batches
from tests.e2e.kafka import (
    BOMB,
    Sent,
    alter,
    produce,
    produce_batch,
    produce_nothing,
    read_topic,
    sent,
    settings_for,
    until,
    waiting,
    windows_in,
)
from tests.e2e.process import Part

pytestmark = pytest.mark.e2e

Start = Callable[[str, Settings], Part]
Make = Callable[..., Settings]


async def all_done(settings: Settings) -> None:
    """Returns when the agents have committed every event."""

    async def done() -> bool:
        return await waiting(settings, settings.agents_group, settings.events_topic) == 0

    await until(done)


def expected(records: list[ConsumerRecord], settings: Settings, topic_id: str) -> dict[str, Window | None]:
    """The windows that a plain reading of the log gives."""
    windows: dict[str, Window | None] = {}
    for record in records:
        now = record.timestamp / 1_000
        try:
            event = read_event(
                record.key,
                record.value,
                event_types=settings.event_types,
                now=now,
                max_bytes=settings.max_event_bytes,
                max_future_s=settings.max_future_s,
            )
            held = windows.get(event.user_id)
            if event.event_type == ERASE:
                if event.user_id in windows:
                    windows[event.user_id] = None
                continue
            windows[event.user_id] = window.append(
                held,
                event,
                offset=record.offset,
                arrived=now,
                capacity=settings.capacity,
                stride=settings.effective_stride,
                topic_id=topic_id,
            )
        except Rejected:
            continue
    return windows


class Running(NamedTuple):
    settings: Settings
    part: Part


@pytest.fixture(scope="module")
def running(bootstrap: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """An agent that the tests of single events share."""
    folder = tmp_path_factory.mktemp("agents")
    settings = settings_for(folder, bootstrap_servers=bootstrap)
    asyncio.run(topics.create(settings))
    part = Part("agents", settings, folder / "agents.log")
    part.wait_for("agents ready: 2 partitions")
    yield Running(settings, part)
    part.kill()


BAD = {
    "broken JSON": (Sent(b"u", b"{"), "broken JSON"),
    "not UTF-8": (Sent(b"u", b'{"user_id":"\xff","item_id":"i","event_type":"view","timestamp":1}'), "broken JSON"),
    "nesting": (Sent(b"u", b'{"context":{"x":' + b"[" * 30_000), "broken JSON"),
    "not a number": (Sent(b"u", sent("u").value.replace(b'"timestamp":', b'"timestamp":NaN,"x":')), "broken JSON"),
    "missing field": (Sent(b"u", b'{"user_id":"u","event_type":"view","timestamp":1}'), "invalid field"),
    "mistyped field": (Sent(b"u", b'{"user_id":"u","item_id":7,"event_type":"view","timestamp":1}'), "invalid field"),
    "unknown type": (sent("u", event_type="share"), "unknown event type"),
    "future": (sent("u", timestamp=time.time() + 86_400), "timestamp in the future"),
    "milliseconds": (sent("u", timestamp=time.time() * 1_000), "timestamp not in seconds"),
    "10 MB": (Sent(b"u", b'{"x":"' + b"x" * 10_000_000 + b'"}'), "too large"),
    "no key": (Sent(None, sent("u").value), "empty key"),
    "empty key": (Sent(b"", sent("u").value), "empty key"),
    "no value": (Sent(b"u", None), "empty value"),
    "another key": (Sent(b"v", sent("u").value), "key is not the user_id"),
    "key not UTF-8": (Sent(b"\xff\xfe", sent("u").value), "key is not the user_id"),
    "key of faust's own": (sent("__faust\0offset__"), "reserved key"),
}


async def dead_letters_of(settings: Settings, partition: int, offset: int) -> list[ConsumerRecord]:
    place = {"topic": settings.events_topic.encode(), "partition": b"%d" % partition, "offset": b"%d" % offset}
    letters = await read_topic(settings, settings.dead_letter_topic)
    return [letter for letter in letters if place.items() <= dict(letter.headers).items()]


async def have_windows(settings: Settings, *users: str) -> None:
    """Returns when each of the users has a window."""

    async def there() -> bool:
        return set(users) <= (await windows_in(settings)).keys()

    await until(there)


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_event_becomes_a_dead_letter_and_the_stream_goes_on(running: Running, name: str) -> None:
    bad, reason = BAD[name]
    settings, part = running
    counter = f'stream_rec_dead_letters_total{{reason="{reason}"}}'
    before = part.metrics().get(counter, 0)
    (place,) = await produce(settings, [bad])
    after = [f"{number} after {name}" for number in range(6)]  # in both partitions
    await produce(settings, map(sent, after))
    await have_windows(settings, *after)
    (letter,) = await dead_letters_of(settings, *place)
    assert (letter.key, letter.value) == bad
    headers = dict(letter.headers)
    assert headers["reason"].decode() == reason
    assert headers["error"].decode().startswith(reason)
    assert abs(float(headers["time"]) - letter.timestamp / 1_000) < 60
    assert part.metrics()[counter] == before + 1


async def test_a_batch_that_unfolds_to_more_than_kafka_takes_is_a_dead_letter_cut_to_size(running: Running) -> None:
    settings, _ = running
    (place,) = await produce(settings, [BOMB], compression_type="gzip")
    await all_done(settings)
    (letter,) = await dead_letters_of(settings, *place)
    assert letter.key == BOMB.key
    assert letter.value == BOMB.value[: settings.max_message_bytes - len(BOMB.key)]
    assert dict(letter.headers)["truncated"] == b"from 4 and %d bytes" % len(BOMB.value)


async def test_a_record_with_neither_key_nor_value_is_a_dead_letter(running: Running) -> None:
    settings, _ = running
    place = await produce_nothing(settings, settings.events_topic)
    await all_done(settings)
    (letter,) = await dead_letters_of(settings, *place)
    assert (letter.key, letter.value) == (None, b"")
    assert dict(letter.headers)["reason"] == b"empty key"


def forget_peak(part: Part) -> None:
    Path(f"/proc/{part.pid}/clear_refs").write_text("5")


def peak(part: Part) -> int:
    """The most memory that a process has had, resident, bytes."""
    return 1_024 * int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{part.pid}/status").read_text())[1])


NOT_UTF8 = [(b"\xff", b"x")]
ERASURE = b'{"event_type":"erase"}'
UNREADABLE = {
    "header": (
        lambda: batches.batch(batches.record(b"u", b"v", NOT_UTF8)),
        Sent(b"u", b"v"),
        "the key of a header is not UTF-8",
    ),
    "erasure": (
        lambda: batches.batch(batches.record(b"u", ERASURE, NOT_UTF8), codec=4),
        Sent(b"u", ERASURE),
        "is not UTF-8",
    ),
    "offset": (
        lambda: batches.batch(batches.record(b"u", b"v", offset=10**6)),
        Sent(b"u", b"v"),
        "outside of its batch",
    ),
    "500 MB": (
        lambda: batches.batch(batches.record(b"u", bytes(500 << 20)), codec=4),
        Sent(None, b""),
        "hold more than 67108864",
    ),
}


@pytest.mark.parametrize("name", UNREADABLE)
async def test_what_kafkas_client_cannot_read_becomes_a_dead_letter(running: Running, name: str) -> None:
    data, held, error = UNREADABLE[name]
    settings, part = running
    forget_peak(part)
    memory = psutil.Process(part.pid).memory_info().rss
    counter = 'stream_rec_dead_letters_total{reason="unreadable '
    before = sum(count for label, count in part.metrics().items() if label.startswith(counter))
    offset = await produce_batch(settings, data())
    after = [f"{number} after an unreadable {name}" for number in range(6)]
    await produce(settings, map(sent, after))
    await have_windows(settings, *after)
    (letter,) = await dead_letters_of(settings, 0, offset)
    assert (letter.key, letter.value) == held
    assert f"offset {offset}: " in dict(letter.headers)["error"].decode()
    assert error in dict(letter.headers)["error"].decode()
    assert dict(letter.headers)["reason"].decode() in ("unreadable record", "unreadable batch")
    assert sum(count for label, count in part.metrics().items() if label.startswith(counter)) == before + 1
    assert peak(part) - memory < 300e6


async def test_a_second_event_of_an_id_becomes_a_dead_letter(running: Running) -> None:
    settings, _ = running
    twice = [sent("twice", item, event_id="a") for item in ("tea", "cup")]
    _, place, _ = await produce(settings, [*twice, sent("twice", "pot")])
    await all_done(settings)
    (letter,) = await dead_letters_of(settings, *place)
    assert dict(letter.headers)["reason"] == b"duplicate event_id"
    assert [event.item_id for event in (await windows_in(settings))["twice"].events] == ["tea", "pot"]


async def test_who_sent_events_is_told_how_many_were_refused_and_why(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, _ = running
    told = Feeding()
    events = [Event("teller", "view", 1_000.0, "tea", event_id=str(number % 3)) for number in range(5)]
    await feed([*events, Event("teller", "share", 1_000.0, "tea")], settings, on_stored=told.add)
    assert await told.refused(settings) == ({"duplicate event_id": 2, "unknown event type": 1}, True)
    assert await _refused(settings, told) == "3 refused (2 duplicate event_id, 1 unknown event type)"
    unheard = settings.model_copy(update={"agents_group": "nobody"})
    monkeypatch.setattr(refusals, "AGENTS_S", 0.1)
    assert (await _refused(unheard, told)).endswith("so far; the agents (group nobody) have not committed all of them")
    lost = settings.model_copy(update={"dead_letter_topic": "nowhere"})
    assert (await _refused(lost, told)).startswith("whether any was refused is not known (topic nowhere does not exist")


async def test_an_erasure_is_a_tombstone_and_the_user_starts_anew(running: Running) -> None:
    settings, part = running
    before = part.metrics()
    await produce(settings, [sent("gone"), sent("gone"), sent("gone", None, event_type=ERASE), sent("back")])
    await have_windows(settings, "back")
    await all_done(settings)
    written = [record.value for record in await read_topic(settings, settings.windows_topic) if record.key == b"gone"]
    assert [value and read_window(value).n for value in written] == [1, 2, None]
    after = part.metrics()
    assert after["stream_rec_users_erased_total"] == before["stream_rec_users_erased_total"] + 1
    assert after["stream_rec_users"] == before["stream_rec_users"] + 1
    await produce(settings, [sent("gone")])
    await all_done(settings)
    assert (await windows_in(settings))["gone"].n == 1


async def test_an_aborted_transaction_leaves_no_trace(running: Running) -> None:
    settings, _ = running
    async with AIOKafkaProducer(
        bootstrap_servers=settings.bootstrap_servers, transactional_id=settings.events_topic
    ) as producer:
        for user, goes in [("takes back", False), ("keeps", True), ("takes back", False)]:
            await producer.begin_transaction()
            await producer.send_and_wait(settings.events_topic, sent(user).value, key=user.encode(), partition=0)
            await (producer.commit_transaction() if goes else producer.abort_transaction())
        async with producer.transaction():
            await producer.send_and_wait(settings.events_topic, sent("last").value, key=b"last", partition=0)
    await have_windows(settings, "last")
    assert {"keeps", "last"} <= (await windows_in(settings)).keys()
    assert "takes back" not in await windows_in(settings)


async def test_what_no_transaction_leaves_to_read_does_not_count_as_lag(make_settings: Make, start: Start) -> None:
    settings = make_settings(partitions=1, ready_lag=0)
    await topics.create(settings)
    part = start("agents", settings)
    part.wait_for("agents ready")
    async with AIOKafkaProducer(
        bootstrap_servers=settings.bootstrap_servers, transactional_id=settings.events_topic
    ) as producer:
        async with producer.transaction():
            await producer.send(settings.events_topic, sent("u").value, key=b"u")
        await producer.begin_transaction()
        for _ in range(500):
            await producer.send(settings.events_topic, sent("v").value, key=b"v")
        await producer.flush()
        await producer.abort_transaction()
    await all_done(settings)
    assert (await windows_in(settings)).keys() == {"u"}

    async def ready() -> bool:
        lag = part.metrics().get('stream_rec_agent_lag_events{partition="0"}')
        return lag == 0 and part.page("/readyz")[0] == 200

    await until(ready)


async def test_an_open_transaction_holds_up_the_events_behind_it_and_a_metric_says_for_how_long(
    running: Running,
) -> None:
    settings, part = running
    held_up = 'stream_rec_agent_held_up_seconds{partition="0"}'

    async def held() -> bool:
        return part.metrics().get(held_up, 0) > 1

    async def free() -> bool:
        return part.metrics()[held_up] == 0

    options = {"bootstrap_servers": settings.bootstrap_servers}
    async with AIOKafkaProducer(**options, transactional_id=f"{settings.events_topic}-open") as stranger:
        await stranger.begin_transaction()
        await stranger.send_and_wait(settings.events_topic, sent("stranger").value, key=b"stranger", partition=0)
        async with AIOKafkaProducer(**options) as producer:
            await producer.send_and_wait(settings.events_topic, sent("waits").value, key=b"waits", partition=0)
        await until(held)
        assert "waits" not in await windows_in(settings)
        await stranger.abort_transaction()
    await have_windows(settings, "waits")
    await until(free)


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
async def test_compressed_events_are_read(running: Running, codec: str) -> None:
    settings, _ = running
    await produce(settings, [sent(f"by {codec}")], compression_type=codec)
    await have_windows(settings, f"by {codec}")


async def test_the_metrics_say_what_was_done(running: Running) -> None:
    settings, part = running
    before = part.metrics()
    await produce(settings, [sent("metered"), sent("metered", event_type="cart")])
    await all_done(settings)
    after = part.metrics()
    grown = {name: value - before.get(name, 0) for name, value in after.items()}
    assert grown['stream_rec_events_total{event_type="cart"}'] == 1
    assert grown["stream_rec_windows_written_total"] == 2
    assert grown["stream_rec_agent_seconds_count"] == 2
    assert part.page("/readyz") == part.page("/healthz") == (200, "ok\n")

    async def measured() -> bool:
        lags = {f'stream_rec_agent_lag_events{{partition="{number}"}}' for number in range(2)}
        return lags <= part.metrics().keys()

    await until(measured)


def test_the_log_tells_of_the_agents_and_of_none_of_fausts_services(running: Running) -> None:
    said = re.findall(r" (?:INFO|WARNING|ERROR) (\S+): ", running[1].said)
    assert "stream_rec.pipeline.agents" in said
    assert not [name for name in said if "faust" in name]


async def shop(settings: Settings, rounds: int, users: int = 40) -> None:
    """Events of many users, bad ones and erasures among them, over some seconds."""
    for number in range(rounds):
        batch = [sent(f"u{user}", f"item {number}", event_id=str(number % 7)) for user in range(users)]
        batch.append(Sent(b"u1", b"no JSON"))
        if number % 9 == 5:
            batch.append(sent(f"u{number % users}", None, event_type=ERASE))
        await produce(settings, batch)


async def assert_windows_follow_from_the_log(settings: Settings) -> None:
    await all_done(settings)
    events = await read_topic(settings, settings.events_topic)
    topic = (await describe_topics(access(settings), *on("Read", settings.events_topic)))[settings.events_topic]
    assert await windows_in(settings) == expected(events, settings, topic.id)


async def test_neither_a_killed_agent_nor_one_that_stood_still_loses_or_doubles_an_event(
    make_settings: Make, start: Start
) -> None:
    settings = make_settings(capacity=8, stride=3)
    await topics.create(settings)
    killed, paused = start("agents", settings), start("agents", settings)
    killed.wait_for("agents ready: 1 partitions")
    paused.wait_for("agents ready: 1 partitions")
    users = [f"u{number}" for number in range(40)]
    many = [sent(user, f"item {number}") for number in range(400) for user in users]
    feeding = asyncio.create_task(produce(settings, many))
    await have_windows(settings, *users)  # into the backlog, with events in all buffers
    paused.signal(signal.SIGSTOP)
    killed.kill()
    await feeding
    heir = start("agents", settings)
    await shop(settings, rounds=10)
    await all_done(settings)
    assert heir.metrics()["stream_rec_events_read_again_total"] > 0
    heard = paused.said.count("agents ready")
    paused.signal(signal.SIGCONT)

    async def back() -> bool:
        return not paused.running or paused.said.count("agents ready") > heard

    await until(back)  # it ends when it still had something to write, and joins anew otherwise
    await assert_windows_follow_from_the_log(settings)


async def test_two_agents_share_the_partitions_and_one_takes_over(make_settings: Make, start: Start) -> None:
    settings = make_settings(partitions=4, capacity=8)
    await topics.create(settings)
    parts = [start("agents", settings), start("agents", settings)]
    for part in parts:
        part.wait_for("agents ready: 2 partitions")
    await shop(settings, rounds=10)
    await assert_windows_follow_from_the_log(settings)
    assert all(part.metrics()["stream_rec_windows_written_total"] > 0 for part in parts)
    feeding = asyncio.create_task(shop(settings, rounds=20))
    parts[0].signal(signal.SIGINT)
    assert parts[0].wait() == 0
    parts[1].wait_for("agents ready: 4 partitions")
    await feeding
    await assert_windows_follow_from_the_log(settings)
    known = {user for user, window in (await windows_in(settings)).items() if window is not None}
    assert parts[1].metrics()["stream_rec_users"] == len(known)


async def test_events_read_again_change_nothing(make_settings: Make, start: Start) -> None:
    settings = make_settings()
    await topics.create(settings)
    first = start("agents", settings)
    await produce(settings, [sent(f"u{number % 5}") for number in range(50)])
    await produce(settings, [Sent(b"u%d" % number, b"{") for number in range(7)])
    await all_done(settings)
    assert first.stop() == 0
    written = len(await read_topic(settings, settings.windows_topic))
    assert len(await read_topic(settings, settings.dead_letter_topic)) == 7
    another_group = settings.model_copy(update={"agents_group": f"{settings.agents_group}-again"})
    second = start("agents", another_group)
    await all_done(another_group)
    assert second.metrics()["stream_rec_events_read_again_total"] == 57
    assert len(await read_topic(settings, settings.windows_topic)) == written
    assert len(await read_topic(settings, settings.dead_letter_topic)) == 7
    await produce(settings, [Sent(b"u1", b"{")])  # what is new is buried
    await all_done(another_group)
    assert len(await read_topic(settings, settings.dead_letter_topic)) == 8


@pytest.mark.parametrize("store", ["memory", "rocksdb"])
async def test_erasures_that_no_agent_has_committed_are_not_done_again(
    make_settings: Make, start: Start, store: str
) -> None:
    settings = make_settings(store=store, partitions=1)
    await topics.create(settings)
    first = start("agents", settings)
    erase = sent("u", None, event_type=ERASE)
    await produce(settings, [sent("v"), *[sent("u"), erase] * 200, sent("w"), sent("w", None, event_type=ERASE)])
    await produce(settings, [sent("w")])
    await all_done(settings)
    assert first.metrics()["stream_rec_users_erased_total"] == 201
    assert first.stop() == 0
    written = len(await read_topic(settings, settings.windows_topic))
    assert written == 1 + 400 + 3
    again = settings.model_copy(update={"agents_group": f"{settings.agents_group}-again"})
    second = start("agents", again)
    await all_done(again)
    assert second.metrics()["stream_rec_events_read_again_total"] == 404
    await produce(settings, [sent("u")])
    await all_done(again)
    assert len(await read_topic(settings, settings.windows_topic)) == written + 1
    assert {user: made.n for user, made in (await windows_in(settings)).items()} == {"u": 1, "v": 1, "w": 1}


async def test_a_user_who_is_erased_again_and_again_delays_nobody_by_commits(
    make_settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = make_settings(partitions=1)
    await topics.create(settings)
    commits = 0
    commit = Consumer._commit

    async def counted(self: Consumer, offsets: Mapping[TP, int]) -> bool:
        nonlocal commits
        commits += 1
        return await commit(self, offsets)

    monkeypatch.setattr(Consumer, "_commit", counted)
    monkeypatch.setattr(agents, "TELL_S", 3)
    bad = [Sent(b"u", b"{"), Sent(None, b"{"), Sent(b"u", b"{")]
    await produce(settings, [*bad, *[sent("u"), sent("u", None, event_type=ERASE)] * 1_500, sent("innocent")])
    registry = CollectorRegistry()
    found = await describe_topics(access(settings), *access_control.agents(settings))
    app = agents.build(settings, AgentMetrics(registry), Health(settings.ready_lag), tmp_path / "agents", found)
    running = asyncio.ensure_future(app.start())
    await have_windows(settings, "innocent")

    async def said() -> bool:
        return "refused in the last minute: 2 broken JSON, 1 empty key" in caplog.text

    await until(said)
    await app.stop()
    await running
    assert registry.get_sample_value("stream_rec_users_erased_total") == 1_500
    assert commits < 1_500  # twice a second, however many erasures


async def test_rocksdb_keeps_the_windows_and_leaves_no_files(make_settings: Make, start: Start) -> None:
    settings = make_settings(store="rocksdb", capacity=8)
    await topics.create(settings)
    first = start("agents", settings)
    await shop(settings, rounds=12)
    await assert_windows_follow_from_the_log(settings)
    users = first.metrics()["stream_rec_users"]
    assert first.stop() == 0
    second = start("agents", settings)
    second.wait_for("agents ready: 2 partitions")
    assert second.metrics()["stream_rec_users"] == users
    await shop(settings, rounds=6)
    await assert_windows_follow_from_the_log(settings)
    assert second.stop() == 0
    assert not list((settings.cache_dir / "agents").iterdir())


@pytest.mark.parametrize("store", ["memory", "rocksdb"])
async def test_a_user_of_two_partitions_has_a_window_in_each(make_settings: Make, start: Start, store: str) -> None:
    settings = make_settings(store=store)
    await topics.create(settings)

    async def send(*partitions: int, **fields: str) -> None:
        async with AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers) as producer:
            for number, partition in enumerate(partitions):
                key, value = sent("u", **{"item": f"{number}", **fields})
                await producer.send_and_wait(settings.events_topic, value, key=key, partition=partition)

    async def held() -> dict[int, int | None]:
        await all_done(settings)
        records = await read_topic(settings, settings.windows_topic)
        return {one.partition: one.value and read_window(one.value).n for one in records}

    first = start("agents", settings)
    await send(0, 0, 0, 1, 0, 1)
    assert await held() == {0: 4, 1: 2}
    assert first.metrics()["stream_rec_users_in_several_partitions_total"] == 1
    assert first.metrics()["stream_rec_events_read_again_total"] == 0
    assert "a user's events come by several partitions" in first.said
    assert first.stop() == 0
    second = start("agents", settings)
    await send(1)
    await send(0, event_type=ERASE)
    assert await held() == {0: None, 1: 3}
    assert second.metrics()["stream_rec_users"] == 1


async def test_what_others_wrote_among_the_windows_is_passed_over(make_settings: Make, start: Start) -> None:
    settings = make_settings()
    await topics.create(settings)
    foreign = encode(Window("somebody else", 1, 0, 10**6, 0.0, (WindowEvent("tea", "view", 0.0),)))
    garbage = {"a": b"no JSON", "b": b"", "c": foreign, "d": b"\xff", "e": b"[" * 30_000}
    await produce(settings, [Sent(user.encode(), value) for user, value in garbage.items()], settings.windows_topic)
    await produce_batch(settings, batches.UNREADABLE, settings.windows_topic, partition=0)
    options = {"bootstrap_servers": settings.bootstrap_servers, "transactional_id": settings.windows_topic}
    async with AIOKafkaProducer(**options) as producer, producer.transaction():
        await producer.send_and_wait(settings.windows_topic, None, key=b"f", partition=1)  # with a marker behind it
    part = start("agents", settings)
    part.wait_for("agents ready")
    await produce(settings, [sent(user) for user in garbage])
    await all_done(settings)
    assert {user: (await windows_in(settings))[user].n for user in garbage} == dict.fromkeys(garbage, 1)
    assert part.metrics()["stream_rec_agent_windows_unreadable_total"] == len(garbage)
    assert "can't be read" in part.said


@pytest.mark.parametrize("store", ["memory", "rocksdb"])
async def test_an_event_whose_window_kafka_has_come_to_refuse_is_a_dead_letter_and_the_rest_goes_on(
    make_settings: Make, start: Start, store: str
) -> None:
    settings = make_settings(partitions=1, capacity=8, store=store)
    await topics.create(settings)
    part = start("agents", settings)
    await produce(settings, [sent(user, "i" * 200) for user in ("full", "full", "new", "gone")])
    await all_done(settings)
    await alter(settings, settings.windows_topic, max_message_bytes="1050")
    burst = [sent(user, size * "i") for size in (200, 200, 200, 9) for user in ("full", "new", "gone", "other")]
    burst[6] = sent("gone", None, event_type=ERASE)
    await produce(settings, [*burst, Sent(b"full", b"no JSON")])
    await all_done(settings)
    letters = await read_topic(settings, settings.dead_letter_topic)
    refused = {int(dict(letter.headers)["offset"]): dict(letter.headers)["reason"] for letter in letters}
    assert len(refused) == len(letters)
    assert sorted(refused.values()) == [b"broken JSON"] + [b"window too large"] * 3
    log = await read_topic(settings, settings.events_topic)
    found = await windows_in(settings)
    topic = (await describe_topics(access(settings), *on("Read", settings.events_topic)))[settings.events_topic]
    assert found == expected([record for record in log if record.offset not in refused], settings, topic.id)
    assert {user: made.n for user, made in found.items()} == {"full": 4, "new": 4, "gone": 2, "other": 4}
    assert part.running


async def test_a_dead_letter_that_kafka_has_come_to_refuse_is_cut_shorter(make_settings: Make, start: Start) -> None:
    settings = make_settings(partitions=1)
    await topics.create(settings)
    part = start("agents", settings)
    part.wait_for("agents ready")
    limit = topics.DEAD_LETTER_ROOM + 100
    await alter(settings, settings.dead_letter_topic, max_message_bytes=str(limit))
    await produce(settings, [Sent(None, bytes(limit)), sent("u")])
    await all_done(settings)
    (letter,) = await read_topic(settings, settings.dead_letter_topic)
    assert letter.value == bytes(100)
    assert dict(letter.headers)["truncated"] == b"from 0 and %d bytes" % limit
    assert (await windows_in(settings))["u"].n == 1
    assert part.running


async def test_an_agent_survives_a_restart_of_kafka(make_settings: Make, start: Start, tmp_path: Path) -> None:
    kept = Broker(tmp_path / "kafka").start()
    settings = make_settings(bootstrap_servers=kept.bootstrap, capacity=8)
    await topics.create(settings)
    part = start("agents", settings)
    await shop(settings, rounds=5)
    await all_done(settings)
    kept.stop()
    with Broker(tmp_path / "kafka", kept.port):
        await shop(settings, rounds=5)
        await assert_windows_follow_from_the_log(settings)
        assert part.stop() == 0


async def test_missing_topics_are_named(make_settings: Make, start: Start) -> None:
    settings = make_settings()
    part = start("agents", settings)
    assert part.wait() == 2
    assert f"topic {settings.windows_topic} does not exist: run 'stream-rec topics create'" in part.said
    assert "Traceback" not in part.said


async def test_topics_that_do_not_fit_together_are_named(make_settings: Make, start: Start) -> None:
    settings = make_settings(partitions=1)
    await topics.create(settings)
    part = start("agents", settings.model_copy(update={"events_topic": (await topics_of_another(make_settings))}))
    assert part.wait() == 2
    assert f"has 3 partitions and {settings.windows_topic} 1" in part.said


@pytest.mark.parametrize("topic", ["windows_topic", "dead_letter_topic"])
async def test_a_topic_that_takes_less_than_it_may_be_given_is_named(
    make_settings: Make, start: Start, topic: str
) -> None:
    settings = make_settings()
    await topics.create(settings)
    await alter(settings, getattr(settings, topic), max_message_bytes="100000")
    part = start("agents", settings)
    assert part.wait() == 2
    assert f"topic {getattr(settings, topic)} takes records of up to 100000 bytes" in part.said.splitlines()[-1]
    assert "Traceback" not in part.said


async def topics_of_another(make_settings: Make) -> str:
    other = make_settings(partitions=3)
    await topics.create(other)
    return other.events_topic


async def test_without_a_broker_it_says_what_to_do(make_settings: Make, start: Start) -> None:
    part = start("agents", make_settings(bootstrap_servers="127.0.0.1:1", fail_fast=True))
    assert part.wait() == 2
    assert "no Kafka broker answers at 127.0.0.1:1: start one with" in part.said
    assert len(part.said.splitlines()) == 1


async def test_a_taken_metrics_port_is_named(running: Running, start: Start) -> None:
    port = int(running.part.wait_for(r"metrics on http://\S+:(\d+)/")[1])
    part = start("agents", running.settings.model_copy(update={"agents_metrics_port": port}))
    assert part.wait() == 2
    assert f"cannot serve metrics on 127.0.0.1:{port}" in part.said
