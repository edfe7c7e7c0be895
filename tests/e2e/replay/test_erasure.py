"""Erasing a user through running agents and a running worker, and what the receipt says."""

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.partitioner import DefaultPartitioner

from stream_rec import erasure
from stream_rec.client import latest
from stream_rec.config import Settings
from stream_rec.errors import UserError
from stream_rec.evaluation.baselines import Baselines
from stream_rec.kafka import topics
from stream_rec.messages import read_recommendation
from stream_rec.models import model_store
from stream_rec.pseudonyms import naming
from stream_rec.replay.evaluation_consumer import following
from tests.e2e.kafka import produce, read_topic, sent, settings_for, until
from tests.e2e.process import Part
from tests.tiny import CAPACITY, STRIDE, tiny_model

pytestmark = pytest.mark.e2e

SECRET = "mallory-4711"


class Running(NamedTuple):
    settings: Settings
    agents: Part
    worker: Part


@pytest.fixture(scope="module")
def running(bootstrap: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Agents and a worker that the tests share; each test has users of its own, who go by pseudonyms."""
    home = tmp_path_factory.mktemp("forget")
    model_store.save(tiny_model(), home / "model")
    (home / "key").write_bytes(bytes(range(32)))
    limits = {"capacity": CAPACITY, "stride": STRIDE, "model": home / "model", "coalesce": False}
    settings = settings_for(home, bootstrap_servers=bootstrap, pseudonym_key_file=home / "key", **limits)
    asyncio.run(topics.create(settings))
    agents, worker = (Part(command, settings, home / f"{command}.log") for command in ("agents", "worker"))
    agents.wait_for("agents ready")
    worker.wait_for("worker ready")
    yield Running(settings, agents, worker)
    agents.kill()
    worker.kill()


async def answered(settings: Settings, user: str) -> None:
    async def there() -> bool:
        return await latest(user, settings) is not None

    await until(there)


async def test_the_receipt_says_where_the_tombstones_stand_and_what_remains(
    running: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, agents, worker = running
    called = naming(settings.pseudonym_key_file)(SECRET)
    elsewhere = 1 - DefaultPartitioner()(SECRET.encode(), [0, 1], [0, 1])  # a producer with another partitioner
    async with (
        following(settings, Baselines()) as follower,
        AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers) as producer,
    ):
        for n in range(3):
            key, value = sent(SECRET, f"i{n}")
            await producer.send_and_wait(settings.events_topic, value, key=key, partition=elsewhere)
        await follower.drain()
    summary = follower.summary()
    assert (summary["recommendations"], summary["lost"]) == (3, 0)
    assert await erasure.run(SECRET, settings, 30) == 0
    receipt = json.loads(capsys.readouterr().out)
    assert (receipt["user_id"], receipt["returned"], len(receipt["checked"])) == (SECRET, False, 4)
    assert receipt["asked"]["partition"] == elsewhere
    for name, topic in (("window", settings.windows_topic), ("recommendation", settings.recommendations_topic)):
        place = receipt[name]
        assert (place["topic"], place["partition"]) == (topic, elsewhere)
        at = {(one.partition, one.offset): one for one in await read_topic(settings, topic)}
        tombstone = at[place["partition"], place["offset"]]
        assert (tombstone.key, tombstone.value) == (called.encode(), None)
        assert all(SECRET.encode() not in one.key + (one.value or b"") for one in at.values())
    assert any("cache_dir of workers that do not run" in one["where"] for one in receipt["remains"])
    remains = {one["where"]: one["until"] for one in receipt["remains"] if one["where"].startswith("topic ")}
    assert remains.keys() == {f"topic {name}" for name in settings.topics if name != settings.items_topic}
    assert all(remains.values())
    assert SECRET not in agents.said + worker.said


async def test_who_comes_back_begins_anew_and_the_receipt_says_so(running: Running) -> None:
    settings = running.settings
    asked = await erasure.ask("back", settings)
    await produce(settings, [sent("back", "i1")])
    await answered(settings, "back")
    receipt = await erasure.receive("back", asked, settings, 30)
    assert (receipt.window, receipt.recommendation, receipt.returned) == (None, None, True)


async def test_a_user_nobody_knows_has_nothing_to_erase(running: Running) -> None:
    asked = await erasure.ask("nobody", running.settings)
    receipt = await erasure.receive("nobody", asked, running.settings, 30)
    assert (receipt.window, receipt.recommendation, receipt.returned) == (None, None, False)


async def test_a_user_is_erased_by_the_pseudonym_too(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    settings = running.settings
    called = naming(settings.pseudonym_key_file)("hidden")
    await produce(settings, [sent("hidden")])
    await answered(settings, "hidden")
    assert await erasure.run(called, settings, 30) == 0
    receipt = json.loads(capsys.readouterr().out)
    for topic, place in ((settings.windows_topic, receipt["window"]), (settings.recommendations_topic, None)):
        newest = [one for one in await read_topic(settings, topic) if one.key == called.encode()][-1]
        assert newest.value is None
        assert place is None or (place["partition"], place["offset"]) == (newest.partition, newest.offset)


async def test_a_user_of_two_partitions_is_erased_in_both(running: Running) -> None:
    settings = running.settings
    called = naming(settings.pseudonym_key_file)("twofold").encode()
    async with AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers) as producer:
        for partition, times in ((0, 3), (1, 1)):
            for n in range(times):
                key, value = sent("twofold", f"i{n}")
                await producer.send_and_wait(settings.events_topic, value, key=key, partition=partition)

    async def newest() -> dict[int, int | None]:
        records = [one for one in await read_topic(settings, settings.recommendations_topic) if one.key == called]
        return {one.partition: one.value and read_recommendation(one.value).seq for one in records}

    async def both() -> bool:
        return await newest() == {0: 3, 1: 1}

    await until(both)
    for part in running[1:]:
        assert "twofold" not in part.said
        assert called.decode() not in part.said
    assert running.agents.metrics()["stream_rec_users_in_several_partitions_total"] == 1
    receipt = await erasure.receive("twofold", await erasure.ask("twofold", settings), settings, 30)
    erased = [receipt, *receipt.also]
    assert {one.asked.partition for one in erased} == {0, 1}
    assert all(one.window and one.recommendation for one in erased)
    assert await newest() == {0: None, 1: None}


async def test_who_lacks_the_agents_key_of_pseudonyms_is_told(running: Running) -> None:
    await produce(running.settings, [sent("keyed")])
    await answered(running.settings, "keyed")
    with pytest.raises(UserError, match="the agents use another key for pseudonyms"):
        await erasure.ask("keyed", running.settings.model_copy(update={"pseudonym_key_file": None}))


async def test_what_agents_have_yet_to_apply_is_erased_where_it_stands(
    make_settings: Callable[..., Settings],
) -> None:
    settings = make_settings()
    await topics.create(settings)
    async with AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers) as producer:
        for partition in (0, 1):
            key, value = sent("u")
            await producer.send_and_wait(settings.events_topic, value, key=key, partition=partition)
    assert {asked.place.partition for asked in await erasure.ask("u", settings)} == {0, 1}


async def test_without_agents_the_erasure_stays_asked_for(
    make_settings: Callable[..., Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = make_settings()
    await topics.create(settings)
    assert await erasure.run("u", settings, 0.5) == 1
    assert "the agents (group" in capsys.readouterr().err
    assert await erasure.run("u", settings, None) == 0
    assert len(await read_topic(settings, settings.events_topic)) == 2
