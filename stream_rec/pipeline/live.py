"""Live accuracy of a worker: each event is compared with what this worker last predicted for its user.

Beside it stand the floors: what the online memory's tables alone would have said just before the event. They are as
fresh as can be, while the prediction is as old as the user's event before.
"""

from collections import OrderedDict
from collections.abc import Mapping
from functools import cache, partial
from typing import NamedTuple

from prometheus_client import Counter

from stream_rec.messages import Recommendation, Window
from stream_rec.pipeline.accuracy import hit, rank_of, reciprocal
from stream_rec.telemetry import CUTOFFS, WorkerMetrics


class Counted(NamedTuple):
    """The counters of an event type, or of a floor."""

    evaluated: Counter
    reciprocal_rank: Counter
    hits: tuple[tuple[int, Counter], ...]
    """By how many of the first items count."""

    @classmethod
    def of(cls, evaluated: Counter, reciprocal_rank: Counter, hits: Counter, label: str) -> "Counted":
        by_cutoff = tuple((k, hits.labels(label, str(k))) for k in CUTOFFS)
        return cls(evaluated.labels(label), reciprocal_rank.labels(label), by_cutoff)

    def add(self, rank: int | None) -> None:
        self.evaluated.inc()
        self.reciprocal_rank.inc(reciprocal(rank))
        for k, hits in self.hits:
            if hit(rank, k):
                hits.inc()


class LiveAccuracy:
    """Remembers the last answer of the `most` users answered last."""

    def __init__(self, metrics: WorkerMetrics, most: int = 100_000) -> None:
        # looking a counter up by its labels takes longer than to count
        self._of_type = cache(partial(Counted.of, metrics.evaluated, metrics.reciprocal_rank, metrics.hits))
        self._of_floor = cache(
            partial(Counted.of, metrics.floor_evaluated, metrics.floor_reciprocal_rank, metrics.floor_hits)
        )
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
            self._of_type(event.event_type).add(rank_of(event.item_id, items))
        for floor, rank in floors.items():
            self._of_floor(floor).add(rank if hit(rank, CUTOFFS[-1]) else None)

    def predicted(self, answer: Recommendation) -> None:
        self._answers[answer.user_id] = (answer.seq, tuple(item.item_id for item in answer.items))
        self._answers.move_to_end(answer.user_id)
        if len(self._answers) > self._most:
            self._answers.popitem(last=False)

    def forget(self, user_id: str) -> None:
        self._answers.pop(user_id, None)

    def __contains__(self, user_id: str) -> bool:
        return user_id in self._answers
