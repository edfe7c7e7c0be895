import logging
import socket
from collections.abc import Callable

import pytest
from aiokafka.admin import NewTopic
from aiokafka.errors import MessageSizeTooLargeError

from stream_rec.config import Settings
from stream_rec.errors import UserError
from stream_rec.kafka import topics
from stream_rec.kafka.connection import access, connect
from tests.e2e.kafka import alter, produce, read_topic, sent

pytestmark = pytest.mark.e2e

Make = Callable[..., Settings]


async def test_creating_them_twice_creates_them_once(make_settings: Make) -> None:
    settings = make_settings(partitions=3)
    assert set(await topics.create(settings)) == set(settings.topics)
    assert await topics.create(settings) == []
    assert await topics.check(settings) == []


async def test_what_is_there_is_left_alone(make_settings: Make) -> None:
    settings = make_settings(partitions=2)
    await add(settings, settings.events_topic, partitions=5, **{"retention.ms": "1000"})
    assert settings.events_topic not in await topics.create(settings)
    found = {(problem.topic, problem.setting): problem.found for problem in await topics.check(settings)}
    assert found[settings.events_topic, "partitions"] == "5"
    assert found[settings.events_topic, "retention.ms"] == "1000"
    assert {topic for topic, _ in found} == {settings.events_topic}


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("windows", "cleanup.policy", "delete"),
        ("items", "cleanup.policy", "delete"),
        ("recommendations", "cleanup.policy", "compact,delete"),
        ("events", "message.timestamp.type", "CreateTime"),
        ("events", "max.message.bytes", "1000"),
        ("dead_letter", "retention.ms", "1000"),
    ],
)
async def test_a_wrong_layout_is_found(make_settings: Make, name: str, setting: str, value: str) -> None:
    settings = make_settings()
    await topics.create(settings)
    topic = getattr(settings, f"{name}_topic")
    await alter(settings, topic, **{setting: value})
    problems = [problem for problem in await topics.check(settings) if problem.setting == setting]
    (problem,) = problems
    assert (problem.topic, problem.found) == (topic, value)
    assert str(problem) == f"topic {topic}: {setting} is {value}, the settings want {problem.expected}"


async def test_missing_topics_are_found(make_settings: Make) -> None:
    settings = make_settings()
    problems = await topics.check(settings)
    assert [problem.topic for problem in problems] == list(settings.topics)
    assert str(problems[0]) == f"topic {settings.events_topic} does not exist: run 'stream-rec topics create'"


async def test_kafka_stamps_events_and_keeps_the_largest(make_settings: Make) -> None:
    settings = make_settings(max_message_bytes=2 << 20)
    await topics.create(settings)
    await produce(settings, [sent("u", context={"x": "y" * ((2 << 20) - 1_000)})])
    (record,) = await read_topic(settings, settings.events_topic)
    assert record.timestamp_type == 1
    with pytest.raises(MessageSizeTooLargeError):
        await produce(settings, [sent("u", context={"x": "y" * (2 << 20)})])


async def test_too_few_brokers_for_the_copies_is_one_line(make_settings: Make) -> None:
    with pytest.raises(UserError, match=r"cannot create topic .*replication factor") as raised:
        await topics.create(make_settings(replication_factor=3))
    assert "\n" not in str(raised.value)


async def test_without_a_broker_it_says_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as silent:  # takes connections, says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        for address in ("127.0.0.1:1", f"127.0.0.1:{silent.getsockname()[1]}"):
            with pytest.raises(UserError) as raised:
                async with connect({"bootstrap_servers": address}, timeout_s=1):
                    pass
            assert str(raised.value) == (
                f"no Kafka broker answers at {address}: "
                "start one with 'stream-rec broker' or set STREAM_REC_BOOTSTRAP_SERVERS"
            )
    assert [record for record in caplog.records if record.levelno >= logging.INFO] == []


async def test_an_address_that_is_none_is_named() -> None:
    with pytest.raises(UserError, match="STREAM_REC_BOOTSTRAP_SERVERS"):
        async with connect({"bootstrap_servers": "127.0.0.1:port"}):
            pass


async def add(settings: Settings, topic: str, partitions: int, **configs: str) -> None:
    async with connect(access(settings)) as admin:
        await admin.create_topics([NewTopic(topic, partitions, 1, topic_configs=configs)])
