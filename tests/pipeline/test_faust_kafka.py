import asyncio
import gc
import time
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.errors import CommitFailedError, GroupAuthorizationFailedError, IllegalStateError, UnknownError
from faust.types import TP

from stream_rec.pipeline import faust_kafka
from stream_rec.pipeline.faust_kafka import Consumer
from stream_rec.pipeline.faust_producer import UNCONFIRMED, Producer, Write, undo
from stream_rec.pipeline.faust_thread import ConsumerThread


@pytest.fixture
def producer(monkeypatch: pytest.MonkeyPatch) -> Producer:
    """Hands nothing over to Kafka: whether a write is confirmed is the test's to say."""
    monkeypatch.setattr(faust_kafka.driver.Producer, "__init__", lambda *_: None)
    monkeypatch.setattr(faust_kafka.driver.Producer, "__post_init__", lambda *_: None, raising=False)
    monkeypatch.setattr(faust_kafka.driver.Producer, "send_soon", lambda *_: None)
    made = Producer(SimpleNamespace())
    made.__post_init__()
    return made


@pytest.fixture
def consumer(producer: Producer, monkeypatch: pytest.MonkeyPatch) -> Consumer:
    """In no group: that partitions move is the test's to say."""

    async def on_partitions_revoked(*_: Any) -> None:
        pass

    monkeypatch.setattr(faust_kafka.driver.Consumer, "__init__", lambda *_: None)
    monkeypatch.setattr(faust_kafka.driver.Consumer, "on_partitions_revoked", on_partitions_revoked)
    made = Consumer()
    queue = SimpleNamespace(recovering=True)
    made.app = SimpleNamespace(producer=producer, tables=SimpleNamespace(changelog_queue=queue))
    return made


async def test_an_agent_pauses_while_many_writes_are_on_their_way(producer: Producer) -> None:
    writes: list[asyncio.Future[Any]] = [asyncio.get_running_loop().create_future() for _ in range(UNCONFIRMED)]
    for write in writes[:-1]:
        producer.send_soon(write)
    await producer.room()
    producer.send_soon(writes[-1])
    waiting = asyncio.create_task(producer.room())
    for write in writes[: UNCONFIRMED // 2 - 1]:
        write.set_result(None)
    await asyncio.sleep(0.01)
    assert not waiting.done()
    writes[-1].set_result(None)
    async with asyncio.timeout(1):
        await waiting


async def test_partitions_move_once_every_write_has_come_to_kafka(producer: Producer, consumer: Consumer) -> None:
    write: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    producer.send_soon(write)
    revoking = asyncio.create_task(consumer.on_partitions_revoked(set()))
    await asyncio.sleep(0.01)
    assert not revoking.done()
    write.set_result(None)
    async with asyncio.timeout(1):
        await revoking


async def test_a_process_whose_writes_do_not_come_to_kafka_ends_before_it_joins_anew(
    producer: Producer, consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    reasons: list[BaseException] = []
    monkeypatch.setattr(faust_kafka, "REVOKED_S", 0.01)
    monkeypatch.setattr(producer, "give_up", reasons.append)
    producer.send_soon(asyncio.get_running_loop().create_future())
    await consumer.on_partitions_revoked(set())
    assert [type(reason) for reason in reasons] == [TimeoutError]


async def test_a_process_that_cannot_go_back_to_the_last_commits_ends_though_nobody_waits_for_it(
    producer: Producer, consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    reasons: list[BaseException] = []
    monkeypatch.setattr(producer, "give_up", reasons.append)

    async def perform_seek(_: Consumer) -> None:
        await asyncio.sleep(0.05)
        raise GroupAuthorizationFailedError

    monkeypatch.setattr(faust_kafka.driver.Consumer, "perform_seek", perform_seek)
    for name in ("_get_active_partitions", "pause_partitions", "resume_partitions"):
        monkeypatch.setattr(consumer, name, lambda *_: set())
    monkeypatch.setattr(Consumer, "should_stop", False)
    consumer.app.consumer_generation_id = 3
    consumer._sought = None
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await consumer.perform_seek()
    with pytest.raises(GroupAuthorizationFailedError):
        await consumer._sought
    assert [type(reason) for reason in reasons] == [GroupAuthorizationFailedError]


async def test_a_partition_whose_position_is_not_known_yet_ends_no_process(
    consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = TP("events", 0)
    subscriptions = SubscriptionState()
    subscriptions.assign_from_user({TopicPartition(*events)})
    fetcher = SimpleNamespace(_subscriptions=subscriptions)
    thread = SimpleNamespace(
        consumer=consumer,
        time_started=0.0,
        _ensure_consumer=lambda: SimpleNamespace(_fetcher=fetcher),
        _verify_aiokafka_event_path=lambda *_: False,
    )
    consumer.app.monitor = SimpleNamespace()
    consumer.app.topics = SimpleNamespace(acks_enabled_for=lambda _: True)
    monkeypatch.setattr(consumer, "assignment", lambda: {events})
    monkeypatch.setattr(consumer, "sleep", asyncio.sleep)
    monkeypatch.setattr(consumer, "verify_event_path", partial(ConsumerThread.verify_event_path, thread))
    monkeypatch.setattr(Consumer, "should_stop", False)
    await consumer.verify_all_partitions_active()


def _event(offset: int) -> Any:
    class Event(SimpleNamespace):
        """One that can be referred to weakly."""

    return Event(message=SimpleNamespace(tp=TP("events", 0), offset=offset, partition=0))


def test_what_kafka_refused_is_undone_down_to_what_it_has_taken() -> None:
    data = {b"a": b"a3", b"b": b"b2", b"d": b"d1"}
    table = SimpleNamespace(data=data, changelog_topic=SimpleNamespace(get_topic_name=lambda: "windows"))
    refused = [
        Write(_event(1), "windows", b"a", b"a1", None),  # a2, which holds its event, was taken
        Write(_event(2), "windows", b"b", b"b1", None),
        Write(_event(4), "windows", b"c", None, b"c0"),
        Write(_event(3), "windows", b"b", b"b2", b"b1"),
        Write(_event(6), "windows", b"a", b"a3", b"a2"),
        Write(_event(5), "dead-letter", b"d", b"", None),
    ]
    events = undo(refused, table)
    assert [event.message.offset for event in events] == [2, 3, 4, 5, 6]
    assert data == {b"a": b"a2", b"c": b"c0", b"d": b"d1"}


class Late:
    """A consumer thread whose main event loop had to wait ten seconds for a processor; it stops after one round."""

    def __init__(self) -> None:
        self.should_stop = False
        self.last_wakeup_at = time.monotonic() - 10
        self.errors: list[str] = []
        self.log = SimpleNamespace(error=self.errors.append)

    async def sleep(self, _seconds: float) -> None: ...

    async def _wakeup_timer_in_thread(self) -> None:
        self.should_stop = True


async def test_a_process_that_had_to_wait_for_a_processor_logs_no_error_for_it() -> None:
    late = Late()
    await faust_kafka.driver.AIOKafkaConsumerThread._keepalive2(late)
    assert late.errors == ["Thread keepalive is not responding..."]  # or faust has mended it
    late = Late()
    await ConsumerThread._keepalive2(late)
    assert late.errors == []


async def test_a_return_that_fails_when_partitions_have_moved_and_nobody_waits_is_no_traceback(
    consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context))

    async def perform_seek(_: Consumer) -> None:
        await asyncio.sleep(0.02)
        raise IllegalStateError

    monkeypatch.setattr(faust_kafka.driver.Consumer, "perform_seek", perform_seek)
    for name in ("_get_active_partitions", "pause_partitions", "resume_partitions"):
        monkeypatch.setattr(consumer, name, lambda *_: set())
    consumer.app.consumer_generation_id = 3
    consumer._sought = None
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await consumer.perform_seek()
    consumer.app.consumer_generation_id = 4
    await asyncio.wait({consumer._sought})
    consumer._sought = None
    gc.collect()
    await asyncio.sleep(0)
    assert told == []


@pytest.mark.parametrize("trouble", [UnknownError, IllegalStateError, CommitFailedError])
async def test_a_commit_that_kafka_does_not_take_is_tried_again(
    trouble: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[dict[Any, Any]] = []

    async def commit(offsets: dict[Any, Any]) -> None:
        asked.append(offsets)
        if len(asked) == 1:
            raise trouble

    events, moved = TP("events", 0), TP("events", 1)
    thread = SimpleNamespace(assignment=lambda: {events}, _ensure_consumer=lambda: SimpleNamespace(commit=commit))
    assert not await ConsumerThread._commit(thread, {events: 5, moved: 7})
    assert await ConsumerThread._commit(thread, {events: 5, moved: 7})
    assert [[(one.partition, place.offset) for one, place in offsets.items()] for offsets in asked] == [[(0, 5)]] * 2
    assert [(record.levelname, record.exc_info) for record in caplog.records] == [("WARNING", None)]
