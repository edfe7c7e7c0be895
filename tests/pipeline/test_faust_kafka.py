import asyncio

from mode.utils.queues import ThrowableQueue

from stream_rec.pipeline.faust_kafka import FlowControl


async def test_going_on_keeps_what_waits_in_the_queues() -> None:
    flow = FlowControl()
    queue: asyncio.Queue[str] = ThrowableQueue(flow_control=flow, clear_on_resume=True)
    queue.put_nowait("came before the tables were ready")
    flow.resume()
    assert flow.is_active()
    assert queue.qsize() == 1
