import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import TopicAuthorizationFailedError
from aiokafka.partitioner import DefaultPartitioner

from stream_rec.client import Erased, LatestRecommendations, Recommendations, latest, titles
from stream_rec.config import Settings
from stream_rec.errors import UserError
from stream_rec.kafka import topics
from stream_rec.kafka.key_lookup import NEAREST
from stream_rec.kafka.publish import publish_items
from stream_rec.messages import Item, RankedItem, Recommendation, encode
from tests.batches import UNREADABLE
from tests.e2e.kafka import produce_batch

pytestmark = pytest.mark.e2e


def answer(user: str, seq: int) -> Recommendation:
    return Recommendation(user, seq, seq - 1, 0.0, (RankedItem("tea", 1.0, 0.5),), {"view": 1.0}, (), "test")


class Writer:
    """Writes to the recommendations topic in transactions, as the worker does."""

    def __init__(self, producer: AIOKafkaProducer, topic: str) -> None:
        self._producer = producer
        self._topic = topic

    async def commit(self, *answers: Recommendation | Erased | bytes, partition: int | None = None) -> None:
        async with self._producer.transaction():
            await self._send(answers, partition)

    async def abort(self, *answers: Recommendation | Erased | bytes) -> None:
        await self._producer.begin_transaction()
        await self._send(answers, None)
        await self._producer.flush()
        await self._producer.abort_transaction()

    async def _send(self, answers: tuple[Recommendation | Erased | bytes, ...], partition: int | None) -> None:
        for one in answers:
            key = "u" if isinstance(one, bytes) else one.user_id
            value = None if isinstance(one, Erased) else one if isinstance(one, bytes) else encode(one)
            await self._producer.send(self._topic, value, key=key.encode(), partition=partition)


@pytest.fixture
async def settings(make_settings: Callable[..., Settings]) -> Settings:
    made = make_settings(partitions=3)
    await topics.create(made)
    return made


@pytest.fixture
async def writer(settings: Settings) -> AsyncIterator[Writer]:
    async with AIOKafkaProducer(
        bootstrap_servers=settings.bootstrap_servers,
        transactional_id=settings.recommendations_topic,
        retry_backoff_ms=5,
        linger_ms=1,
    ) as producer:
        yield Writer(producer, settings.recommendations_topic)


def reader(settings: Settings, group: str | None) -> Recommendations:
    return Recommendations(
        bootstrap_servers=settings.bootstrap_servers, topic=settings.recommendations_topic, group=group
    )


async def read(settings: Settings, group: str, n: int) -> list[Recommendation | Erased]:
    async with reader(settings, group) as recommendations:
        return [await anext(recommendations) for _ in range(n)]


async def test_a_service_sees_what_was_committed_and_who_was_erased(settings: Settings, writer: Writer) -> None:
    await writer.commit(answer("u", 1))
    await writer.abort(answer("u", 2))
    await writer.commit(answer("u", 3), Erased("u"))
    assert await read(settings, "page", 3) == [answer("u", 1), answer("u", 3), Erased("u")]


async def test_without_a_group_it_begins_now(settings: Settings, writer: Writer) -> None:
    await writer.commit(answer("u", 1))
    async with reader(settings, group=None) as recommendations:
        await writer.commit(answer("u", 2))
        assert await anext(recommendations) == answer("u", 2)


async def test_a_group_goes_on_where_it_stopped(settings: Settings, writer: Writer) -> None:
    await writer.commit(*(answer("u", seq) for seq in range(1, 5)))
    assert await read(settings, "page", 2) == [answer("u", 1), answer("u", 2)]
    assert await read(settings, "page", 1) == [answer("u", 3)]
    assert await read(settings, "other page", 1) == [answer("u", 1)]


async def test_what_a_service_failed_on_comes_again(settings: Settings, writer: Writer) -> None:
    await writer.commit(answer("u", 1), answer("u", 2))

    async def fail_on_the_second() -> None:
        async with reader(settings, "page") as recommendations:
            async for one in recommendations:
                if one == answer("u", 2):
                    raise RuntimeError("the service broke")

    with pytest.raises(RuntimeError, match="broke"):
        await fail_on_the_second()
    assert await read(settings, "page", 1) == [answer("u", 2)]


async def test_what_cannot_be_read_is_counted_and_passed_over(settings: Settings, writer: Writer) -> None:
    await writer.commit(b"{", b'{"user_id": 5}', b"\xff", answer("u", 1))
    async with reader(settings, "page") as recommendations:
        assert await anext(recommendations) == answer("u", 1)
        assert recommendations.unreadable == 3
    await writer.commit(answer("u", 2))
    assert await read(settings, "page", 1) == [answer("u", 2)]


async def test_a_record_that_kafkas_client_cannot_read_is_counted_and_passed_over(
    settings: Settings, writer: Writer
) -> None:
    await produce_batch(settings, UNREADABLE, settings.recommendations_topic)
    await writer.commit(answer("u", 1), partition=0)
    async with reader(settings, "page") as recommendations:
        assert await anext(recommendations) == answer("u", 1)
        assert recommendations.unreadable == 1
    async with view(settings) as newest:
        await newest.caught_up()
        assert newest.get("u") == answer("u", 1)
        assert newest.unreadable == 1
    assert await latest("u", settings) == answer("u", 1)


async def test_latest_is_the_newest_committed_answer_of_that_user(settings: Settings, writer: Writer) -> None:
    await writer.commit(answer("u", 1), answer("v", 1))
    await writer.commit(*(answer(f"user {n}", 1) for n in range(3 * 5 * NEAREST)))  # the search has to go back twice
    assert await latest("u", settings) == answer("u", 1)
    await writer.commit(answer("u", 2), answer("v", 2))
    await writer.abort(answer("u", 3))
    assert await latest("u", settings) == answer("u", 2)
    assert await latest("nobody", settings) is None
    await writer.commit(Erased("u"))
    assert await latest("u", settings) is None
    assert await latest("v", settings) == answer("v", 2)


async def test_latest_finds_a_user_whom_another_client_put_into_another_partition(
    settings: Settings, writer: Writer
) -> None:
    usual = DefaultPartitioner()(b"u", [0, 1, 2], [0, 1, 2])
    await writer.commit(answer("u", 1), partition=(usual + 1) % 3)
    assert await latest("u", settings) == answer("u", 1)


async def test_an_unreadable_answer_is_told_in_one_line(settings: Settings, writer: Writer) -> None:
    await writer.commit(b"{")
    with pytest.raises(UserError, match="can't be read"):
        await latest("u", settings)


async def test_titles_are_the_newest_entries_of_the_catalogue(settings: Settings) -> None:
    catalogue = [Item(f"item {n}", title=f"Title {n}", price=float(n)) for n in range(30)]
    assert await publish_items(catalogue, settings) == 30
    await publish_items([Item("item 3", title="Better title")], settings)
    found = await titles(["item 3", "item 7", "no such item"], settings)
    assert {item_id: item.title for item_id, item in found.items()} == {"item 3": "Better title", "item 7": "Title 7"}
    assert await titles([], settings) == {}


async def test_a_missing_broker_and_a_missing_topic_are_told_in_one_line(
    make_settings: Callable[..., Settings],
) -> None:
    nowhere = make_settings(bootstrap_servers="127.0.0.1:1")
    with pytest.raises(UserError, match="no Kafka broker answers"):
        await latest("u", nowhere)
    with pytest.raises(UserError, match="no Kafka broker answers"):
        async with reader(nowhere, "page"):
            pass
    with pytest.raises(UserError, match="does not exist"):
        await publish_items([], make_settings())


def view(settings: Settings, **given: int) -> LatestRecommendations:
    return LatestRecommendations(
        bootstrap_servers=settings.bootstrap_servers, topic=settings.recommendations_topic, **given
    )


async def test_a_view_holds_the_newest_committed_answer_of_every_user(settings: Settings, writer: Writer) -> None:
    await writer.commit(*(answer(f"user {n}", 1) for n in range(50)), answer("u", 1), answer("v", 1))
    await writer.commit(answer("u", 2), b"{", answer("w", 1), Erased("w"))
    await writer.abort(answer("v", 2))
    async with view(settings) as latest_ones:
        await latest_ones.caught_up()
        assert len(latest_ones) == 52
        assert latest_ones.get("v") == answer("v", 1)
        assert latest_ones.get("w") is latest_ones.get("nobody") is None
        assert latest_ones.get("u") is None  # the newest can't be read
        assert latest_ones.unreadable == 1
        await writer.commit(answer("u", 3), Erased("v"), answer("w", 2))
        await latest_ones.caught_up()
        assert (latest_ones.get("u"), latest_ones.get("v"), latest_ones.get("w")) == (
            answer("u", 3),
            None,
            answer("w", 2),
        )


async def test_a_view_keeps_the_users_who_were_answered_last(settings: Settings, writer: Writer) -> None:
    await writer.commit(*(answer(user, 1) for user in "abc"), answer("a", 2), answer("d", 1), partition=0)
    async with view(settings, most_users=3) as latest_ones:
        await latest_ones.caught_up()
        assert [user for user in "abcd" if latest_ones.get(user)] == ["a", "c", "d"]
        assert latest_ones.left_out == 1


async def test_a_view_that_can_read_no_more_says_so(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    async with view(settings) as latest_ones:

        async def refused(**_: object) -> None:
            raise TopicAuthorizationFailedError(settings.recommendations_topic)

        monkeypatch.setattr(latest_ones._consumer, "getmany", refused)  # the broker of the tests refuses nobody
        await asyncio.wait({latest_ones._reading})
        with pytest.raises(TopicAuthorizationFailedError):
            latest_ones.get("u")
        with pytest.raises(TopicAuthorizationFailedError):
            await latest_ones.caught_up()
