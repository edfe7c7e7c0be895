from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.errors import GroupLoadInProgressError, NotCoordinatorForGroupError
from aiokafka.protocol.commit import OffsetFetchResponse_v3 as Answer

from stream_rec.pipeline import group
from stream_rec.pipeline.group import await_topics, heed_errors

WINDOWS = TopicPartition("windows", 2)
COMMITTED = Answer(0, [("windows", [(2, 7, "", 0)])], 0)
LOADING = Answer(0, [], GroupLoadInProgressError.errno)
MOVED = Answer(0, [], NotCoordinatorForGroupError.errno)


class Coordinator:
    """aiokafka's own way to ask for committed offsets, on answers that a broker gives only in its first seconds."""

    group_id = "workers"
    _retry_backoff_ms = 1
    fetch_committed_offsets = GroupCoordinator.fetch_committed_offsets
    _do_fetch_commit_offsets = GroupCoordinator._do_fetch_commit_offsets

    def __init__(self, *answers: Answer) -> None:
        self._answers = list(answers)
        self.dead = 0

    async def _send_req(self, _request: Any) -> Answer:
        return self._answers.pop(0)

    async def ensure_coordinator_known(self) -> None: ...

    def coordinator_dead(self) -> None:
        self.dead += 1


async def test_without_it_a_group_that_is_still_loaded_has_committed_nothing() -> None:
    assert await Coordinator(LOADING, COMMITTED).fetch_committed_offsets([WINDOWS]) == {}


async def test_a_group_that_is_still_loaded_or_has_moved_is_asked_again() -> None:
    coordinator = Coordinator(LOADING, MOVED, COMMITTED)
    heed_errors(coordinator)
    found = await coordinator.fetch_committed_offsets([WINDOWS])
    assert {partition: offset.offset for partition, offset in found.items()} == {WINDOWS: 7}
    assert coordinator.dead == 2


async def test_a_group_that_has_committed_nothing_is_asked_once() -> None:
    coordinator = Coordinator(Answer(0, [("windows", [(2, -1, "", 0)])], 0))
    heed_errors(coordinator)
    assert await coordinator.fetch_committed_offsets([WINDOWS]) == {}
    assert coordinator.dead == 0


class Leader:
    """A leader whose broker tells of the partitions of `windows` at the second request for metadata."""

    def __init__(self, told_at: int) -> None:
        self._told_at = told_at
        self._metadata_snapshot = {"windows": 0, "events": 4}
        self.asked = 0
        self._client = self

    async def force_metadata_update(self) -> None:
        self.asked += 1

    async def _perform_assignment(self, _response: Any) -> dict[str, int]:
        if self.asked >= self._told_at:
            self._metadata_snapshot = {"windows": 4, "events": 4}
        return dict(self._metadata_snapshot)


@pytest.mark.parametrize(("told_at", "asked"), [(0, 0), (2, 2)])
async def test_partitions_are_assigned_when_all_of_them_are_known(
    told_at: int, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "PAUSE_S", 0)
    leader = Leader(told_at)
    await_topics(leader)
    assert await leader._perform_assignment(None) == {"windows": 4, "events": 4}
    assert leader.asked == asked


async def test_what_a_broker_never_tells_of_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "PAUSE_S", 0)
    leader = Leader(10_000)
    await_topics(leader)
    assert (await leader._perform_assignment(None))["windows"] == 0
