from prometheus_client import CollectorRegistry

from stream_rec.messages import RankedItem, Recommendation
from stream_rec.pipeline.live import LiveAccuracy
from stream_rec.telemetry import WorkerMetrics
from tests.tiny import window


def answer(seq: int, *items: str) -> Recommendation:
    ranked = tuple(RankedItem(item, 0.0, 0.0) for item in items)
    return Recommendation("u", seq, seq, 0.0, ranked, {}, (), "m")


def test_an_event_is_compared_with_what_was_predicted_for_it_and_with_the_floors() -> None:
    registry = CollectorRegistry()
    live = LiveAccuracy(WorkerMetrics(registry))

    def count(name: str, **labels: str) -> float:
        return registry.get_sample_value(f"stream_rec_{name}_total", labels) or 0.0

    live.happened(window("u", 1, ["i1"]), {"markov": 1})  # nothing was predicted for it
    assert count("floor_evaluated_events", floor="markov") == 0
    live.predicted(answer(1, "i9", "i2"))
    second = window("u", 2, ["i1", "i2"])
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
    live.happened(window("u", 2, ["i1", "i2"]), {"markov": 1})  # read again
    assert count("floor_evaluated_events", floor="markov") == 1
