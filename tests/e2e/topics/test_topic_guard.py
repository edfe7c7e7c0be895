"""Topics that change while agents and workers run, or between two starts."""

from collections.abc import Callable
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from stream_rec import erasure
from stream_rec.config import Settings
from stream_rec.kafka import topics
from stream_rec.kafka.connection import access
from stream_rec.models import model_store
from tests.e2e.kafka import add_partitions, delete, produce, read_topic, sent, until, waiting, windows_in
from tests.e2e.process import Part
from tests.e2e.windows import all_done, answers, windows, write
from tests.tiny import CAPACITY, STRIDE, tiny_model

pytestmark = pytest.mark.e2e

Make = Callable[..., Settings]
Start = Callable[[str, Settings], Part]


@pytest.fixture
async def settings(make_settings: Make, tmp_path: Path) -> Settings:
    model_store.save(tiny_model(), tmp_path / "model")
    made = make_settings(model=tmp_path / "model", capacity=CAPACITY, stride=STRIDE, coalesce=False, partitions=1)
    await topics.create(made)
    return made


async def applied(settings: Settings) -> None:
    """Returns when the agents have committed every event."""

    async def done() -> bool:
        return await waiting(settings, settings.agents_group, settings.events_topic) == 0

    await until(done)


def assert_ended(part: Part, reason: str) -> None:
    assert part.wait() == 2
    assert f"stream-rec: topic {reason}" in part.said
    assert "Traceback" not in part.said


async def test_a_worker_says_that_the_answers_have_too_few_partitions(make_settings: Make, start: Start) -> None:
    settings = make_settings()
    await topics.create(settings)
    await add_partitions(settings, 3, settings.windows_topic)
    part = start("worker", settings)
    name = settings.recommendations_topic
    assert_ended(part, f"{settings.windows_topic} has 3 partitions and {name} 2: give {name} as many\n")


async def test_partitions_that_are_added_end_agents_and_worker(settings: Settings, start: Start) -> None:
    agents, worker = start("agents", settings), start("worker", settings)
    agents.wait_for("agents ready")
    worker.wait_for("worker ready")
    await add_partitions(settings, 3, settings.events_topic)
    assert_ended(agents, f"{settings.events_topic} has 3 partitions now and had 1")
    assert worker.running
    await add_partitions(settings, 3, settings.windows_topic, settings.recommendations_topic)
    assert_ended(worker, f"{settings.windows_topic} has 3 partitions now and had 1")
    again = start("agents", settings), start("worker", settings)
    await produce(settings, [sent(f"u{number}") for number in range(9)])
    await applied(settings)
    await all_done(settings)
    assert {one.user_id for one in await answers(settings)} == {f"u{number}" for number in range(9)}
    assert all(part.running for part in again)


async def test_events_that_were_made_anew_are_all_applied(settings: Settings, start: Start) -> None:
    first = start("agents", settings)
    await produce(settings, [*[sent("known")] * 3, *[sent("erased")] * 3])
    await produce(settings, [sent("bad", event_type="share")])
    await applied(settings)
    await delete(settings, settings.events_topic)
    await topics.create(settings)
    asked = await erasure.ask("erased", settings)
    # as many as were read: a client that asks by name goes on in their midst
    await produce(settings, [*[sent("new")] * 5, sent("bad", event_type="share"), sent("known")])
    assert_ended(first, f"{settings.events_topic} was deleted and created again")
    start("agents", settings)
    start("worker", settings)
    receipt = await erasure.receive("erased", asked, settings, 60)
    assert receipt.window is not None
    assert not receipt.returned
    await applied(settings)
    held = await windows_in(settings)
    assert {user: window and window.n for user, window in held.items()} == {"known": 4, "erased": None, "new": 5}
    assert len(await read_topic(settings, settings.dead_letter_topic)) == 2


async def test_a_commit_that_came_after_a_topic_was_made_anew_does_not_count(settings: Settings, start: Start) -> None:
    first = start("agents", settings)
    await produce(settings, [sent("u") for _ in range(3)])
    await applied(settings)
    partition = TopicPartition(settings.events_topic, 0)
    async with AIOKafkaConsumer(**access(settings), group_id=settings.agents_group, enable_auto_commit=False) as one:
        one.assign([partition])
        stale = (await one._coordinator.fetch_committed_offsets([partition]))[partition]
    assert first.stop() == 0
    await delete(settings, settings.events_topic)
    await topics.create(settings)
    await produce(settings, [sent("v") for _ in range(4)])
    async with AIOKafkaConsumer(**access(settings), group_id=settings.agents_group, enable_auto_commit=False) as one:
        one.assign([partition])
        await one.commit({partition: stale})
    start("agents", settings)
    await applied(settings)
    assert {user: window and window.n for user, window in (await windows_in(settings)).items()} == {"u": 3, "v": 4}


async def test_windows_that_were_made_anew_are_made_from_the_events_and_answered(
    settings: Settings, start: Start
) -> None:
    agents, worker = start("agents", settings), start("worker", settings)
    await produce(settings, [sent("u"), sent("v"), sent("u")])
    await applied(settings)
    await all_done(settings)
    await delete(settings, settings.windows_topic)
    await topics.create(settings)
    for part in (agents, worker):
        assert_ended(part, f"{settings.windows_topic} was deleted and created again")
    start("agents", settings)
    start("worker", settings)

    async def answered() -> bool:
        return len(await answers(settings)) == 6

    await until(answered)
    assert {user: window and window.n for user, window in (await windows_in(settings)).items()} == {"u": 2, "v": 1}
    seen = [(one.user_id, one.seq) for one in await answers(settings)]
    assert seen == 2 * [("u", 1), ("v", 1), ("u", 2)]


async def test_answers_whose_topic_was_made_anew_are_given_again(settings: Settings, start: Start) -> None:
    made = windows(users=2, rounds=2)
    await write(settings, made)
    first = start("worker", settings)
    await all_done(settings)
    await delete(settings, settings.recommendations_topic)
    await topics.create(settings)
    assert_ended(first, f"{settings.recommendations_topic} was deleted and created again")
    start("worker", settings)

    async def answered() -> bool:
        return len(await answers(settings)) == len(made)

    await until(answered)
