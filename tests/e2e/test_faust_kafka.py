from collections.abc import Callable
from types import SimpleNamespace

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from stream_rec.config import Settings
from stream_rec.pipeline import topics
from stream_rec.pipeline.faust_kafka import ConsumerThread
from tests.e2e.kafka import produce, sent

pytestmark = pytest.mark.e2e


async def test_what_was_set_aside_before_a_first_commit_is_read_again(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(partitions=1)
    await topics.create(settings)
    await produce(settings, [sent("u") for _ in range(5)])
    events = TopicPartition(settings.events_topic, 0)
    async with AIOKafkaConsumer(
        settings.events_topic,
        bootstrap_servers=settings.bootstrap_servers,
        group_id=settings.agents_group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    ) as consumer:
        for _ in range(5):
            await consumer.getone()
        thread = SimpleNamespace(app=SimpleNamespace(tables=SimpleNamespace(changelog_topics={settings.windows_topic})))
        await ConsumerThread._seek_back(thread, consumer)
        assert await consumer.position(events) == 0
        await consumer.commit({events: 3})
        await ConsumerThread._seek_back(thread, consumer)
        assert await consumer.position(events) == 3
