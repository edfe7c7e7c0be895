import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from prometheus_client import CollectorRegistry

from stream_rec.config import Settings
from stream_rec.health import Health
from stream_rec.kafka import topics
from stream_rec.metrics import AgentMetrics
from stream_rec.pipeline import agents, faust_thread
from stream_rec.pipeline.faust_producer import guard
from stream_rec.pipeline.faust_thread import ConsumerThread
from tests.e2e.kafka import Sent, produce, read_topic, sent, until, waiting
from tests.e2e.process import Part

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
        tables = SimpleNamespace(changelog_topics={settings.windows_topic})
        thread = SimpleNamespace(app=SimpleNamespace(tables=tables, committed_for=""))
        await ConsumerThread._seek_back(thread, consumer)
        assert await consumer.position(events) == 0
        await consumer.commit({events: 3})
        await ConsumerThread._seek_back(thread, consumer)
        assert await consumer.position(events) == 3


async def test_while_events_come_kafka_gathers_them_for_one_fetch(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(partitions=1)
    await topics.create(settings)
    events = TopicPartition(settings.events_topic, 0)
    monkeypatch.setattr(faust_thread, "GATHER_MS", 5_000)
    thread = ConsumerThread.__new__(ConsumerThread)
    thread.consumer = SimpleNamespace(flow_active=True)
    async with AIOKafkaConsumer(
        settings.events_topic, bootstrap_servers=settings.bootstrap_servers, auto_offset_reset="earliest"
    ) as consumer:

        async def read(wait_s: float) -> list[int]:
            records = await thread._fetch_records(consumer, {events}, timeout=wait_s, max_records=100)
            return [record.offset for record in records.get(events, [])]

        await produce(settings, [sent("u")])
        assert await read(60) == [0]
        await produce(settings, [sent("u")])
        await asyncio.sleep(0.2)  # else both might come with one fetch that was not to gather anything
        await produce(settings, [sent("u")])
        assert await read(60) == [1, 2]
        assert await read(0) == []
        assert consumer._fetcher._fetch_min_bytes == 1


async def test_nothing_is_read_while_kafka_is_slow_to_tell_what_is_committed(
    make_settings: Callable[..., Settings],
    start: Callable[[str, Settings], Part],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = make_settings(partitions=1)
    await topics.create(settings)
    first = start("agents", settings)
    await produce(settings, [sent("u") for _ in range(5)])  # a table to recover

    async def done() -> bool:
        return await waiting(settings, settings.agents_group, settings.events_topic) == 0

    await until(done)
    assert first.stop() == 0
    asked, answer = asyncio.Event(), asyncio.Event()
    seek_back = ConsumerThread._seek_back

    async def slow(self: ConsumerThread, consumer: Any) -> Any:
        """Stands for a broker that goes away just then, and comes back."""
        loop = self.parent_loop
        loop.call_soon_threadsafe(asked.set)
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(answer.wait(), loop))
        return await seek_back(self, consumer)

    monkeypatch.setattr(ConsumerThread, "_seek_back", slow)
    await produce(settings, [Sent(b"u", b"{") for _ in range(5)])
    registry = CollectorRegistry()
    found = await agents._fit(settings)
    app = agents.build(settings, AgentMetrics(registry), Health(settings.ready_lag), tmp_path / "agents", found)
    running = asyncio.ensure_future(app.start())
    await asked.wait()
    await produce(settings, [Sent(b"u", b"{") for _ in range(5)])
    await asyncio.sleep(1.5)
    answer.set()
    await until(done)
    await app.stop()
    await running
    assert len(await read_topic(settings, settings.dead_letter_topic)) == 10
    assert registry.get_sample_value("stream_rec_events_read_again_total") == 0


async def test_what_was_about_to_be_written_when_the_process_stood_still_is_not_written(
    make_settings: Callable[..., Settings],
) -> None:
    settings = make_settings(partitions=1)
    await topics.create(settings)
    fresh = True

    async def written() -> list[bytes | None]:
        return [one.value for one in await read_topic(settings, settings.windows_topic)]

    async with AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers, enable_idempotence=True) as producer:
        sender, send = producer._sender, producer._sender._send_produce_req

        async def guarded(node: int, batches: Any) -> None:
            await guard(sender.client, node, lambda: fresh)
            await send(node, batches)

        sender._send_produce_req = guarded
        await producer.send_and_wait(settings.windows_topic, b"before", key=b"u", partition=0)
        await producer.send_and_wait(settings.windows_topic, b"meanwhile", key=b"u", partition=0)
        fresh = False
        late = await producer.send(settings.windows_topic, b"late", key=b"u", partition=0)
        await asyncio.sleep(0.5)
        assert not late.done()
        assert await written() == [b"before", b"meanwhile"]
        fresh = True
        await late
    assert await written() == [b"before", b"meanwhile", b"late"]
