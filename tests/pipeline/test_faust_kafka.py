import asyncio
from types import SimpleNamespace

import pytest
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from mode.utils.queues import ThrowableQueue

from stream_rec.pipeline.faust_kafka import Consumer, FlowControl, _Rest


async def test_going_on_keeps_what_waits_in_the_queues() -> None:
    flow = FlowControl()
    queue: asyncio.Queue[str] = ThrowableQueue(flow_control=flow, clear_on_resume=True)
    queue.put_nowait("came before the tables were ready")
    flow.resume()
    assert flow.is_active()
    assert queue.qsize() == 1


async def test_a_recovery_begins_with_an_empty_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    sought: list[object] = []

    async def seek(_: object, partitions: object) -> None:
        sought.append(partitions)

    monkeypatch.setattr(driver.Consumer, "seek_wait", seek)
    consumer = object.__new__(Consumer)  # without Kafka there is none to construct
    queue: asyncio.Queue[str] = ThrowableQueue(flow_control=FlowControl())
    queue.put_nowait("left over")
    consumer.app = SimpleNamespace(tables=SimpleNamespace(changelog_queue=queue))
    await consumer.seek_wait({TP("windows", 0): 7})
    assert sought == [{TP("windows", 0): 7}]
    assert queue.empty()


async def test_a_coroutine_that_was_begun_goes_on_where_it_waits() -> None:
    """What a full queue makes of a message's hand-over."""
    room: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def hand_over() -> str:
        return await room

    begun = hand_over()
    rest = asyncio.ensure_future(_waited(_Rest(begun, begun.send(None))))
    await asyncio.sleep(0)
    assert not rest.done()
    room.set_result("handed over")
    assert await rest == "handed over"


async def test_a_coroutine_that_was_begun_hears_of_its_cancellation() -> None:
    room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    heard = []

    async def hand_over() -> None:
        try:
            await room
        except asyncio.CancelledError:
            heard.append("cancelled")
            raise

    begun = hand_over()
    rest = asyncio.ensure_future(_waited(_Rest(begun, begun.send(None))))
    await asyncio.sleep(0)
    rest.cancel()
    with pytest.raises(asyncio.CancelledError):
        await rest
    assert heard == ["cancelled"]


async def _waited(rest: _Rest) -> object:
    return await rest
