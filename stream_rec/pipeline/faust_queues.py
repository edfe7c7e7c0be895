"""faust's queues, with what they lose, or keep too long, when partitions move put right."""

from typing import Any

from mode.utils.queues import FlowControlEvent, ThrowableQueue


class ChangelogQueue(ThrowableQueue):  # type: ignore[misc]
    """Changelog records on their way to the tables; hands over none that was read before the last seek.

    To faust an offset below one that it has seen was read already. One record left over from a recovery that a
    rebalance ended would hide all those that come before it: their users would begin anew, or go on from an older
    window. That the queue is emptied when partitions are revoked is not enough: whoever waits for room to put a record,
    and has just been given it, puts the record afterwards, and it is taken before the next recovery looks up where to
    begin.
    """

    recovering = False
    """Whether what is put now was read behind the seek of the recovery that goes on, or went on last."""

    async def get(self) -> Any:
        while True:
            event = await super().get()
            if self.recovering:
                return event


class FlowControl(FlowControlEvent):  # type: ignore[misc]
    """Lets the streams go on without emptying their queues: what came meanwhile would be lost.

    The changelogs' queue is emptied elsewhere, see `Consumer.seek_wait`.
    """

    def resume(self) -> None:
        self._suspend.clear()
        self._resume.set()
