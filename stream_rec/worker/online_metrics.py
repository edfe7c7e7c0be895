"""Live accuracy of a worker: each event is compared with what this worker last predicted for its user.

A prediction counts if it was committed before the event arrived (`prequential.in_time`); otherwise the event is counted
as too late. The commit's time is by the worker's clock, the event's is Kafka's timestamp of it.

Beside it stand the floors: what the online memory's tables alone would have said just before the event. They are as
fresh as can be, while the prediction is as old as the user's event before.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from math import inf
from typing import NamedTuple

from prometheus_client import Counter

from stream_rec.evaluation.prequential import hit, in_time, rank_of, reciprocal
from stream_rec.messages import Recommendation, Window
from stream_rec.metrics import CUTOFFS, WorkerMetrics


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


@dataclass(slots=True)
class Prediction:
    """The last answer to a user."""

    seq: int
    items: tuple[str, ...]
    committed_s: float = inf
    """When its transaction ended, seconds since 1970; infinite while it has not. Set on the event loop, read on the
    model's thread."""


class OnlineMetrics:
    """Remembers the last answer of the `most` users answered last."""

    def __init__(self, metrics: WorkerMetrics, most: int = 100_000) -> None:
        # looking a counter up by its labels takes longer than to count
        self._of_type = cache(partial(Counted.of, metrics.evaluated, metrics.reciprocal_rank, metrics.hits))
        self._of_floor = cache(
            partial(Counted.of, metrics.floor_evaluated, metrics.floor_reciprocal_rank, metrics.floor_hits)
        )
        self._too_late = cache(metrics.too_late.labels)
        self._most = most
        self._answers: OrderedDict[str, Prediction] = OrderedDict()

    def happened(self, window: Window, floors: Mapping[str, int | None] | None = None) -> None:
        """Compares the newest event of a window with the answer held for its user, if that is to an earlier window.

        Of a burst that is answered by its newest window alone, this is called for each window, oldest first: an event's
        arrival stands only in its own window. Events whose window Kafka has compacted away are left out. `floors` are
        the places of the event's item in the floors' lists; they are known for windows that are answered.
        """
        held = self._answers.get(window.user_id)
        if held is None or window.n <= held.seq:  # read again, or the user began anew
            return
        event = window.events[-1]
        if not in_time(held.committed_s, window.arrived):
            self._too_late(event.event_type).inc()
            return
        self._of_type(event.event_type).add(rank_of(event.item_id, held.items))
        for floor, rank in (floors or {}).items():
            self._of_floor(floor).add(rank if hit(rank, CUTOFFS[-1]) else None)

    def predicted(self, answer: Recommendation) -> Prediction:
        """Holds an answer. It predicts nothing until `committed_s` is set."""
        made = Prediction(answer.seq, tuple(item.item_id for item in answer.items))
        self._answers[answer.user_id] = made
        self._answers.move_to_end(answer.user_id)
        if len(self._answers) > self._most:
            self._answers.popitem(last=False)
        return made

    def forget(self, user_id: str) -> None:
        self._answers.pop(user_id, None)

    def __contains__(self, user_id: str) -> bool:
        return user_id in self._answers
