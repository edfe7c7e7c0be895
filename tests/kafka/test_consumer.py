import asyncio
import contextlib
import time
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from aiokafka import TopicPartition
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.errors import (
    CorruptRecordException,
    GroupLoadInProgressError,
    NotCoordinatorForGroupError,
    OffsetOutOfRangeError,
)
from aiokafka.protocol.commit import OffsetFetchResponse_v3 as Answer

from stream_rec.kafka import consumer
from stream_rec.kafka.consumer import Coordinator, FailedFetches, Fetcher

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


class Response(NamedTuple):
    topics: list[tuple[str, list[tuple[int, int]]]]


def fetched(**codes: int) -> Response:
    """An answer in which partition `p0` of `windows` has an error code, and so on."""
    return Response([("windows", [(int(name[1:]), code) for name, code in codes.items()])])


CORRUPT, ASSIGNED = CorruptRecordException.errno, {TopicPartition("windows", number) for number in range(2)}


def test_a_partition_that_kafka_cannot_read_waits_for_longer_and_longer_and_is_told_once_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failed, now, pauses = FailedFetches(), 50.0, []
    while now < 50.0 + 2 * consumer.TELL_S:
        failed.note(fetched(p0=CORRUPT, p1=0), now)
        assert failed.paused(ASSIGNED, now) == {TopicPartition("windows", 0)}
        pauses.append(failed._failures[TopicPartition("windows", 0)].again_at - now)
        now += pauses[-1]
        assert not failed.paused(ASSIGNED, now)
    assert pauses[:3] == pytest.approx([0.1, 0.2, 0.4])
    assert max(pauses) == pytest.approx(consumer.LONGEST_S)
    said = "Kafka can't read topic windows, partition 0 (CorruptRecordException)"
    assert failed.reasons == {said}
    assert [record.getMessage() for record in caplog.records] == [f"{said}; trying again"] * 2
    assert failed.take_count() == len(pauses)
    assert failed.take_count() == 0
    failed.note(fetched(p0=0, p1=0), now)
    assert not failed.reasons


def test_what_aiokafka_treats_is_left_to_it_and_what_is_not_assigned_any_more_is_forgotten() -> None:
    failed = FailedFetches()
    failed.note(fetched(p0=OffsetOutOfRangeError.errno, p1=CORRUPT), 0.0)
    assert failed.paused(ASSIGNED, 0.0) == {TopicPartition("windows", 1)}
    assert not failed.paused([TopicPartition("windows", 0)], 0.0)
    assert not failed.reasons


def test_a_partition_that_waits_is_in_no_request_and_the_others_are(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        consumer.fetcher.Fetcher, "_get_actions_per_node", lambda _, assignment: asked.append(list(assignment.tps))
    )
    fetcher = Fetcher.__new__(Fetcher)
    fetcher.failed = FailedFetches()
    fetcher.failed.note(fetched(p0=CORRUPT), time.monotonic() + 3_600)
    fetcher._get_actions_per_node(SimpleNamespace(tps=ASSIGNED))
    assert asked == [[TopicPartition("windows", 1)]]
