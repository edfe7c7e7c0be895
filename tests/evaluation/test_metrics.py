import numpy as np
import pytest
import pytrec_eval
from hypothesis import given
from hypothesis import strategies as st

from stream_rec.evaluation import metrics
from stream_rec.evaluation.metrics import Lists, Ranks


@pytest.fixture(scope="module")
def predictions() -> tuple[Ranks, dict[str, dict[str, int]], dict[str, dict[str, float]]]:
    """Random lists of 30 of 50 items, 1 to 4 of which are right; as ranks, and as trec_eval takes them."""
    draw = np.random.default_rng(0)
    of, ranks, right, scored = [], [], {}, {}
    for number in range(200):
        ranked = draw.permutation(50)[:30]
        truth = draw.choice(50, draw.integers(1, 5), replace=False)
        place = {int(row): at for at, row in enumerate(ranked)}
        of += [number] * len(truth)
        ranks += [place.get(int(row), 1 << 30) for row in truth]
        right[f"q{number:03}"] = {f"i{row}": 1 for row in truth}
        scored[f"q{number:03}"] = {f"i{row}": float(30 - at) for at, row in enumerate(ranked)}
    return Ranks(np.array(of), np.array(ranks), 200), right, scored


def test_the_figures_are_those_of_trec_eval(predictions) -> None:
    ours, right, scored = predictions
    names = {
        **{f"hr_at_{k}": f"success_{k}" for k in metrics.HIT_RATES},
        **{f"ndcg_at_{k}": f"ndcg_cut_{k}" for k in metrics.GAINS},
        "mrr": "recip_rank",
        "precision_at_10": "P_10",
        "recall_at_10": "recall_10",
    }
    measures = {"success.1,5,10,20", "ndcg_cut.5,10,20", "recip_rank", "P.10", "recall.10"}
    theirs = pytrec_eval.RelevanceEvaluator(right, measures).evaluate(scored)
    found = metrics.figures(ours)
    assert {name: found[name] for name in names} == pytest.approx(
        {name: np.mean([one[other] for one in theirs.values()]) for name, other in names.items()}, abs=1e-6
    )


def test_f1_is_the_harmonic_mean(predictions) -> None:
    found = metrics.figures(predictions[0])
    precision, recall = found["precision_at_10"], found["recall_at_10"]
    assert found["f1_at_10"] == pytest.approx(2 * precision * recall / (precision + recall))


def test_a_part_of_the_predictions_is_measured_alone() -> None:
    ranks = Ranks(np.array([0, 1, 1, 2]), np.array([0, 5, 40, 1 << 30]), 3)
    assert ranks.hits(10).tolist() == [1, 1, 0]
    rest = ranks.pick(np.array([False, True, True]))
    assert (rest.of.tolist(), rest.rank.tolist(), rest.predictions) == ([0, 0, 1], [5, 40, 1 << 30], 2)


def test_the_interval_holds_the_mean_and_draws_whole_users() -> None:
    users = np.repeat(np.arange(40), 25)
    by_user = np.random.default_rng(0).normal(0.1, 1, 40)
    wide = metrics.bootstrap(by_user[users], users)
    narrow = metrics.bootstrap(by_user[users], np.arange(len(users)))
    assert wide.low < wide.mean < wide.high
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)  # events of a user are not independent


def test_the_interval_is_that_of_19_samples_in_20() -> None:
    difference = np.random.default_rng(0).normal(5, 3, 400)
    found = metrics.bootstrap(difference, np.arange(400))
    margin = 1.96 * difference.std() / 20  # of a mean of 400 that are independent
    assert found.high - found.mean == pytest.approx(margin, rel=0.1)
    assert found.mean - found.low == pytest.approx(margin, rel=0.1)


def test_what_is_equally_likely_is_in_one_bin() -> None:
    """However the events stand that had the same probability."""
    said, happened = np.repeat([0.2, 0.6], [55, 45]), np.zeros(100, np.bool_)
    happened[:11] = happened[55:82] = True
    for order in (np.arange(100), np.arange(100)[::-1], np.random.default_rng(0).permutation(100)):
        found = metrics.calibration(said[order], happened[order])
        assert [count for *_, count in found.bins] == [55, 45]
        assert [came for _, came, _ in found.bins] == pytest.approx([0.2, 0.6])
        assert found.error == pytest.approx(0)


@given(st.lists(st.floats(0.01, 0.99), min_size=50, max_size=200), st.integers(0, 9))
def test_probabilities_that_come_true_as_often_as_they_say_have_no_error(said: list[float], seed: int) -> None:
    probabilities = np.repeat(said, 400)
    happened = np.random.default_rng(seed).random(len(probabilities)) < probabilities
    assert metrics.calibration(probabilities, happened).error < 0.05
    assert metrics.calibration(probabilities, ~happened).error >= abs(1 - 2 * probabilities.mean()) - 0.05


def test_lists_are_covering_novel_and_diverse() -> None:
    lists = Lists(np.array([[1, 2], [1, 3]]))
    assert lists.coverage(6) == 0.5
    assert lists.novelty(np.array([0.0, 7, 0, 0])) == pytest.approx(-np.log2([8 / 11, 1 / 11, 8 / 11, 1 / 11]).mean())
    assert lists.diversity(np.eye(4, dtype=np.float32)) == pytest.approx(1)
    assert lists.diversity(np.ones((4, 2), np.float32)) == pytest.approx(0, abs=1e-6)


def test_diversity_is_one_less_the_mean_cosine_of_all_pairs() -> None:
    vectors = np.array([[2, 0], [0.5, 0], [0, 3], [3, 4]], np.float32)
    assert Lists(np.array([[0, 1, 2, 3]])).diversity(vectors) == pytest.approx(1 - (1 + 0 + 0.6 + 0 + 0.6 + 0.8) / 6)


def test_an_item_without_a_vector_is_like_no_other() -> None:
    vectors = np.array([[0, 0], [2, 0], [3, 4]], np.float32)
    assert Lists(np.array([[0, 1, 2]])).diversity(vectors) == pytest.approx(1 - 0.6 / 3)


def test_an_item_that_was_not_listed_is_right_in_no_list() -> None:
    missed = metrics.figures(Ranks(np.array([0]), np.array([metrics.MISSED]), 1))
    assert missed == pytest.approx(dict.fromkeys(missed, 0), abs=1e-6)
