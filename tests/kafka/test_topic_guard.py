"""What a consumer is given while its topics change, without a broker."""

from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import OffsetOutOfRangeError, UnknownTopicOrPartitionError
from aiokafka.protocol.fetch import FetchRequest

from stream_rec.health import Health
from stream_rec.kafka.access_control import TopicInfo
from stream_rec.kafka.topic_guard import TopicGuard, state_of, valid

BEFORE = TopicInfo(1, "AAAAAAAAAAAAAAAAAAAAAQ")
ID = bytes(15) + b"\x01"
FETCH = FetchRequest(0, 0, 0, 0, [("events", [(0, 100, 1)])])


class Bench:
    """A guarded consumer of a broker that holds `topic` (id and partitions, None: no topic) up to offset `end`."""

    def __init__(self, before: TopicInfo = BEFORE, end: int = 200) -> None:
        self.topic: tuple[bytes, int] | None = (ID, 1)
        self.code = 0
        """The error of the next fetches."""
        self.health = Health(0)
        self.health.not_ready_reasons.clear()
        self.guard = TopicGuard({}, {"events": before}, self.health)
        self.client = SimpleNamespace(send=self._send, get_random_node=lambda: 0)

        async def end_offsets(partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
            return dict.fromkeys(partitions, end)

        self.guard.protect(SimpleNamespace(_client=self.client, end_offsets=end_offsets))

    async def _send(self, _: int, request: Any) -> Any:
        if isinstance(request, FetchRequest):
            return SimpleNamespace(topics=[("events", [(0, self.code, 200, b"records")])])
        number, count = self.topic or (bytes(16), 0)
        said = {"topic": "events", "topic_id": number, "partitions": [{}] * count}
        return SimpleNamespace(to_object=lambda: {"topics": [said]})

    async def fetch(self) -> Any:
        return await self.client.send(0, FETCH)


async def test_after_a_failure_nothing_is_handed_over_until_the_topic_is_there_and_the_same() -> None:
    bench = Bench()
    assert await bench.fetch()
    bench.topic, bench.code = None, UnknownTopicOrPartitionError.errno
    with pytest.raises(UnknownTopicOrPartitionError):
        await bench.fetch()
    assert bench.health.not_ready_reasons == {"topic events is not there"}
    bench.code = 0  # it is created again, and has records already
    with pytest.raises(UnknownTopicOrPartitionError):
        await bench.fetch()
    bench.topic = ID, 1
    assert await bench.fetch()
    assert (bench.health.not_ready_reasons, bench.guard.change) == (set(), None)


async def test_of_a_topic_that_has_taken_the_place_of_another_nothing_is_handed_over() -> None:
    bench = Bench()
    bench.topic, bench.code = (bytes(15) + b"\x02", 1), OffsetOutOfRangeError.errno
    for _ in range(2):
        with pytest.raises(UnknownTopicOrPartitionError):
            await bench.fetch()
        bench.code = 0
    assert bench.guard.change == "topic events was deleted and created again: start again to begin with the new one"


async def test_records_that_kafka_has_lost_are_said_and_those_that_it_kept_long_enough_are_not() -> None:
    for end, change in ((99, "partition 0 ends at offset 99, and those before 100 were read"), (150, None)):
        bench = Bench(end=end)
        bench.code = OffsetOutOfRangeError.errno
        if change is None:
            assert await bench.fetch()
            assert bench.guard.change is None
        else:
            with pytest.raises(OffsetOutOfRangeError):
                await bench.fetch()
            assert change in (bench.guard.change or "")


async def test_a_broker_that_does_not_know_all_partitions_yet_is_waited_for() -> None:
    bench = Bench(TopicInfo(2, BEFORE.id))
    assert not await bench.guard.unchanged(bench.client)
    assert bench.guard.change is None


async def test_more_partitions_are_said() -> None:
    bench = Bench()
    bench.topic = ID, 3
    assert not await bench.guard.unchanged(bench.client)
    assert (bench.guard.change or "").startswith("topic events has 3 partitions now and had 1")


def test_a_commit_counts_for_the_topics_that_it_names() -> None:
    now = state_of(TopicInfo(1, "a"), TopicInfo(1, "b"))
    assert now == "a.b"
    assert valid("a.b", now)
    assert valid("", now)  # of an earlier version
    assert not valid("a.c", now)
    assert state_of(TopicInfo(1, ""), TopicInfo(1, "b")) == ""
    assert valid("a.b", "")  # brokers that give no ids
