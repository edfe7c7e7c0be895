"""Turns records of the windows topic into the records that answer them. Uses no Kafka client and no asyncio."""

import logging
import traceback
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from msgspec import structs

from stream_rec.config import Settings
from stream_rec.kafka import dead_letters, record_batches
from stream_rec.kafka.topics import ENVELOPE, Room
from stream_rec.kafka.transactions import OutputRecord
from stream_rec.messages import (
    UNREADABLE,
    Recommendation,
    TombstoneHeaders,
    Window,
    as_headers,
    encode,
    read_window,
)
from stream_rec.metrics import WorkerMetrics
from stream_rec.worker.online_metrics import OnlineMetrics, Prediction

log = logging.getLogger(__name__)


class ModelAnswer(NamedTuple):
    """What a model answers to a window."""

    recommendation: Recommendation
    floors: Mapping[str, int | None]
    """The rank of the window's last item by each baseline, before it was learned: 1 is the first, None is none."""


class Failed(NamedTuple):
    """Why a model gives no answer to a window."""

    error: Exception


class Model(Protocol):
    """Answers windows. All calls come from one thread."""

    def affordable(self, windows: Sequence[Window]) -> int:
        """How many of the first `windows` fit into one step, at least 1."""

    def step(self, windows: Sequence[Window], partitions: Sequence[int]) -> Sequence[ModelAnswer | Failed]:
        """One answer for each of `windows`; `partitions` (len(windows),) are where they stand.

        If it raises, the model has learned from none of them, and they may be passed again.
        """

    def forget(self, user_id: str) -> None:
        """Erases a user."""

    def __contains__(self, user_id: str) -> bool:
        """Whether any state of the user is held."""


class Record(Protocol):
    """The attributes of a Kafka record that are used here."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


class Answer(NamedTuple):
    """A record for the transaction of `partition`; `arrived` is when its event arrived, seconds (None: no event)."""

    partition: int
    reply: OutputRecord
    arrived: float | None
    prediction: Prediction | None = None
    """What the user's next event is compared with, once the record is committed."""
    failed: bool = False
    """Whether the model failed on the window, so that the record is a dead letter."""


class Erasure(NamedTuple):
    """A tombstone of the windows topic: the user is erased."""

    user_id: str
    """The user's id in the engine, see `engine_user`."""


class Unreadable(NamedTuple):
    """Why a record is not a window."""

    error: str
    reason: str = "unreadable window"


Found = Window | Erasure | Unreadable


class ProcessedBatch(NamedTuple):
    answers: list[Answer]
    records: int
    """How many of the first records are answered."""


def engine_user(user_id: str, partition: int) -> str:
    """The id under which the engine keeps a user of `partition`.

    A user whose events arrive in several partitions has a window in each; the engine treats them as different users.
    """
    return f"{partition}:{user_id}"


class BatchProcessor:
    """Answers windows with recommendations, tombstones with tombstones, and unreadable records with dead letters."""

    def __init__(self, settings: Settings, metrics: WorkerMetrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._online_metrics = OnlineMetrics(metrics)
        self.room = Room(settings.max_message_bytes, settings.max_message_bytes)

    def process(self, model: Model, records: Sequence[Record]) -> ProcessedBatch:
        """Answers as many of the first `records` as fit into one step, in order for each user.

        Bad records and failing windows become dead letters; only faults of the process itself are raised.
        """
        read = [self._read(record) for record in records]
        count = _records_in_step(model, read)
        answers: list[Answer] = []
        waiting: list[tuple[Record, Window]] = []
        for record, found in zip(records[:count], read[:count], strict=True):
            match found:
                case Window():
                    self._metrics.windows.inc()
                    waiting.append((record, found))
                case Unreadable(error, reason):
                    answers.append(self._to_dead_letter(record, reason, error))
                case Erasure(user_id):
                    answers += self._answer_windows(model, waiting)
                    waiting = []
                    answers.append(self._erase(model, record, user_id))
        return ProcessedBatch(answers + self._answer_windows(model, waiting), count)

    def _read(self, record: Record) -> Found:
        if isinstance(record, record_batches.Unreadable):
            return Unreadable(record.error, record.reason)
        if record.value is None and record.key is not None:
            return Erasure(engine_user(record.key.decode(errors="replace"), record.partition))
        try:
            window = read_window(record.value or b"")
            if window.user_id.encode() != record.key:
                raise ValueError("the key is not the user_id")
        except (*UNREADABLE, ValueError) as error:
            return Unreadable(str(error))
        return structs.replace(window, user_id=engine_user(window.user_id, record.partition))

    def _answer_windows(self, model: Model, waiting: Sequence[tuple[Record, Window]]) -> list[Answer]:
        if self._settings.coalesce:
            newest = {window.user_id: (record, window) for record, window in waiting}
            for _, window in waiting:
                if window is not newest[window.user_id][1]:
                    self._online_metrics.happened(window)
            self._metrics.coalesced.inc(len(waiting) - len(newest))
            waiting = list(newest.values())
        return self._compute(model, waiting) if waiting else []

    def _compute(self, model: Model, waiting: Sequence[tuple[Record, Window]]) -> list[Answer]:
        """Runs one step; if it fails, each half again, until the one window at fault becomes a dead letter."""
        try:
            partitions = [record.partition for record, _ in waiting]
            said = model.step([window for _, window in waiting], partitions)
        except Exception as error:  # noqa: BLE001 - one window must not stop the stream, nor be lost
            if len(waiting) > 1:
                half = len(waiting) // 2
                return self._compute(model, waiting[:half]) + self._compute(model, waiting[half:])
            said = [Failed(error)]
        return [
            self._fail(record, one.error) if isinstance(one, Failed) else self._publish(record, window, one)
            for (record, window), one in zip(waiting, said, strict=True)
        ]

    def _fail(self, record: Record, error: Exception) -> Answer:
        frames = "".join(traceback.format_tb(error.__traceback__))  # the error's message may contain an id
        log.error(
            "%s: window %s/%d is a dead letter\n%s", type(error).__name__, record.partition, record.offset, frames
        )
        return self._to_dead_letter(record, "internal error", type(error).__name__)._replace(failed=True)

    def _publish(self, record: Record, window: Window, told: ModelAnswer) -> Answer:
        self._online_metrics.happened(window, told.floors)
        value = encode(structs.replace(told.recommendation, user_id=(record.key or b"").decode()))
        if len(record.key or b"") + len(value) + ENVELOPE > self.room.record:
            return self._to_dead_letter(
                record, "answer too large", f"{len(value)} bytes: lower top_k or raise max_message_bytes"
            )
        prediction = self._online_metrics.predicted(told.recommendation)
        reply = OutputRecord(self._settings.recommendations_topic, record.key, value)
        return Answer(record.partition, reply, window.arrived, prediction)

    def _erase(self, model: Model, record: Record, user_id: str) -> Answer:
        model.forget(user_id)
        self._online_metrics.forget(user_id)
        held = (
            user_id in model or user_id in self._online_metrics
        )  # looked up rather than assumed: the receipt reports it
        headers = as_headers(TombstoneHeaders("something" if held else "nothing"))
        return Answer(
            record.partition, OutputRecord(self._settings.recommendations_topic, record.key, None, headers), None
        )

    def _to_dead_letter(self, record: Record, reason: str, error: str) -> Answer:
        self._metrics.dead_letters.labels(reason).inc()
        letter = dead_letters.to_dead_letter(
            record, reason, error, time_s=record.timestamp / 1_000, max_bytes=self.room.dead_letter
        )
        return Answer(record.partition, OutputRecord(self._settings.dead_letter_topic, *letter), None)


def _records_in_step(model: Model, read: Sequence[Found]) -> int:
    """How many of the first records one step answers: as many windows as the model can afford, and records between.

    All windows of a burst are counted, although only its newest may be answered: that one costs no more.
    """
    places = [at for at, found in enumerate(read) if isinstance(found, Window)]
    windows = [found for found in read if isinstance(found, Window)]
    if not windows:
        return len(read)
    try:
        count = model.affordable(windows)
    except Exception:  # noqa: BLE001 - a window is at fault; the step finds out which
        return len(read)
    return places[count] if count < len(places) else len(read)
