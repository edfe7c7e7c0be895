from importlib.util import find_spec

import pytest

from stream_rec.bench import peers
from stream_rec.bench.engine import EngineBenchOptions, prepare, simulated

PLAN = EngineBenchOptions(capacity=16, width=32, layers=2, heads=2, items=700, events=300, sample=40, batch=32, runs=1)


def test_every_peer_answers_the_same_windows() -> None:
    heard: list[int] = []
    figures = peers.run(simulated(1_500), PLAN, heard.append)
    assert heard == [1]
    assert (figures["events"], figures["sample"], figures["items"]) == (300, 40, 700)
    for name in ("stream_rec", "whole_windows", "transformers"):
        assert figures[name]["encoded_per_s"] > 0
        assert figures[name]["ranked_per_s"] > 0
    assert figures["stream_rec"]["ratio"] == 1
    assert (figures["rectools"] is None) == (find_spec("rectools") is None)


def test_rectools_recommends_for_every_window() -> None:
    pytest.importorskip("rectools", reason="RecTools is not installed: install the extra `bench`")
    stage = prepare(simulated(1_500), PLAN)
    side = peers.rectools(stage, [stage.sample], PLAN)
    assert side is not None
    found = side.rank[0]()
    assert len(found) == len(stage.sample) * peers.TOP
    assert set(found["item_id"]) <= set(range(1, PLAN.items + 1))
    assert side.encode[0]().shape == (len(stage.sample), PLAN.width)
