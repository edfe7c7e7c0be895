import asyncio

from stream_rec.pipeline.faust_kafka import ChangelogQueue, FlowControl


async def test_a_record_that_is_put_between_a_revocation_and_the_next_seek_is_not_recovered() -> None:
    """Its putter had just been given room when the queue was emptied."""
    flow = FlowControl()
    flow.resume()
    queue = ChangelogQueue(maxsize=1, flow_control=flow, clear_on_resume=True)
    queue.recovering = True
    await queue.put("read")
    putting = asyncio.create_task(queue.put("left over"))
    await asyncio.sleep(0)
    assert await queue.get() == "read"  # makes room: the putter is to go on
    queue.recovering = False  # a revocation
    queue.clear()
    await putting
    taking = asyncio.create_task(queue.get())
    await asyncio.sleep(0.01)
    assert not taking.done()
    queue.clear()  # the seek of the next recovery
    queue.recovering = True
    await queue.put("read again")
    assert await taking == "read again"
