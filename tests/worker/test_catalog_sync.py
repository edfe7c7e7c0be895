import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaTimeoutError, TopicAuthorizationFailedError
from prometheus_client import CollectorRegistry

from stream_rec.config import Settings
from stream_rec.errors import UserError
from stream_rec.kafka.dead_letters import DeadLetter
from stream_rec.messages import Item, Rejected, encode
from stream_rec.metrics import WorkerMetrics
from stream_rec.replay.kafka_source import Catalogue
from stream_rec.runtime import retry
from stream_rec.worker import catalog_sync
from stream_rec.worker.catalog_sync import CatalogConsumer
from tests.kafka.records import Record


class Shelf:
    """A catalogue and what brings items into it; a text that begins with "bad" can't be encoded at all."""

    def __init__(self) -> None:
        self.items: dict[str, Item] = {}
        self.encodes = True
        self.needs_vectors = False

    def admit(self, item: Item) -> None:
        """Takes everything."""

    def news(self, items: Sequence[Item]) -> list[Item]:
        return [item for item in items if self.items.get(item.item_id) != item]

    def needs_encoder(self, item: Item) -> bool:
        return not item.vector

    async def apply(self, items: Sequence[Item]) -> None:
        for item in items:
            if item.vector:
                continue
            if self.needs_vectors:
                raise Rejected("invalid field", "vector is missing")
            if not self.encodes:
                raise UserError("no encoder")
            if item.title.startswith("bad"):
                raise RuntimeError
        self.items |= {item.item_id: item for item in items}

    async def withdraw(self, item_ids: Sequence[str]) -> None:
        for item_id in item_ids:
            self.items.pop(item_id, None)


class Stage:
    """Follows a topic that the test writes by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shelf = Shelf()
        self.metrics = WorkerMetrics(CollectorRegistry())
        given = {"catalogue": self.shelf, "apply": self.shelf.apply, "withdraw": self.shelf.withdraw}
        self.upserts = CatalogConsumer(Settings(), self.metrics, **given)
        self.dead: list[DeadLetter] = []
        self.now = 100.0
        monkeypatch.setattr(self.upserts._letters, "add", self.dead.append)
        monkeypatch.setattr(catalog_sync.time, "monotonic", lambda: self.now)

    async def take(self, *items: Item, withdrawn: Sequence[str] = ()) -> None:
        records = [Record(item.item_id.encode(), encode(item), at) for at, item in enumerate(items)]
        await self.upserts.take([*records, *(Record(name.encode(), None, 99) for name in withdrawn)])

    @property
    def failures(self) -> float:
        return self.metrics.failures.labels("text encoder")._value.get()


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(monkeypatch)


async def test_items_whose_texts_cannot_be_encoded_wait_and_hold_up_no_others(stage: Stage) -> None:
    stage.shelf.encodes = False
    await stage.take(Item("plain", title="a shoe"), Item("own", vector=[1.0]))
    assert set(stage.shelf.items) == {"own"}
    assert stage.upserts.troubles == {"the texts of 1 items can't be encoded"}
    await stage.take(Item("second", title="a sock"))
    assert stage.failures == 1  # the encoder is not asked again at once
    stage.now += catalog_sync.FIRST_S
    await stage.take()
    assert stage.failures == 2
    stage.shelf.encodes = True
    stage.now += 2 * catalog_sync.FIRST_S
    await stage.take()
    assert set(stage.shelf.items) == {"own", "plain", "second"}
    assert not stage.upserts.troubles
    assert stage.dead == []


async def test_an_item_that_waits_for_its_text_is_withdrawn_at_once_and_its_newest_record_counts(stage: Stage) -> None:
    await stage.take(Item("shoe", title="a shoe"), Item("sock", title="a sock"))
    stage.shelf.encodes = False
    await stage.take(Item("shoe", title="a red shoe", available=False), Item("sock", title="red"), Item("hat"))
    assert set(stage.shelf.items) == {"sock"}
    await stage.take(Item("sock", title="blue"), withdrawn=["hat"])
    stage.shelf.encodes = True
    stage.now += catalog_sync.LONGEST_S
    await stage.take()
    assert {item.title for item in stage.shelf.items.values()} == {"a red shoe", "blue"}


async def test_of_items_that_fail_together_the_one_at_fault_is_a_dead_letter(stage: Stage) -> None:
    await stage.take(*(Item(f"i{number}", title=("bad" if number == 5 else "good")) for number in range(9)))
    assert set(stage.shelf.items) == {f"i{number}" for number in range(9) if number != 5}
    assert [(letter.key, dict(letter.headers)["reason"]) for letter in stage.dead] == [(b"i5", b"internal error")]


async def test_a_model_of_own_vectors_refuses_an_item_without_one_and_takes_the_others(stage: Stage) -> None:
    stage.shelf.needs_vectors = True
    await stage.take(Item("plain", title="a shoe"), Item("own", vector=[1.0]))
    assert set(stage.shelf.items) == {"own"}
    assert [dict(letter.headers)["error"] for letter in stage.dead] == [b"invalid field: vector is missing"]


async def test_a_large_item_is_refused_and_of_the_attributes_of_others_nothing_is_kept(stage: Stage) -> None:
    most = Settings().max_item_bytes
    nested = {"a": [{"b": "x" * 100}] * 100}
    await stage.take(
        Item("large", vector=[1.0], attributes={"text": "x" * most}), Item("own", vector=[1.0], attributes=nested)
    )
    assert [dict(letter.headers)["reason"] for letter in stage.dead] == [b"too large"]
    assert stage.shelf.items == {"own": Item("own", vector=[1.0])}


async def test_a_vector_without_a_direction_is_refused_wherever_items_are_read(stage: Stage) -> None:
    await stage.take(Item("poison", vector=[1e300, 0.0]), Item("nothing", vector=[0.0]), Item("own", vector=[1.0]))
    assert set(stage.shelf.items) == {"own"}
    assert {dict(letter.headers)["reason"] for letter in stage.dead} == {b"invalid field"}
    catalogue = Catalogue()
    catalogue.take(Record(b"poison", encode(Item("poison", vector=[1e39])), 0))
    assert catalogue.items == {}
    assert catalogue.refused == {"invalid field": 1}


ITEMS = TopicPartition("items", 0)


class Reader:
    """A consumer of the items topic, which `start` refuses as long as there are `refusals`."""

    def __init__(self, records: Sequence[Record], refusals: list[Exception]) -> None:
        self._records = list(records)
        self._refusals = refusals
        self._position = 0

    async def start(self) -> None:
        if self._refusals:
            raise self._refusals.pop(0)

    async def stop(self) -> None:
        """Holds nothing."""

    def assignment(self) -> set[TopicPartition]:
        return {ITEMS}

    async def end_offsets(self, partitions: set[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, len(self._records))

    async def position(self, _: TopicPartition) -> int:
        return self._position

    async def getmany(self, **_: int) -> Mapping[TopicPartition, Sequence[Record]]:
        await asyncio.sleep(0.001)
        batch, self._position = self._records[self._position :][:1], min(self._position + 1, len(self._records))
        return {ITEMS: batch}


class Following:
    """Follows a topic of two items through `Reader`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(retry, "FIRST_S", 0.01)
        self.shelf = Shelf()
        self.refusals: list[Exception] = []
        self.metrics = WorkerMetrics(CollectorRegistry())
        given = {"catalogue": self.shelf, "apply": self.shelf.apply, "withdraw": self.shelf.withdraw}
        self.upserts = CatalogConsumer(Settings(), self.metrics, **given)
        made = [Item(name, vector=[1.0]) for name in "ab"]
        records = [Record(item.item_id.encode(), encode(item), at) for at, item in enumerate(made)]
        monkeypatch.setattr(self.upserts, "_reader", lambda: Reader(records, self.refusals))

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        task = asyncio.create_task(self.upserts.follow())
        yield task
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_kafka_s_refusals_at_the_start_are_waited_out(monkeypatch: pytest.MonkeyPatch) -> None:
    following = Following(monkeypatch)
    following.refusals += [KafkaTimeoutError(), TopicAuthorizationFailedError()]
    async with following.running(), asyncio.timeout(10):
        await following.upserts.caught_up.wait()
    assert set(following.shelf.items) == {"a", "b"}


async def test_a_following_that_ends_by_an_error_begins_again_and_is_told_until_it_is_up_to_date(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    following, spoiled = Following(monkeypatch), asyncio.Event()
    news, seen = following.shelf.news, asyncio.Event()

    def spoil(items: Sequence[Item]) -> list[Item]:
        if spoiled.is_set():
            spoiled.clear()
            raise ZeroDivisionError
        if following.upserts.troubles:
            seen.set()
        return news(items)

    monkeypatch.setattr(following.shelf, "news", spoil)
    async with following.running(), asyncio.timeout(10):
        await following.upserts.caught_up.wait()
        following.shelf.items.clear()
        spoiled.set()
        await seen.wait()
        while following.upserts.troubles:  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0.001)
    assert set(following.shelf.items) == {"a", "b"}
    assert following.metrics.failures.labels("items")._value.get() == 1


async def test_a_following_that_fails_before_it_has_caught_up_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    following = Following(monkeypatch)
    monkeypatch.setattr(following.shelf, "news", None)
    async with following.running() as task:
        with pytest.raises(TypeError):
            await task
