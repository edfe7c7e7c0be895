import asyncio
import gc
import os
import shutil
import signal
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
import torch
from prometheus_client import CollectorRegistry

from stream_rec.config import Settings
from stream_rec.errors import ModelError
from stream_rec.health import Health
from stream_rec.kafka import access_control, topics
from stream_rec.kafka.access_control import describe_topics
from stream_rec.kafka.connection import access
from stream_rec.kafka.publish import publish_items
from stream_rec.kafka.topic_guard import TopicGuard
from stream_rec.messages import Item, Recommendation, Window
from stream_rec.metrics import WorkerMetrics
from stream_rec.models import model_store
from stream_rec.serving.load import load_engine
from stream_rec.worker.loop import InferenceLoop
from stream_rec.worker.model_runner import ModelRunner
from tests.e2e.kafka import read_topic, until
from tests.e2e.process import Part
from tests.e2e.windows import all_done, answers, stream, windows, write
from tests.tiny import CAPACITY, STRIDE, items, tiny_model

pytestmark = pytest.mark.e2e

Start = Callable[[str, Settings], Part]
USERS = 20
GIVEN = {"capacity": CAPACITY, "stride": STRIDE, "watch_model_s": 0.1, "coalesce": False}


class Models(NamedTuple):
    link: Path
    """What the worker reads; points to `old` at first."""
    old: Path
    new: Path
    versions: tuple[str, str]

    def point_to(self, folder: Path) -> None:
        """In one move, as one should."""
        aside = self.link.with_name("aside")
        aside.symlink_to(folder)
        aside.replace(self.link)


@pytest.fixture
def models(tmp_path: Path) -> Models:
    """Two models with other weights, other rows for the same items, another end of the training log."""
    old = tiny_model()
    new = tiny_model()
    with torch.no_grad():
        for weight in new.encoder.parameters():
            weight.mul_(0.8)
    config = msgspec.structs.replace(new.config, trained_until=2_000.0)
    new = new._replace(items=new.items[::-1], vectors=new.vectors[::-1], config=config)
    versions = (model_store.save(old, tmp_path / "old"), model_store.save(new, tmp_path / "new"))
    models = Models(tmp_path / "model", tmp_path / "old", tmp_path / "new", versions)
    models.point_to(models.old)
    return models


@pytest.fixture
async def settings(make_settings: Callable[..., Settings], models: Models) -> Settings:
    made = make_settings(model=models.link, partitions=1, **GIVEN)
    await topics.create(made)
    return made


@asynccontextmanager
async def traffic(settings: Settings) -> AsyncIterator[list[Window]]:
    """Windows that are written as long as the context lasts, a round every 50 ms or slower; grows as they are."""
    made: list[Window] = []
    endless = stream(USERS)
    over = asyncio.Event()

    async def go_on() -> None:
        while not over.is_set():
            made.extend(islice(endless, USERS))
            await write(settings, made[-USERS:])
            await asyncio.sleep(0.05)

    writing = asyncio.create_task(go_on())
    yield made
    over.set()
    await writing


def events_of(some: Sequence[Window]) -> Counter[tuple[str, int]]:
    return Counter((one.user_id, one.n) for one in some)


def events_answered(some: Sequence[Recommendation]) -> Counter[tuple[str, int]]:
    return Counter((one.user_id, one.seq) for one in some)


def by_event(answers: Sequence[Recommendation]) -> dict[tuple[str, int], Recommendation]:
    return {(one.user_id, one.seq): one for one in answers}


def refused(part: Part) -> float:
    return part.metrics()['stream_rec_model_loads_total{outcome="refused"}']


async def test_a_new_model_takes_over_between_two_steps_and_answers_as_one_that_was_started_with_it(
    settings: Settings, models: Models, start: Start
) -> None:
    await publish_items([Item("new", title="a new thing", category="c1", vector=items()[1].vector)], settings)
    part = start("worker", settings)
    part.wait_for("worker ready")
    loaded = part.metrics()["stream_rec_model_loaded_timestamp_seconds"]

    async def answered_by(model: str) -> bool:
        return part.metrics().get(f'stream_rec_recommendations_total{{model="{model}"}}', 0) > 5 * USERS

    async with traffic(settings) as made:
        await until(partial(answered_by, models.versions[0]))
        models.point_to(models.new)
        await until(partial(answered_by, models.versions[1]))
    await all_done(settings)
    got = await answers(settings)
    assert events_answered(got) == events_of(made)
    assert [version for version, _ in groupby(one.model for one in got)] == [*models.versions]
    metrics = part.metrics()
    assert metrics['stream_rec_model_loads_total{outcome="loaded"}'] == 2
    assert metrics["stream_rec_model_loaded_timestamp_seconds"] > loaded
    assert metrics['stream_rec_items{available="yes"}'] == len(items()) + 1
    assert part.stop() == 0
    names = ("worker_group", "recommendations_topic")
    fresh = settings.model_copy(update={name: f"{getattr(settings, name)}-fresh" for name in names})
    await topics.create(fresh)
    start("worker", fresh)
    await all_done(fresh)
    want = {(one.user_id, one.seq): one for one in await answers(fresh)}
    for one in got:
        if one.model == models.versions[1]:
            other = want[one.user_id, one.seq]
            assert [ranked.item_id for ranked in one.items] == [ranked.item_id for ranked in other.items]
            assert [ranked.score for ranked in one.items] == pytest.approx([r.score for r in other.items], abs=2e-3)


async def test_models_change_while_partitions_move_and_nothing_is_lost_or_doubled(
    make_settings: Callable[..., Settings], models: Models, start: Start
) -> None:
    settings = make_settings(model=models.link, partitions=4, **GIVEN)
    await topics.create(settings)
    first = start("worker", settings)
    first.wait_for("worker ready")

    async def changed(times: int) -> bool:
        return first.said.count("is followed by") == times

    async with traffic(settings) as made:
        second = start("worker", settings)
        changes = 0
        while "worker ready" not in second.said:
            models.point_to((models.new, models.old)[changes % 2])
            changes += 1
            await until(partial(changed, changes))
        models.point_to((models.new, models.old)[changes % 2])
        assert await asyncio.to_thread(second.stop) == 0
        await until(partial(changed, changes + 1))
    await all_done(settings)
    got = await answers(settings)
    assert events_answered(got) == events_of(made)
    assert {one.model for one in got} == {*models.versions}


async def test_a_model_that_changes_before_a_worker_has_partitions_is_served_once_it_has(
    settings: Settings, models: Models, start: Start
) -> None:
    other = start("worker", settings)
    other.wait_for("worker ready")
    part = start("worker", settings)
    part.wait_for("metrics on")
    other.signal(signal.SIGSTOP)  # the group waits for it for seconds, and who joins for the group

    async def loaded() -> bool:
        return part.metrics().get('stream_rec_model_loads_total{outcome="loaded"}') == 1

    await until(loaded)
    models.point_to(models.new)
    part.wait_for(f"is followed by {models.versions[1]}")
    part.wait_for("worker ready: 1 partitions")
    other.kill()
    made = windows(USERS, rounds=3)
    await write(settings, made)
    await all_done(settings)
    assert events_answered(await answers(settings)) == events_of(made)
    assert refused(part) == 0
    assert part.stop() == 0


async def test_a_folder_that_is_no_whole_model_is_refused_in_one_line_and_the_old_model_goes_on(
    settings: Settings, models: Models, start: Start, tmp_path: Path
) -> None:
    damaged, unfinished = tmp_path / "damaged", tmp_path / "unfinished"
    for copy in (damaged, unfinished):
        shutil.copytree(models.new, copy)
    os.truncate(damaged / "encoder.safetensors", 1_000)
    (unfinished / "config.json").unlink()
    part = start("worker", settings)
    part.wait_for("worker ready")
    assert refused(part) == 0
    made = windows(USERS, rounds=3)
    bad = (damaged, unfinished, tmp_path / "nowhere")
    for number, path in enumerate(bad, 1):
        models.point_to(path)

        async def seen(number: int = number) -> bool:
            return refused(part) == number

        await until(seen)
        await write(settings, made[(number - 1) * USERS : number * USERS])
        await all_done(settings)
    assert {one.model for one in await answers(settings)} == {models.versions[0]}
    models.point_to(models.new)
    part.wait_for(f"is followed by {models.versions[1]}")
    assert refused(part) == len(bad)
    lines = [line for line in part.said.splitlines() if " INFO " not in line]
    assert [f"model {models.versions[0]} goes on, a new one is refused" in line for line in lines] == [True] * len(bad)


async def test_a_signal_has_the_folder_read_at_once_and_the_same_model_changes_nothing(
    settings: Settings, models: Models, start: Start
) -> None:
    part = start("worker", settings.model_copy(update={"watch_model_s": 0}))
    part.wait_for("worker ready")
    part.signal(signal.SIGHUP)
    part.wait_for(f"model {models.versions[0]} goes on: it is what the folder holds")
    models.point_to(models.new)
    part.signal(signal.SIGHUP)
    part.wait_for(f"model {models.versions[0]} is followed by {models.versions[1]}")
    assert refused(part) == 0


async def test_users_who_were_active_are_encoded_before_their_next_event(
    settings: Settings, models: Models, start: Start
) -> None:
    made = windows(USERS, rounds=4)
    part = start("worker", settings)
    await write(settings, made[: 3 * USERS])
    await all_done(settings)
    models.point_to(models.new)
    part.wait_for("is followed by")

    async def encoded() -> bool:
        return part.metrics()["stream_rec_cached_users"] == USERS

    await until(encoded)
    misses = part.metrics()['stream_rec_cache_lookups_total{result="miss"}']
    await write(settings, made[3 * USERS :])
    await all_done(settings)
    assert part.metrics()['stream_rec_cache_lookups_total{result="miss"}'] == misses
    assert (await answers(settings))[-1].model == models.versions[1]


async def test_a_model_that_is_out_of_service_gives_its_memory_back(settings: Settings) -> None:
    host = await ModelRunner.open(settings, WorkerMetrics(CollectorRegistry()), load_engine)
    await host.follow_catalog()
    cache = weakref.ref(host.engine.incremental.cache)
    gc.disable()
    try:
        await host.close()
        assert cache() is None
    finally:
        gc.enable()


async def guard_of(settings: Settings, health: Health) -> TopicGuard:
    return TopicGuard(
        access(settings), await describe_topics(access(settings), *access_control.worker(settings)), health
    )


async def test_a_model_that_turns_bad_after_the_swap_is_followed_by_the_one_before(
    settings: Settings, models: Models
) -> None:
    metrics, health = WorkerMetrics(CollectorRegistry()), Health(0)
    stop, made = asyncio.Event(), windows(USERS, rounds=3)
    hosts = [
        await ModelRunner.open(settings.model_copy(update={"model": folder}), metrics, load_engine)
        for folder in (models.old, models.new)
    ]
    for host in hosts:
        await host.follow_catalog()
    worker = InferenceLoop(settings, hosts[0], metrics, health, await guard_of(settings, health))
    serving = asyncio.create_task(worker.run(stop))
    await write(settings, made[:USERS])
    await all_done(settings)
    await worker.swap(hosts[1])
    await write(settings, made[USERS : 2 * USERS])
    await all_done(settings)
    with torch.no_grad():
        hosts[1].engine._encoder.out.weight.fill_(torch.nan)
    await write(settings, made[2 * USERS :])
    await all_done(settings)
    stop.set()
    await serving
    await worker.runner.close()
    got = await answers(settings)
    assert events_answered(got) == events_of(made)
    assert [version for version, _ in groupby(one.model for one in got)] == [*models.versions, models.versions[0]]
    assert metrics.model_loads.labels("reverted")._value.get() == 1
    assert not await read_topic(settings, settings.dead_letter_topic)


async def test_a_model_that_turns_bad_and_has_none_before_it_ends_the_worker_with_a_line(
    settings: Settings, models: Models
) -> None:
    metrics, health = WorkerMetrics(CollectorRegistry()), Health(0)
    host = await ModelRunner.open(settings, metrics, load_engine)
    await host.follow_catalog()
    worker = InferenceLoop(settings, host, metrics, health, await guard_of(settings, health))
    with torch.no_grad():
        host.engine._encoder.out.weight.fill_(torch.nan)
    await write(settings, windows(USERS, rounds=1))
    with pytest.raises(ModelError, match="probe windows"):
        await worker.run(asyncio.Event())
    await host.close()
    assert not await read_topic(settings, settings.dead_letter_topic)
