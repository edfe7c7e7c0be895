"""The report of an evaluation of six predictions, worked out by hand."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from stream_rec.data.dataset import Dataset
from stream_rec.evaluation import evaluate
from stream_rec.evaluation.evaluate import BLEND, SplitPredictions, TopPredictions
from stream_rec.evaluation.metrics import MISSED, Interval, Ranks
from stream_rec.evaluation.proper_scores import Mass, Said
from stream_rec.ranking.candidate_features import PARTS

ITEMS = 34
HISTORIES = np.array([1, 2, 3, 4, 9, 10])
"""Events before the one that is predicted, by user: all of item 1."""
PREDICTED = np.array([1, 2, 1, 2, 2, 1])
"""The item that is right, by user: 2 is one that the model has not seen."""
VIEW, CART = 1, 2
TYPES = np.array([CART, VIEW, VIEW, CART, VIEW, VIEW])
AT_ONCE = np.array([False, True, False, False, False, True])
"""Whether the predicted event has the time of the one before it."""
LISTS = np.tile([*range(1, 11), *range(21, 31)], (6, 1))


def ranks(*places: int) -> Ranks:
    return Ranks(np.arange(6), np.array(places), 6)


def outcome(data: Dataset, blend: Ranks, **floors: Ranks) -> SplitPredictions:
    happened = np.zeros((6, 20), np.bool_)
    happened[:, :2] = True
    first = TopPredictions(LISTS, np.full((6, 20), 0.05123, np.float32), happened)
    nothing = Said(np.zeros(0), np.zeros(0), np.zeros(0, np.bool_))
    missed = dict.fromkeys(PARTS, ranks(*[MISSED] * 6))
    return SplitPredictions(
        {BLEND: blend, **missed, **floors},
        first,
        Mass(nothing, nothing),
        data.begins[1:] - 1,
        PREDICTED,
        {0.5: LISTS[:, 10:]},
    )


def report_of(seen: evaluate.Seen) -> dict[str, Any]:
    begins = np.concatenate([[0], np.cumsum(HISTORIES + 1)])
    last = begins[1:] - 1
    rows, types = np.ones(begins[-1], np.int64), np.full(begins[-1], VIEW)
    rows[last], types[last] = PREDICTED, TYPES
    times = np.arange(begins[-1], dtype=np.float64)
    times[last[AT_ONCE]] -= 1
    data = Dataset(rows, types, times, np.arange(begins[-1]), begins)
    known = np.ones(begins[-1], np.bool_)
    known[last] = False
    vectors = torch.eye(ITEMS + 1)
    vectors[2] = vectors[1]
    prepared: Any = SimpleNamespace(
        data=data, items=range(ITEMS), catalog=range(ITEMS + 1), vectors=vectors, event_types=("view", "cart")
    )
    live = outcome(
        data,
        ranks(0, 12, 3, 9, 10, 2),
        popularity=ranks(MISSED, 0, MISSED, 7, 12, MISSED),
        transitions=ranks(9, 9, 9, MISSED, MISSED, MISSED),  # more hits, but less gain
    )
    frozen = outcome(data, ranks(0, 0, 0, 0, 0, 40), transitions=ranks(0, 0, 0, 40, 40, 40))
    return evaluate.report(prepared, live, frozen, known, baskets=True, seen=seen)


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return report_of("window")


def groups(report: dict[str, Any], kind: str) -> dict[str, tuple[int, float, float]]:
    """Predictions and hit rates at 10, of the blend and of the best floor."""
    return {
        name: (group["predictions"], group["hr_at_10"], group["floor_hr_at_10"])
        for name, group in report[f"by_{kind}"].items()
    }


def test_each_prediction_counts_in_its_own_group(report) -> None:
    assert groups(report, "item") == {"new": (3, 0.3333, 0.6667), "known": (3, 1.0, 0.0)}
    assert groups(report, "time") == {"that of the event before": (2, 0.5, 0.5), "later": (4, 0.75, 0.25)}
    assert groups(report, "event_type") == {"view": (4, 0.5, 0.25), "cart": (2, 1.0, 0.5)}
    assert groups(report, "history") == {
        "1 event": (1, 1.0, 0.0),
        "2 events": (1, 0.0, 1.0),
        "3 events": (1, 1.0, 0.0),
        "4 to 9 events": (2, 0.5, 0.5),
        "10 or more": (1, 1.0, 0.0),
    }


def test_the_lists_are_measured_by_their_first_ten_items(report) -> None:
    # Item 1 was met 29 times and each row counts once more: 30 of 64; the other nine are 1 of 64, which is 6 bits.
    assert report["novelty_bits"] == round((np.log2(64 / 30) + 9 * 6) / 10, 2) == 5.51
    assert report["coverage"] == round(10 / ITEMS, 4)
    assert report["intra_list_diversity"] == round(1 - 1 / 45, 4)  # one pair of 45 is alike
    assert report["diversity"] == {
        "0.5": {"hr_at_10": 0.0, "ndcg_at_10": 0.0, "intra_list_diversity": 1.0, "coverage": round(10 / ITEMS, 4)}
    }


def test_the_floor_that_counts_is_the_one_with_the_most_gain(report) -> None:
    over = report["over_best_floor"]
    assert over["floor"] == "popularity"
    assert isinstance(over["hr_at_10"], Interval)
    assert over["hr_at_10"].mean == round(4 / 6 - 2 / 6, 4)
    gained = 1 + 1 / np.log2(5) + 1 / np.log2(11) + 1 / np.log2(4)
    assert over["ndcg_at_10"].mean == round((gained - 1 - 1 / np.log2(9)) / 6, 4)
    assert [report["floors"][name]["hr_at_10"] for name in evaluate.BASELINES.values()] == [0.3333, 0.0, 0.5]


def test_a_frozen_memory_is_reported_beside_the_one_that_learns(report) -> None:
    frozen = report["frozen"]
    assert frozen.keys() == {BLEND, *evaluate.BASELINES.values()}
    assert (report["hr_at_1"], frozen[BLEND]["hr_at_1"]) == (0.1667, 0.8333)
    assert (report["floors"]["Markov"]["hr_at_1"], frozen["Markov"]["hr_at_1"]) == (0.0, 0.5)
    assert report["parts"].keys() == set(PARTS)
    assert report["parts"]["popularity"] == report["floors"]["popularity"]


def test_the_report_says_what_was_predicted_and_how(report) -> None:
    assert (report["predictions"], report["users"], report["baskets"]) == (6, 6, True)
    assert (report["seen_items"], report["seen_items_filtered"]) == ("window", True)
    assert report["repeats"] == round(26 / 35, 4)
    assert report["calibration_error"] == 0.04877  # one item in ten was right
    assert report["reliability"] == [[0.05123, 0.1, 120]]


@pytest.mark.parametrize(("seen", "filtered"), [("keep", False), ("window", True), ("ever", True)])
def test_the_report_says_whether_seen_items_were_left_out(seen: evaluate.Seen, filtered: bool) -> None:
    report = report_of(seen)
    assert (report["seen_items"], report["seen_items_filtered"]) == (seen, filtered)
