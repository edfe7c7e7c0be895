"""Live accuracy of a worker: each event is compared with what this worker last predicted for its user.

Beside it stand the floors: what the online memory's tables alone would have said just before the event. They are as
fresh as can be, while the prediction is as old as the user's event before.
"""

from collections import OrderedDict
from collections.abc import Mapping

from stream_rec.messages import Recommendation, Window
from stream_rec.pipeline.accuracy import hit, rank_of, reciprocal
from stream_rec.telemetry import CUTOFFS, WorkerMetrics


class LiveAccuracy:
    """Remembers the last answer of the `most` users answered last."""

    def __init__(self, metrics: WorkerMetrics, most: int = 100_000) -> None:
        self._metrics = metrics
        self._most = most
        self._answers: OrderedDict[str, tuple[int, tuple[str, ...]]] = OrderedDict()

    def happened(self, window: Window, floors: Mapping[str, int | None]) -> None:
        """Compares the events of a window that came after the answer held for its user, newest last.

        `floors` are the places of the newest one's item: of a burst that is answered by its newest window alone, the
        floors are asked for that one's event.
        """
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
        for floor, rank in floors.items():
            self._metrics.floor_evaluated.labels(floor).inc()
            self._metrics.floor_reciprocal_rank.labels(floor).inc(reciprocal(rank) if hit(rank, CUTOFFS[-1]) else 0.0)
            for k in CUTOFFS:
                if hit(rank, k):
                    self._metrics.floor_hits.labels(floor, str(k)).inc()

    def predicted(self, answer: Recommendation) -> None:
        self._answers[answer.user_id] = (answer.seq, tuple(item.item_id for item in answer.items))
        self._answers.move_to_end(answer.user_id)
        if len(self._answers) > self._most:
            self._answers.popitem(last=False)

    def forget(self, user_id: str) -> None:
        self._answers.pop(user_id, None)

    def __contains__(self, user_id: str) -> bool:
        return user_id in self._answers
