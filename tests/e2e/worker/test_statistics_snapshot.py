import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from msgspec import structs
from prometheus_client import CollectorRegistry

from stream_rec.config import Settings
from stream_rec.kafka import topics
from stream_rec.kafka.access_control import cluster_of, describe_topics, on
from stream_rec.kafka.connection import access
from stream_rec.kafka.offset_ranges import OffsetRange
from stream_rec.metrics import WorkerMetrics
from stream_rec.models import model_store
from stream_rec.serving.engine import Engine, Limits
from stream_rec.worker.prewarm import PrewarmQueue
from stream_rec.worker.statistics_sync import MARGIN_S, SnapshotMeta, StatisticsSync, is_valid
from tests.e2e.windows import windows, write
from tests.tiny import CAPACITY, STRIDE, tiny_model

pytestmark = pytest.mark.e2e

MADE = windows(users=5, rounds=4)


@pytest.fixture
async def settings(make_settings: Callable[..., Settings], tmp_path: Path) -> Settings:
    model_store.save(tiny_model(), tmp_path / "model")
    made = make_settings(model=tmp_path / "model", capacity=CAPACITY, stride=STRIDE, partitions=1)
    await topics.create(made)
    await write(made, MADE)
    windows_topic = TopicPartition(made.windows_topic, 0)
    async with AIOKafkaConsumer(**access(made), group_id=made.worker_group, enable_auto_commit=False) as consumer:
        consumer.assign([windows_topic])
        await consumer.commit({windows_topic: len(MADE)})
    return made


def learning_of(settings: Settings) -> StatisticsSync:
    async def called(work: Callable[..., Any], *given: Any) -> Any:
        return work(*given)

    engine = Engine.load(settings.model, settings.cache_dir, Limits(STRIDE), "cpu")
    return StatisticsSync(settings, WorkerMetrics(CollectorRegistry()), engine, PrewarmQueue(10), called)


async def kept(settings: Settings) -> dict[TopicPartition, int]:
    """Leaves a snapshot of the windows topic; returns what it has learned."""
    learning = learning_of(settings)
    await learning.replay_until({TopicPartition(settings.windows_topic, 0): OffsetRange(0, len(MADE))})
    await learning.save_snapshot()
    return learning.learned


async def test_a_snapshot_is_taken_up(settings: Settings) -> None:
    learned, again = await kept(settings), learning_of(settings)
    await again.load_snapshot()
    assert again.learned == learned


async def test_what_is_no_snapshot_is_not_taken_up(settings: Settings) -> None:
    learning = learning_of(settings)
    for body in (b"", b"{}", bytes(100), b"\x10" + bytes(7) + b'{"about":["a"]}]'):
        (settings.cache_dir / "memory.safetensors").write_bytes(body)
        await learning.load_snapshot()
        assert learning.learned == {}
        assert not (settings.cache_dir / "memory.safetensors").exists()


async def test_each_partition_s_own_memory_leaves_none(settings: Settings) -> None:
    own = settings.model_copy(update={"memory": "own"})
    await kept(own)
    assert not (settings.cache_dir / "memory.safetensors").exists()
    await kept(settings)
    await learning_of(own).load_snapshot()
    assert not (settings.cache_dir / "memory.safetensors").exists()


async def test_a_snapshot_holds_for_its_model_and_topic_while_tombstones_do(settings: Settings) -> None:
    now, day = time.time(), 86_400.0
    topic = (await describe_topics(access(settings), *on("Read", settings.windows_topic)))[settings.windows_topic]
    assert topic.id
    about = SnapshotMeta("m", await cluster_of(access(settings)), settings.windows_topic, now, {0: len(MADE)}, topic.id)
    others = {
        "another model": {"version": "n"},
        "another topic": {"topic": settings.events_topic},
        "another cluster": {"cluster": "c"},
        "of a topic that was made anew": {"topic_id": "t"},
        "old": {"taken": now - settings.retention_hours * 3_600},
        "of a topic that was made anew and is shorter": {"offsets": {0: len(MADE) + 1}},
        "of a topic that was made anew and is as long": {"taken": now - 2 * MARGIN_S},
    }
    assert await is_valid(about, settings, "m")
    assert await is_valid(structs.replace(about, taken=now - day, offsets={0: 0}), settings, "m")
    for changes in others.values():
        assert not await is_valid(structs.replace(about, **changes), settings, "m")


async def test_a_snapshot_that_knows_what_the_group_has_yet_to_answer_is_not_taken_up(settings: Settings) -> None:
    await kept(settings)
    later = settings.model_copy(update={"worker_group": f"{settings.worker_group}-later"})
    learning = learning_of(later)
    await learning.load_snapshot()
    assert learning.learned == {}
