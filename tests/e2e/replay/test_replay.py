import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition

from stream_rec.config import Settings
from stream_rec.errors import UserError
from stream_rec.evaluation.baselines import Baselines
from stream_rec.kafka import topics
from stream_rec.kafka.publish import Publisher
from stream_rec.messages import ERASE, Event, RankedItem, Recommendation, Rejected, encode, read_event
from stream_rec.replay.command import replay
from stream_rec.replay.evaluation_consumer import EvaluationConsumer, following
from stream_rec.replay.producer import at_once, faster, feed
from tests.batches import UNREADABLE
from tests.e2e.kafka import produce_batch, read_topic, until

pytestmark = pytest.mark.e2e

ITEMS = ["tea", "cup", "pot"]


def log_of(users: int, rounds: int) -> list[Event]:
    """Every user walks tea, cup, pot, tea, ...; the timestamps are one second apart."""
    return [
        Event(f"user {user}", "view", 1_000.0 + turn * users + user, ITEMS[turn % 3])
        for turn in range(rounds)
        for user in range(users)
    ]


def next_of(item: str) -> tuple[RankedItem, ...]:
    at = ITEMS.index(item)
    return tuple(RankedItem(ITEMS[(at + step) % 3], 1.0 / step, 0.3) for step in (1, 2, 3))


class FakeWorker:
    """Stands for agents and worker: reads events, refuses what `read_event` refuses, and answers what it is told to.

    It answers only the newest event of a user in a batch, in transactions, and aborts one with a wrong answer before
    each of them.
    """

    def __init__(self, settings: Settings, answers: Callable[[Event], bool]) -> None:
        self._settings = settings
        self._answers = answers
        self._counts: defaultdict[str, int] = defaultdict(int)

    async def run(self) -> None:
        settings = self._settings
        async with (
            AIOKafkaConsumer(
                settings.events_topic, bootstrap_servers=settings.bootstrap_servers, auto_offset_reset="earliest"
            ) as consumer,
            AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers) as plain,
            AIOKafkaProducer(
                bootstrap_servers=settings.bootstrap_servers,
                transactional_id=settings.events_topic,
                retry_backoff_ms=5,
            ) as transactional,
        ):
            await consumer.seek_to_beginning()
            while True:
                for partition, records in (await consumer.getmany(timeout_ms=50, max_records=40)).items():
                    newest = {event.user_id: (event, at) for event, at in await self._accepted(records, plain)}
                    if newest:
                        await self._publish(transactional, partition, newest, commit=False)
                        await self._publish(transactional, partition, newest, commit=True)

    async def _accepted(self, records: list[ConsumerRecord], plain: AIOKafkaProducer) -> list[tuple[Event, int]]:
        accepted = []
        for record in records:
            try:
                event = read_event(
                    record.key,
                    record.value,
                    event_types=self._settings.event_types,
                    now=record.timestamp / 1_000,
                    max_bytes=1_000,
                    max_future_s=300,
                )
            except Rejected:
                headers = {"topic": record.topic, "partition": str(record.partition), "offset": str(record.offset)}
                await plain.send_and_wait(
                    self._settings.dead_letter_topic,
                    record.value,
                    key=record.key,
                    headers=[(name, text.encode()) for name, text in headers.items()],
                )
            else:
                accepted.append((event, record.offset))
        return accepted

    async def _publish(
        self, producer: AIOKafkaProducer, partition: TopicPartition, newest: dict[str, tuple[Event, int]], commit: bool
    ) -> None:
        await producer.begin_transaction()
        for user, (event, offset) in newest.items():
            value = None
            if event.item_id is not None:
                if not self._answers(event):
                    continue
                self._counts[user] += 1
                items = next_of(event.item_id) if commit else ()
                value = encode(Recommendation(user, self._counts[user], offset, event.timestamp, items, {}, (), "fake"))
            await producer.send(
                self._settings.recommendations_topic, value, key=user.encode(), partition=partition.partition
            )
        await (producer.commit_transaction() if commit else producer.abort_transaction())


@contextlib.asynccontextmanager
async def worker(settings: Settings, answers: Callable[[Event], bool] = lambda _event: True) -> AsyncIterator[None]:
    task = asyncio.create_task(FakeWorker(settings, answers).run())
    try:
        yield
        if task.done():
            task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def settings(make_settings: Callable[..., Settings]) -> Settings:
    made = make_settings()
    await topics.create(made)
    return made


async def test_feeding_keeps_each_users_order_and_every_event(settings: Settings) -> None:
    log = log_of(users=50, rounds=40)
    assert (await feed(log, settings, limit=1_500))[::2] == (1_500, True)
    records = await read_topic(settings, settings.events_topic)
    assert len(records) == 1_500
    by_user: defaultdict[bytes | None, list[bytes | None]] = defaultdict(list)
    for record in records:
        by_user[record.key].append(record.value)
    assert by_user == {
        f"user {user}".encode(): [encode(event) for event in log[:1_500] if event.user_id == f"user {user}"]
        for user in range(50)
    }


async def test_a_feed_that_is_stopped_tells_how_much_kafka_has(settings: Settings) -> None:
    stop = asyncio.Event()

    def enough(sent: int) -> None:
        if sent >= 1_000:
            stop.set()

    def endless() -> Iterator[Event]:
        while True:
            yield from log_of(users=5, rounds=1)

    fed = await feed(endless(), settings, stop=stop, on_sent=enough)
    assert not fed.finished
    assert fed.events == len(await read_topic(settings, settings.events_topic))


async def test_a_pace_holds_events_back_until_they_are_due(settings: Settings) -> None:
    log = [Event("u", "view", 1_000.0 + gap, "tea") for gap in (0, 20, 20, 40)]
    await feed(log[:1], settings)  # a new partition may have no leader for some milliseconds
    await feed(log, settings, pace=faster(100))
    at = [record.timestamp for record in await read_topic(settings, settings.events_topic)][1:]
    assert at[1] - at[0] > 100
    assert at[3] - at[2] > 100


async def test_stopping_does_not_wait_for_the_next_event_to_be_due(settings: Settings) -> None:
    stop = asyncio.Event()
    log = [Event("u", "view", at, "tea") for at in (0.0, 1e6)]
    feeding = asyncio.create_task(feed(log, settings, pace=faster(1), stop=stop))
    async with AIOKafkaConsumer(
        settings.events_topic, bootstrap_servers=settings.bootstrap_servers, auto_offset_reset="earliest"
    ) as consumer:
        await consumer.getone()
    stop.set()
    assert (await feeding)[::2] == (1, False)


async def test_the_report_is_measured_from_the_topics(settings: Settings) -> None:
    log = log_of(users=20, rounds=30)
    floors = Baselines((f"user {user}", item) for user in range(20) for item in ITEMS)
    async with worker(settings):
        _, summary = await replay(log, settings, len(log), floors=floors, pace=at_once)
    answers = [one for one in await read_topic(settings, settings.recommendations_topic) if one.value]
    assert summary["events"] == 600
    assert summary["recommendations"] == len(answers)
    assert (summary["lost"], summary["dead_letters"], summary["repeated"]) == (0, 0, 0)
    assert summary["evaluated"] + summary["too_late"] + summary["first_events"] == 600
    assert summary["first_events"] >= 20
    assert 0 <= summary["latency_ms"]["p50"] <= summary["latency_ms"]["p99"]


async def test_only_an_answer_that_was_there_before_the_event_predicted_it(settings: Settings) -> None:
    log = log_of(users=20, rounds=11)
    floors = Baselines((f"user {user}", item) for user in range(20) for item in ITEMS)
    async with following(settings, floors) as follower:
        await feed(log[:200], settings)
        async with worker(settings):  # it begins when all of them have arrived
            await until(lambda: _covers(follower, 200))
            late = follower.summary()
            await feed(log[200:], settings)
            await follower.drain()
    assert late["too_late"] + late["first_events"] == 200
    assert late["too_late"] >= 120  # it takes at most 40 events at a time, and each time answers 20 users at most
    assert (late["evaluated"], late["hit_rate_at_5"]) == (0, None)
    summary = follower.summary()
    assert (summary["too_late"], summary["first_events"]) == (late["too_late"], late["first_events"])
    assert (summary["evaluated"], summary["hit_rate_at_5"]) == (20, 1.0)  # three items, all of them in each answer
    assert summary["floors"] == {"popularity": 1.0, "markov": 1.0}


async def _covers(follower: EvaluationConsumer, events: int) -> bool:
    return follower.prequential.events == events and not follower.prequential.lost()


async def test_dead_letters_are_no_events_and_an_erasure_is_no_loss(settings: Settings) -> None:
    log = log_of(users=4, rounds=3)
    odd = [
        Event("user 0", "share", 1.0, "tea"),
        Event("user 1", "view", 1e12, "tea"),
        Event("user 2", ERASE, 1.0),
        Event("user 3", "view", 1.0, "x" * 1_100),
    ]
    async with worker(settings), following(settings, Baselines()) as follower:
        await feed([*log, *odd, *log], settings)
        async with Publisher(settings, settings.events_topic) as publisher:
            await publisher.send("user 1", b'{"user_id": "user 1"')
            await publisher.send("user 1", encode(Event("user 2", ERASE, 1.0)))
        await follower.drain()
        summary = follower.summary()
    assert (summary["events"], summary["dead_letters"], summary["lost"]) == (25, 5, 0)
    assert sum(summary["refused"].values()) == 5
    assert set(summary["by_event_type"]) <= {"view"}


async def test_what_is_never_answered_is_lost(settings: Settings) -> None:
    async with worker(settings, answers=lambda event: event.user_id != "user 2"):
        log = log_of(users=4, rounds=5)
        _, summary = await replay(log, settings, len(log), floors=Baselines(), quiet_s=1, pace=at_once)
    assert (summary["events"], summary["lost"]) == (20, 5)


async def test_reading_the_topics_again_from_the_beginning_gives_the_same_report(settings: Settings) -> None:
    async with worker(settings), following(settings, Baselines()) as live:
        await feed(log_of(users=10, rounds=12), settings)
        await live.drain()
    for topic in (settings.events_topic, settings.recommendations_topic, settings.dead_letter_topic):
        await produce_batch(settings, UNREADABLE, topic)
    async with following(settings, Baselines(), since="beginning") as again:
        await again.drain()
    counts = ("events", "recommendations", "lost", "evaluated", "too_late", "first_events")
    same = (*counts, "latency_ms", "hit_rate_at_1", "mrr")
    assert {name: live.summary()[name] for name in same} == {name: again.summary()[name] for name in same}
    assert live.newest is not None


async def test_a_missing_topic_and_a_missing_broker_are_told_in_one_line(
    make_settings: Callable[..., Settings],
) -> None:
    with pytest.raises(UserError, match="does not exist"):
        await feed(log_of(1, 1), make_settings())
    with pytest.raises(UserError, match="no Kafka broker answers"):
        async with following(make_settings(bootstrap_servers="127.0.0.1:1"), Baselines()):
            pass


async def test_an_event_that_kafka_refuses_is_told_in_one_line(settings: Settings) -> None:
    huge = Event("u", "view", 1.0, "tea", context={"note": "x" * (settings.max_message_bytes + 1)})
    with pytest.raises(UserError, match="refused"):
        await feed([huge], settings)
