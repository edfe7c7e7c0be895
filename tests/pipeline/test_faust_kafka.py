import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from stream_rec.pipeline import faust_kafka
from stream_rec.pipeline.faust_kafka import UNCONFIRMED, Producer


@pytest.fixture
def producer(monkeypatch: pytest.MonkeyPatch) -> Producer:
    """Hands nothing over to Kafka: whether a write is confirmed is the test's to say."""
    monkeypatch.setattr(faust_kafka.driver.Producer, "__init__", lambda *_: None)
    monkeypatch.setattr(faust_kafka.driver.Producer, "__post_init__", lambda *_: None, raising=False)
    monkeypatch.setattr(faust_kafka.driver.Producer, "send_soon", lambda *_: None)
    made = Producer(SimpleNamespace())
    made.__post_init__()
    return made


async def test_an_agent_pauses_while_many_writes_are_on_their_way(producer: Producer) -> None:
    writes: list[asyncio.Future[Any]] = [asyncio.get_running_loop().create_future() for _ in range(UNCONFIRMED)]
    for write in writes[:-1]:
        producer.send_soon(write)
    await producer.room()
    producer.send_soon(writes[-1])
    waiting = asyncio.create_task(producer.room())
    for write in writes[: UNCONFIRMED // 2 - 1]:
        write.set_result(None)
    await asyncio.sleep(0.01)
    assert not waiting.done()
    writes[-1].set_result(None)
    async with asyncio.timeout(1):
        await waiting
