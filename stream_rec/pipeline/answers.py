"""Records of the windows topic to the records that answer them: no Kafka client here, no asyncio."""

import logging
import traceback
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import msgspec

from stream_rec.config import Settings
from stream_rec.messages import Recommendation, Window, encode, read_window
from stream_rec.pipeline import dead_letters
from stream_rec.pipeline.live import LiveAccuracy
from stream_rec.pipeline.transactions import Reply
from stream_rec.telemetry import WorkerMetrics

log = logging.getLogger(__name__)

Step = Callable[[Sequence[Window]], Sequence[Recommendation]]


class Record(Protocol):
    """What is needed of a Kafka record."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


class Answer(NamedTuple):
    """A reply, the partition whose transaction it belongs to, and when its event arrived (seconds; None: no event)."""

    partition: int
    reply: Reply
    arrived: float | None


class Answerer:
    """Answers windows through `step`, tombstones with tombstones, and what is no window with a dead letter."""

    def __init__(self, settings: Settings, metrics: WorkerMetrics, step: Step, forget: Callable[[str], None]) -> None:
        self._settings = settings
        self._metrics = metrics
        self._step = step
        self._forget = forget
        self._live = LiveAccuracy(metrics)

    def answer(self, records: Sequence[Record]) -> list[Answer]:
        """Answers to `records`, in order for each user; raises only what is wrong with this process."""
        answers: list[Answer] = []
        waiting: list[tuple[Record, Window]] = []
        for record in records:
            if record.value is None and record.key is not None:
                answers += self._answer_windows(waiting)
                waiting = []
                answers.append(self._erase(record, record.key))
                continue
            try:
                window = self._read(record)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
                answers.append(self._bury(record, "unreadable window", str(error)))
            else:
                waiting.append((record, window))
        return answers + self._answer_windows(waiting)

    def _read(self, record: Record) -> Window:
        window = read_window(record.value or b"")
        if window.user_id.encode() != record.key:
            raise ValueError("the key is not the user_id")
        self._metrics.windows.inc()
        return window

    def _answer_windows(self, waiting: Sequence[tuple[Record, Window]]) -> list[Answer]:
        if self._settings.coalesce:
            newest = {window.user_id: (record, window) for record, window in waiting}
            self._metrics.coalesced.inc(len(waiting) - len(newest))
            waiting = list(newest.values())
        return self._compute(waiting) if waiting else []

    def _compute(self, waiting: Sequence[tuple[Record, Window]]) -> list[Answer]:
        """One step; should the model fail, halves of it, so that the one window at fault becomes a dead letter."""
        try:
            recommendations = self._step([window for _, window in waiting])
        except Exception as error:  # noqa: BLE001 - one window must neither stop the stream nor vanish
            if len(waiting) > 1:
                half = len(waiting) // 2
                return self._compute(waiting[:half]) + self._compute(waiting[half:])
            record = waiting[0][0]
            frames = "".join(traceback.format_tb(error.__traceback__))  # the error's own text may hold an id
            log.error(
                "%s: window %s/%d is a dead letter\n%s", type(error).__name__, record.partition, record.offset, frames
            )
            return [self._bury(record, "internal error", type(error).__name__)]
        return [
            self._publish(record, window, recommendation)
            for (record, window), recommendation in zip(waiting, recommendations, strict=True)
        ]

    def _publish(self, record: Record, window: Window, recommendation: Recommendation) -> Answer:
        self._live.happened(window)
        self._live.predicted(recommendation)
        reply = Reply(self._settings.recommendations_topic, record.key, encode(recommendation))
        return Answer(record.partition, reply, window.arrived)

    def _erase(self, record: Record, key: bytes) -> Answer:
        user_id = key.decode(errors="replace")
        self._forget(user_id)
        self._live.forget(user_id)
        return Answer(record.partition, Reply(self._settings.recommendations_topic, key, None), None)

    def _bury(self, record: Record, reason: str, error: str) -> Answer:
        self._metrics.dead_letters.labels(reason).inc()
        headers = dead_letters.headers(
            reason,
            error,
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            time_s=record.timestamp / 1_000,
        )
        reply = Reply(self._settings.dead_letter_topic, record.key, record.value, headers)
        return Answer(record.partition, reply, None)
