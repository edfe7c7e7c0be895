from typing import Any

from aiokafka import TopicPartition
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.errors import GroupLoadInProgressError, NotCoordinatorForGroupError
from aiokafka.protocol.commit import OffsetFetchResponse_v3 as Answer

from stream_rec.pipeline.group import heed_errors

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
