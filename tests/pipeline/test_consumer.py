import asyncio
import contextlib
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.errors import GroupLoadInProgressError, NotCoordinatorForGroupError
from aiokafka.protocol.commit import OffsetFetchResponse_v3 as Answer

from stream_rec.pipeline import consumer
from stream_rec.pipeline.consumer import Coordinator, Fetcher

WINDOWS = TopicPartition("windows", 2)
COMMITTED = Answer(0, [("windows", [(2, 7, "", 0)])], 0)
LOADING = Answer(0, [], GroupLoadInProgressError.errno)
MOVED = Answer(0, [], NotCoordinatorForGroupError.errno)


class Member(Coordinator):
    """Asks for committed offsets as a member does, of a broker that is in its first seconds."""

    group_id = "workers"
    _retry_backoff_ms = 1

    def __init__(self) -> None:
        self.dead = 0

    async def ensure_coordinator_known(self) -> None: ...

    def coordinator_dead(self) -> None:
        self.dead += 1


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[Answer]:
    """What the broker answers, one after the other."""
    given: list[Answer] = []

    async def send(_self: Any, _request: Any) -> Answer:
        return given.pop(0)

    monkeypatch.setattr(GroupCoordinator, "_send_req", send)
    return given


async def test_a_group_that_is_still_loaded_or_has_moved_is_asked_again(answers: list[Answer]) -> None:
    answers += [LOADING, MOVED, COMMITTED]
    member = Member()
    found = await member.fetch_committed_offsets([WINDOWS])
    assert {partition: offset.offset for partition, offset in found.items()} == {WINDOWS: 7}
    assert member.dead == 2


async def test_a_group_that_has_committed_nothing_is_asked_once(answers: list[Answer]) -> None:
    answers.append(Answer(0, [("windows", [(2, -1, "", 0)])], 0))
    member = Member()
    assert await member.fetch_committed_offsets([WINDOWS]) == {}
    assert member.dead == 0


class Leader(Coordinator):
    """A leader whose broker tells of the partitions of `windows` at the request for metadata of number `told_at`."""

    def __init__(self, told_at: int) -> None:
        self.told_at = told_at
        self._metadata_snapshot = {"windows": 0, "events": 4}
        self.asked = 0
        self._client = self

    async def force_metadata_update(self) -> None:
        self.asked += 1


@pytest.fixture
def leader(monkeypatch: pytest.MonkeyPatch) -> Leader:
    async def perform(leader: Leader, _response: Any) -> dict[str, int]:
        if leader.asked >= leader.told_at:
            leader._metadata_snapshot = {"windows": 4, "events": 4}
        return dict(leader._metadata_snapshot)

    monkeypatch.setattr(GroupCoordinator, "_perform_assignment", perform)
    monkeypatch.setattr(consumer, "PAUSE_S", 0)
    return Leader(0)


@pytest.mark.parametrize(("told_at", "asked"), [(0, 0), (2, 2)])
async def test_partitions_are_assigned_when_all_of_them_are_known(leader: Leader, told_at: int, asked: int) -> None:
    leader.told_at = told_at
    assert await leader._perform_assignment(None) == {"windows": 4, "events": 4}
    assert leader.asked == asked


async def test_what_a_broker_never_tells_of_is_not_waited_for_without_end(leader: Leader) -> None:
    leader.told_at = 10_000
    assert (await leader._perform_assignment(None))["windows"] == 0


async def _deaf_once() -> None:
    """Goes on after the first order to end, as aiokafka's task does while it lets partitions go."""
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(60)
    await asyncio.sleep(60)


async def test_a_fetcher_ends_though_its_fetches_wait_for_kafka_and_its_task_misses_the_cancellation() -> None:
    fetcher = Fetcher.__new__(Fetcher)
    fetcher._fetch_task = asyncio.create_task(_deaf_once())
    fetches = {asyncio.create_task(asyncio.sleep(60))}  # the pause before another attempt
    fetcher._pending_tasks, fetcher._fetch_waiters = set(fetches), set()
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await fetcher.close()
    assert all(task.cancelled() for task in {*fetches, fetcher._fetch_task})
