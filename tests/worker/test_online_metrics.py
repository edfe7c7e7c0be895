from collections.abc import Iterable

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from stream_rec.evaluation.baselines import Baselines
from stream_rec.evaluation.prequential import Prequential
from stream_rec.evaluation.report import Report
from stream_rec.messages import RankedItem, Recommendation, Window
from stream_rec.metrics import WorkerMetrics
from stream_rec.worker.online_metrics import OnlineMetrics
from tests.tiny import window


def answer(seq: int, *items: str) -> Recommendation:
    ranked = tuple(RankedItem(item, 0.0, 0.0) for item in items)
    return Recommendation("u", seq, seq - 1, 0.0, ranked, {}, (), "m")


def arriving(at: float, n: int, items: Iterable[str]) -> Window:
    return msgspec.structs.replace(window("u", n, list(items)), arrived=at)


class Counts:
    """A worker's metrics."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.live = OnlineMetrics(WorkerMetrics(self._registry))

    def of(self, name: str, **labels: str) -> float:
        return self._registry.get_sample_value(f"stream_rec_{name}_total", labels) or 0.0

    def in_all(self, name: str) -> float:
        return sum(self.of(name, event_type=kind) for kind in ("view", "cart"))


def test_an_event_is_compared_with_what_was_predicted_for_it_and_with_the_floors() -> None:
    counts = Counts()
    live, count = counts.live, counts.of
    live.happened(arriving(0.0, 1, ["i1"]), {"markov": 1})  # nothing was predicted for it
    assert count("floor_evaluated_events", floor="markov") == 0
    live.predicted(answer(1, "i9", "i2")).committed_s = 0.5
    second = arriving(1.0, 2, ["i1", "i2"])
    live.happened(second, {"markov": 4, "recent": 60, "popularity": None})
    kind = second.events[-1].event_type
    assert count("hits", event_type=kind, k="1") == 0
    assert count("hits", event_type=kind, k="5") == count("evaluated_events", event_type=kind) == 1
    assert [count("floor_evaluated_events", floor=floor) for floor in ("markov", "recent", "popularity")] == [1, 1, 1]
    assert (count("floor_hits", floor="markov", k="1"), count("floor_hits", floor="markov", k="5")) == (0, 1)
    assert count("floor_hits", floor="recent", k="20") == 0
    assert count("floor_reciprocal_rank", floor="markov") == 1 / 4
    assert count("floor_reciprocal_rank", floor="recent") == count("floor_reciprocal_rank", floor="popularity") == 0
    live.predicted(answer(2, "i3"))
    live.happened(arriving(1.0, 2, ["i1", "i2"]), {"markov": 1})  # read again
    assert count("floor_evaluated_events", floor="markov") == 1
    assert count("too_late_events", event_type=kind) == 0


def test_an_event_that_arrives_before_the_commit_was_not_predicted() -> None:
    counts = Counts()
    made = counts.live.predicted(answer(1, "i2"))
    events = ["i1", "i2"]
    counts.live.happened(arriving(9.0, 2, events), {"markov": 1})  # the transaction is still open
    made.committed_s = 9.0
    counts.live.happened(arriving(9.0, 2, events), {"markov": 1})
    assert (counts.in_all("too_late_events"), counts.in_all("evaluated_events")) == (2, 0)
    assert counts.of("floor_evaluated_events", floor="markov") == 0
    counts.live.happened(arriving(9.001, 2, events), {"markov": 1})
    assert (counts.in_all("too_late_events"), counts.in_all("evaluated_events")) == (2, 1)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.sampled_from("abc")), min_size=1, max_size=20))
def test_the_workers_metrics_and_the_report_agree(steps: list[tuple[int, int, str]]) -> None:
    """Of one user whose every event is answered, where the answers' timestamps are the times of their commits."""
    counts, join, report = Counts(), Prequential(Baselines()), Report()
    now, items = 0.0, [item for _, _, item in steps]
    for offset, (pause, latency, _) in enumerate(steps):
        now += pause
        happened = arriving(now, offset + 1, items[: offset + 1])
        counts.live.happened(happened)
        given_answer = answer(offset + 1, *"abc"[offset % 3 :])
        counts.live.predicted(given_answer).committed_s = now + latency
        report.add(join.event(0, offset, "u", items[offset], happened.events[-1].event_type, now))
        report.add(join.recommendation(0, given_answer, now + latency))
    summary = report.summary(join)
    assert counts.in_all("evaluated_events") == summary["evaluated"]
    assert counts.in_all("too_late_events") == summary["too_late"]
    hits = sum(counts.of("hits", event_type=kind, k="1") for kind in ("view", "cart"))
    assert hits == (summary["hit_rate_at_1"] or 0) * summary["evaluated"]
