import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from aiokafka import TopicPartition
from prometheus_client import CollectorRegistry

from stream_rec.config import Settings
from stream_rec.kafka.access_control import TopicInfo
from stream_rec.messages import Window, encode
from stream_rec.metrics import WorkerMetrics
from stream_rec.models import model_store
from stream_rec.runtime import retry
from stream_rec.serving.engine import Engine, Limits
from stream_rec.worker import statistics_sync as learning_module
from stream_rec.worker.prewarm import PrewarmQueue
from stream_rec.worker.statistics_sync import StatisticsSync
from tests.kafka.records import Record
from tests.tiny import STRIDE, tiny_model, window


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    model_store.save(tiny_model(), tmp_path / "model")
    return Engine.load(tmp_path / "model", tmp_path, Limits(STRIDE), "cpu")


async def called(work: Callable[..., Any], *given: Any) -> Any:
    return work(*given)


def at(offset: int, made: Window) -> Record:
    return Record(made.user_id.encode(), encode(made), offset)


async def test_an_erasure_that_two_readers_have_teaches_nothing_twice(engine: Engine) -> None:
    """While a partition moves, its records may come from both: what its user did since would be learned again."""
    learning = StatisticsSync(Settings(), WorkerMetrics(CollectorRegistry()), engine, PrewarmQueue(10), called)
    learning.learned[TopicPartition("windows", 0)] = 0
    records = [at(0, window("u", 2, ["i1", "i2"])), Record(b"u", None, 1), at(2, window("u", 2, ["i1", "i9"]))]
    memory = engine.memories.extractor(0).memory

    def counts() -> list[float]:
        return memory.popularity.state()["sums"].tolist()

    before = counts()
    assert await learning._learn(records) == 3
    once = counts()
    assert once != before
    assert await learning._learn(records) == 0
    assert counts() == once


async def test_a_partition_s_own_memory_begins_anew_whoever_taught_it(engine: Engine) -> None:
    """One that knows what comes after its partition's last commit would answer those windows with foreknowledge."""
    learning = StatisticsSync(
        Settings(memory="own"), WorkerMetrics(CollectorRegistry()), engine, PrewarmQueue(10), called
    )
    taught, fresh = engine.memories.extractor(3).memory, TopicPartition("windows", 3)
    engine.learn(window("u", 2, ["i1", "i2"]), 3)
    await learning.prepare_partitions([fresh])
    assert engine.memories.extractor(3).memory is not taught


async def test_a_window_that_cannot_be_learned_is_passed_over_and_counted(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = WorkerMetrics(CollectorRegistry())
    learning = StatisticsSync(Settings(), metrics, engine, PrewarmQueue(10), called)
    learning.learned[TopicPartition("windows", 0)] = 0
    learn = engine.learn

    def spoil(taught: Window, number: int) -> None:
        if taught.user_id == "0:bad":
            raise OverflowError
        learn(taught, number)

    monkeypatch.setattr(engine, "learn", spoil)
    records = [at(offset, window(user, 1, ["i1"])) for offset, user in enumerate(["a", "bad", "b"])]
    assert await learning._learn(records) == 3
    known = engine.memories.extractor(0).memory.known
    assert set(known) == {"0:a", "0:b"}
    assert metrics.failures.labels("statistics")._value.get() == 1


@pytest.mark.parametrize("fails", [True, False])
async def test_a_memory_that_cannot_be_saved_ends_nothing_and_is_told(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fails: bool
) -> None:
    metrics = WorkerMetrics(CollectorRegistry())
    place = tmp_path / "file" if fails else tmp_path
    (tmp_path / "file").write_text("")
    learning = StatisticsSync(Settings(cache_dir=place), metrics, engine, PrewarmQueue(10), called)
    learning.learned[TopicPartition("windows", 0)] = 1

    async def cluster(*_: object) -> str:
        return "a cluster"

    async def topic(*_: object, **__: object) -> dict[str, TopicInfo]:
        return {"windows": TopicInfo(1, "an id")}

    monkeypatch.setattr(learning_module, "cluster_of", cluster)
    monkeypatch.setattr(learning_module, "describe_topics", topic)
    await learning.save_snapshot()
    assert metrics.failures.labels("snapshot")._value.get() == fails
    assert bool(learning.troubles) == fails
    monkeypatch.setattr(engine.memories, "pack", None)
    await learning.save_snapshot()
    assert learning.troubles


async def until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110 - what is waited for tells nobody
        await asyncio.sleep(0.001)


class Reader:
    """A consumer of one window after the other; each is read at most once, whoever reads."""

    def __init__(self, records: list[Record]) -> None:
        self._records = records

    async def start(self) -> None:
        """Connects to nothing."""

    async def stop(self) -> None:
        """Holds nothing."""

    def assign(self, partitions: Sequence[TopicPartition]) -> None:
        """Reads what it was made with."""

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Reads in order."""

    async def beginning_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, 0)

    async def getmany(self, **_: int) -> Mapping[TopicPartition, Sequence[Record]]:
        await asyncio.sleep(0.001)
        return {TopicPartition("windows", 0): [self._records.pop(0)]} if self._records else {}


async def test_learning_from_others_begins_again_after_an_error_and_is_told_until_then(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "FIRST_S", 0.01)
    metrics, failing = WorkerMetrics(CollectorRegistry()), True

    async def call(work: Callable[..., Any], *given: Any) -> Any:
        if failing:
            raise ZeroDivisionError
        return work(*given)

    learning = StatisticsSync(Settings(), metrics, engine, PrewarmQueue(10), call)
    records = [at(offset, window(f"u{offset}", 1, ["i1"])) for offset in range(20)]
    monkeypatch.setattr(learning, "_reader", lambda: Reader(records))
    learning.tail_other_partitions([TopicPartition("windows", 0)])
    try:
        async with asyncio.timeout(10):
            await until(lambda: bool(learning.troubles))
            failing = False
            await until(lambda: not (records or learning.troubles))
        assert metrics.failures.labels("statistics")._value.get() >= 1
        assert learning.learned[TopicPartition("windows", 0)] == 20
    finally:
        await learning.close()
