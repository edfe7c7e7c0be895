"""Live accuracy of a worker: each event is compared with what this worker last predicted for its user."""

from collections import OrderedDict

from stream_rec.messages import Recommendation, Window
from stream_rec.pipeline.accuracy import hit, rank_of, reciprocal
from stream_rec.telemetry import CUTOFFS, WorkerMetrics


class LiveAccuracy:
    """Remembers the last answer of the `most` users answered last."""

    def __init__(self, metrics: WorkerMetrics, most: int = 100_000) -> None:
        self._metrics = metrics
        self._most = most
        self._answers: OrderedDict[str, tuple[int, tuple[str, ...]]] = OrderedDict()

    def happened(self, window: Window) -> None:
        """Compares the events of a window that came after the answer held for its user, newest last."""
        held = self._answers.get(window.user_id)
        if held is None:
            return
        seq, items = held
        fresh = window.n - seq
        if fresh < 1:  # read again, or the user began anew
            return
        for event in window.events[-min(fresh, len(window.events)) :]:
            rank = rank_of(event.item_id, items)
            self._metrics.evaluated.labels(event.event_type).inc()
            self._metrics.reciprocal_rank.labels(event.event_type).inc(reciprocal(rank))
            for k in CUTOFFS:
                if hit(rank, k):
                    self._metrics.hits.labels(event.event_type, str(k)).inc()

    def predicted(self, answer: Recommendation) -> None:
        self._answers[answer.user_id] = (answer.seq, tuple(item.item_id for item in answer.items))
        self._answers.move_to_end(answer.user_id)
        if len(self._answers) > self._most:
            self._answers.popitem(last=False)

    def forget(self, user_id: str) -> None:
        self._answers.pop(user_id, None)
