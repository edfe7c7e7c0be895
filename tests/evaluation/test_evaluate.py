from collections import Counter
from itertools import islice
from typing import Any, NamedTuple

import msgspec
import numpy as np
import polars as pl
import pytest
import torch

from stream_rec.data import dataset
from stream_rec.data.simulator.storefront import Storefront
from stream_rec.errors import UserError
from stream_rec.evaluation import evaluate, metrics, proper_scores, splits
from stream_rec.evaluation.evaluate import STRENGTHS, diversity_figures
from stream_rec.features.catalog import Catalog
from stream_rec.features.online_statistics import OnlineStatistics
from stream_rec.features.text_encoder import TextEncoder
from stream_rec.features.tokens import UNKNOWN
from stream_rec.messages import Event, Window
from stream_rec.models.model_store import Privacy
from stream_rec.models.user_encoder import EncoderConfig
from stream_rec.ranking.blend import CandidateTable
from stream_rec.ranking.candidate_features import PARTS
from stream_rec.ranking.ranker import MMR_POOL_FACTOR, RankingConfig
from stream_rec.serving.engine import Engine, Limits
from stream_rec.training import train
from stream_rec.training.config import TrainConfig
from stream_rec.window import append

EVENTS = 9_000
ENCODER = EncoderConfig(width=64, layers=1, heads=2, kv_heads=2, inner=128)
PLAN = evaluate.EvaluationPlan("prequential", stride=16)


def quiet(*_: Any) -> None:
    """No progress."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[train.Trained, pl.DataFrame, TextEncoder]:
    """A shop of which a model saw the first 80%."""
    out = tmp_path_factory.mktemp("model")
    front = Storefront(seed=2, products=312, shoppers=200)
    events = list(islice(front.events(), EVENTS))
    frame = pl.DataFrame(
        {
            "user": [event.user_id for event in events],
            "item": [event.item_id for event in events],
            "event": [event.event_type for event in events],
            "time": [event.timestamp for event in events],
        }
    )
    texts = TextEncoder("sentence-transformers/all-MiniLM-L6-v2", out)
    config = TrainConfig(encoder=ENCODER, capacity=32, stride=16, epochs=6, batch_tokens=300, refit=False)
    cut = frame["time"][EVENTS * 8 // 10]
    return train.train(frame.filter(pl.col("time") < cut), front.items, config, texts, out, quiet), frame, texts


@pytest.fixture(scope="module")
def live(world) -> dict[str, Any]:
    """What the model is worth on the rest, its memory learning on."""
    trained, frame, texts = world
    return evaluate.run(trained.model, frame, PLAN, texts, quiet)


def test_training_measures_every_part_alone_and_left_out(world) -> None:
    measured = world[0].measured
    assert set(measured.alone) == set(measured.left_out) == set(PARTS)
    for part in measured.alone.values():
        assert measured.blend["ndcg_at_10"] > part["ndcg_at_10"]
        assert measured.blend["hr_at_10"] > part["hr_at_10"]


def test_the_blend_beats_every_floor_by_a_margin(live) -> None:
    assert live["predictions"] > EVENTS / 10
    assert live["hr_at_10"] > 1.05 * max(floor["hr_at_10"] for floor in live["floors"].values())
    assert live["ndcg_at_10"] > 1.05 * max(floor["ndcg_at_10"] for floor in live["floors"].values())
    assert live["over_best_floor"]["hr_at_10"].low > 0
    assert set(live["parts"]) == set(PARTS)
    assert sum(group["predictions"] for group in live["by_history"].values()) == live["predictions"]
    assert 0 < live["coverage"] <= 1
    assert live["calibration_error"] < 0.02


def test_diversity_widens_the_lists_and_costs_hits(live) -> None:
    points = [live, *(live["diversity"][str(strength)] for strength in STRENGTHS)]
    wide = [point["intra_list_diversity"] for point in points]
    assert wide == sorted(wide)
    assert wide[-1] > wide[0] + 0.02
    assert points[1]["hr_at_10"] > 0.9 * live["hr_at_10"]
    assert points[-1]["hr_at_10"] < live["hr_at_10"]


def test_figures_of_a_list_are_of_what_it_shows() -> None:
    lists = np.array([[*range(1, 11)], [*range(3, 13)]])
    found = diversity_figures(lists, np.array([0, 1, 1]), np.array([2, UNKNOWN, 12]), np.eye(13, dtype=np.float32), 12)
    gains = 1 / np.log2(3), (1 / np.log2(11)) / (1 + 1 / np.log2(3))
    assert found == {
        "hr_at_10": 1.0,
        "ndcg_at_10": pytest.approx(np.mean(gains), abs=1e-4),
        "intra_list_diversity": 1.0,
        "coverage": 1.0,
    }


def test_every_probability_is_worth_more_than_what_needs_no_training(live) -> None:
    found = live["probabilities"]
    assert set(found) == {"probability", "next_event", "interests", "interest"}
    for what, rows in found.items():
        ours = rows["model"]
        others = {name: figures for name, figures in rows.items() if name != "model"}
        assert len(others) >= 2
        for name, other in others.items():
            level = 1.03 if name == "frequency after the last type" else 1  # in this shop there is little more to know
            assert ours["log_loss"] < level * other["log_loss"], (what, rows)
        assert ours["calibration_error"] < 0.1, (what, rows)
    aucs = {name: figures["auc"] for name, figures in found["interest"].items()}
    assert aucs["model"] == max(aucs.values()), aucs


def test_after_a_time_the_memory_learns_on_or_not(world, live) -> None:
    trained, frame, texts = world
    frozen = evaluate.run(trained.model, frame, PLAN._replace(protocol="global-time"), texts, quiet)
    assert frozen["frozen"]["blend"] == live["frozen"]["blend"] == {key: frozen[key] for key in live["frozen"]["blend"]}
    assert live["floors"]["Markov"]["hr_at_10"] > frozen["floors"]["Markov"]["hr_at_10"]


def drifted(trained: train.Trained, texts: TextEncoder, events: pl.DataFrame) -> dict[str, float]:
    """What an engine says of drift after it has served `events`."""
    model = trained.model
    catalog = Catalog(model.items, model.vectors, model.features, model.alike, texts)
    engine = Engine(model, catalog, Limits(stride=16), torch.device("cpu"))
    held: dict[str, Window] = {}
    made = []
    for offset, row in enumerate(events.rows(named=True)):
        event = Event(row["user"], row["event"], row["time"], row["item"])
        held[event.user_id] = append(
            held.get(event.user_id), event, offset=offset, arrived=event.timestamp, capacity=32, stride=16
        )
        made.append(held[event.user_id])
    return [engine.step(made[begin : begin + 50]).drift for begin in range(0, len(made), 50)][-1]


def test_the_shops_own_future_is_little_drift_and_another_assortment_is_much(world) -> None:
    trained, frame, texts = world
    future = frame.filter(pl.col("time") > trained.model.config.trained_until)
    own = drifted(trained, texts, future)
    assert max(own.values()) < 0.25, own
    names = sorted(frame["item"].unique())
    turned = dict(zip(names, reversed(names), strict=True))
    other = drifted(trained, texts, future.with_columns(pl.col("item").replace(turned), event=pl.lit("cart")))
    assert other["items"] > 4 * own["items"], (own, other)
    assert other["event_types"] > 0.25 > 10 * own["event_types"], (own, other)


def test_a_log_that_the_model_has_seen_to_the_end_is_refused(world) -> None:
    trained, frame, texts = world
    seen = frame.filter(pl.col("time") <= trained.model.config.trained_until)
    with pytest.raises(UserError, match="nothing that the model has not seen"):
        evaluate.run(trained.model, seen, PLAN, texts, quiet)


def made(rows: str, times: list[float]) -> dataset.Dataset:
    """A log of one user a word; an item is a letter."""
    users = [str(number) for number, word in enumerate(rows.split()) for _ in word]
    frame = pl.DataFrame(
        {"user": users, "item": list(rows.replace(" ", "")), "event": ["view"] * len(users), "time": times}
    )
    return dataset.dataset(frame, {letter: row for row, letter in enumerate("abcdef", 1)}, {"view": 1})


def test_a_basket_is_predicted_in_one() -> None:
    data = made("abbcd ef", [1, 2, 2, 2, 3, 1, 1])
    assert splits.same_time(data) == pytest.approx(3 / 5)
    targets = splits.first_of_basket(data, np.array([1, 2, 3, 4, 6]))
    assert targets.tolist() == [1, 4]
    of, rows = evaluate.relevant_items(data, targets, baskets=True)
    assert (of.tolist(), rows.tolist()) == ([0, 0, 1], [2, 3, 4])


class Split(NamedTuple):
    """An evaluation, and the parts of it that a test looks into."""

    figures: dict[str, Any]
    data: dataset.Dataset
    outcome: evaluate.SplitPredictions
    known: np.ndarray


def evaluated(world, plan: evaluate.EvaluationPlan, frame: pl.DataFrame | None = None) -> Split:
    """As `evaluation.run`, with the first list of arguments that its report was given."""
    trained, whole, texts = world
    told: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        report = evaluate.report
        patch.setattr(evaluate, "report", lambda *given, **how: told.append(given) or report(*given, **how))
        figures = evaluate.run(trained.model, whole if frame is None else frame, plan, texts, quiet)
    prepared, live, _, known = told[0]
    return Split(figures, prepared.data, live, known)


@pytest.fixture(scope="module")
def little(world) -> pl.DataFrame:
    """A part of the log with few predictions."""
    return world[1].head(EVENTS * 83 // 100)


@pytest.fixture(scope="module")
def kept(world, little) -> Split:
    return evaluated(world, PLAN, little)


def hits(split: Split) -> np.ndarray:
    """Which right items are among the first ten."""
    return split.outcome.ranks[evaluate.BLEND].rank < metrics.CUT


def test_items_in_the_window_are_left_out_as_they_are_served(world, little, kept) -> None:
    """Item by item: the lists of an engine whose memory has learned as much, with `exclude_seen`."""
    window = evaluated(world, PLAN._replace(seen="window"), little)
    data, model = kept.data, world[0].model
    rows = []
    for at, place in enumerate(window.outcome.places.tolist()):
        served = set(data.rows[dataset.served(data, place, model.config.capacity, 16)].tolist())
        listed = [row for row in kept.outcome.first.rows[at].tolist() if row not in served]
        shown = [row for row in window.outcome.first.rows[at].tolist() if row != UNKNOWN]
        assert not served & set(shown)
        assert shown[: len(listed)] == listed
        chances = dict(zip(kept.outcome.first.rows[at], kept.outcome.first.probabilities[at], strict=True))
        said = zip(window.outcome.first.rows[at], window.outcome.first.probabilities[at], strict=True)
        assert all(chances[row] == chance for row, chance in said if row in listed)
        if data.rows[place] in served:
            rows.append(at)
    assert rows
    assert (window.outcome.ranks[evaluate.BLEND].rank[rows] == metrics.MISSED).all()
    assert window.figures["seen_items"] == "window"
    assert kept.figures["seen_items"] == "keep"
    assert 0 < kept.figures["repeats"] < 1
    assert window.figures["probabilities"]["probability"] == kept.figures["probabilities"]["probability"]


def test_items_that_a_user_ever_met_are_left_out_however_long_ago(world, little, kept) -> None:
    ever = evaluated(world, PLAN._replace(seen="ever"), little)
    data, beyond = kept.data, 0
    for at, place in enumerate(ever.outcome.places.tolist()):
        before = data.rows[data.begins[data.user_of(np.array(place))] : place]
        beyond += bool(set(before[:-32].tolist()) - set(before[-32:].tolist()))
        assert not set(before.tolist()) & set(ever.outcome.first.rows[at].tolist())
    assert beyond
    assert ever.figures["seen_items"] == "ever"
    assert 0 < hits(ever).sum() < hits(kept).sum()


def test_leave_one_out_predicts_each_users_last_event_from_all_others(world, little) -> None:
    last = evaluated(world, PLAN._replace(protocol="leave-one-out"), little)
    data, lengths = last.data, np.diff(last.data.begins)
    assert sorted(last.outcome.places.tolist()) == (last.data.begins[1:][lengths > 1] - 1).tolist()
    assert last.figures["predictions"] == last.figures["users"] == int((lengths > 1).sum())
    assert last.known.sum() == len(data.rows) - len(lengths)
    assert not last.known[data.begins[1:] - 1].any()
    assert last.figures["frozen"]["blend"]["hr_at_10"] == last.figures["hr_at_10"] > 0
    assert last.figures["floors"] == {name: last.figures["frozen"][name] for name in last.figures["floors"]}


def test_baskets_are_predicted_in_one(world, little) -> None:
    """The same log, where each user does three things at a time."""
    number = pl.col("time").cum_count().over("user")
    time = pl.when(number % 3 == 1).then(pl.col("time")).forward_fill().over("user")
    coarse = little.with_columns(time=time).sort("time", maintain_order=True)
    split = evaluated(world, PLAN, coarse)
    data, ranks = split.data, split.outcome.ranks[evaluate.BLEND]
    assert split.figures["baskets"]
    assert (data.times[split.outcome.places] != data.times[split.outcome.places - 1]).all()
    for number, place in enumerate(split.outcome.places.tolist()):
        user = slice(place, data.begins[data.user_of(np.array(place)) + 1])
        basket = set(data.rows[user][data.times[user] == data.times[place]].tolist())
        assert set(split.outcome.right[ranks.of == number].tolist()) == basket
    assert split.figures["by_time"].keys() == {"later"}
    assert not evaluated(world, PLAN._replace(baskets=False), coarse).figures["baskets"]


def test_the_figures_by_kind_are_those_of_their_events_alone(kept) -> None:
    figures, data, outcome = kept.figures, kept.data, kept.outcome
    places, hit = outcome.places, hits(kept)
    floors = {part: outcome.ranks[part].rank < metrics.CUT for part in evaluate.BASELINES}
    named = {name: part for part, name in evaluate.BASELINES.items()}
    best = floors[named[figures["over_best_floor"]["floor"]]]
    known = set(data.rows[kept.known].tolist())
    new = np.array([row not in known for row in data.rows[places].tolist()])
    same = np.array([data.times[place] == data.times[place - 1] for place in places.tolist()])
    kinds = {"item": {"new": new, "known": ~new}, "time": {"that of the event before": same, "later": ~same}}
    for kind, which in kinds.items():
        assert figures[f"by_{kind}"].keys() == {name for name, chosen in which.items() if chosen.any()}
        for name, group in figures[f"by_{kind}"].items():
            chosen = which[name]
            assert group["predictions"] == chosen.sum()
            assert group["hr_at_10"] == pytest.approx(hit[chosen].mean(), abs=1e-4)
            assert group["floor_hr_at_10"] == pytest.approx(best[chosen].mean(), abs=1e-4)


def test_novelty_is_the_information_of_a_listed_item_by_what_the_model_had_seen(world, kept) -> None:
    met = Counter(kept.data.rows[kept.known].tolist())
    every = met.total() + len(world[0].model.items) + 1  # each is counted once more, the unknown item too
    listed = kept.outcome.first.rows[:, : metrics.CUT].ravel().tolist()
    assert kept.figures["novelty_bits"] == pytest.approx(
        -np.mean([np.log2((met[row] + 1) / every) for row in listed]), abs=0.006
    )


def test_what_a_user_ever_met_is_known_per_user() -> None:
    data = made("abc dea", [1, 2, 3, 1, 2, 3])
    answers, rows = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([1, 3, 4, 1, 4, 5])
    table = CandidateTable(answers, rows, torch.zeros(6, len(PARTS)))
    assert evaluate.seen_before(data, np.array([2, 5]), table).tolist() == [True, False, False, False, True, True]


def test_items_met_by_one_user_are_not_taken_for_those_of_another() -> None:
    """Also the largest row beside the next user's unknown item, which is row 0."""
    table = CandidateTable(torch.tensor([0, 1]), torch.tensor([3, UNKNOWN]), torch.zeros(2, len(PARTS)))
    assert evaluate.seen_before(made("cc ab", [1, 2, 1, 2]), np.array([1, 3]), table).tolist() == [True, False]


@pytest.mark.parametrize(
    ("rows", "share"), [("aba cc", 2 / 5), ("c z", 0.0), ("b c c c a", 0.0), ("a a", 0.0), ("aaaa", 3 / 4)]
)
def test_a_repeat_is_an_item_that_the_same_user_had_met(rows: str, share: float) -> None:
    """An item `z` is none of the catalogue."""
    assert evaluate.repeats(made(rows, [float(at) for at in range(len(rows.replace(" ", "")))])) == pytest.approx(share)


def test_the_unknown_item_is_right_in_no_list() -> None:
    lists = np.array([[UNKNOWN, *range(1, 10)]])
    found = evaluate.diversity_figures(lists, np.array([0]), np.array([UNKNOWN]), np.eye(10, dtype=np.float32), 9)
    assert (found["hr_at_10"], found["ndcg_at_10"]) == (0.0, 0.0)


def test_diversity_chooses_from_as_many_candidates_as_serving_does() -> None:
    """One candidate that is like no other stands just within the pool, and then just beyond it."""
    pool = MMR_POOL_FACTOR * RankingConfig().top_k
    for place, chosen in ((pool - 1, True), (pool, False)):
        rows = torch.arange(1, pool + 11)
        outputs = torch.zeros(len(rows) + 1, 2)
        outputs[:, 0] = 1
        outputs[rows[place]] = torch.tensor([0.0, 1.0])
        table = CandidateTable(torch.zeros(len(rows), dtype=torch.int64), rows, torch.zeros(len(rows), len(PARTS)))
        lists = evaluate.diverse_lists(table, -0.001 * torch.arange(len(rows)), outputs, [0.9])[0.9]
        assert (rows[place].item() in lists[0].tolist()) is chosen


def test_after_a_share_of_the_log_only_what_comes_then_is_predicted(world, little, kept) -> None:
    data, places = kept.data, kept.outcome.places
    order = np.sort(data.order[places])
    after = order[len(order) // 2] / len(data.rows)  # an event stands exactly there, and is predicted
    late = evaluated(world, PLAN._replace(after=after), little)
    assert np.sort(data.order[late.outcome.places]).tolist() == order[order >= after * len(data.rows)].tolist()
    assert order[len(order) // 2] in data.order[late.outcome.places]


def test_a_memory_that_holds_nothing_is_taught_what_the_model_knew(world, little, kept) -> None:
    """As that of a private model, whose folder holds no statistics of its users."""
    trained, _, texts = world
    model = trained.model
    private = Privacy(epsilon=1, delta=1e-5, clip=1, noise=1, rate=0.1, steps=1, users=1)
    empty = model._replace(
        config=msgspec.structs.replace(model.config, privacy=private),
        memory=OnlineStatistics(model.config.horizons, -np.inf).state(),
    )
    figures = evaluate.run(empty, little, PLAN, texts, quiet)
    assert figures["floors"] == kept.figures["floors"]
    assert figures["frozen"] == kept.figures["frozen"]
    assert figures["probabilities"]["probability"] == kept.figures["probabilities"]["probability"]


def test_what_the_model_knew_is_taught_once(world, little) -> None:
    taught: list[np.ndarray] = []
    teach = evaluate.teach
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "teach", lambda *given: taught.append(given[2]) or teach(*given))
        evaluate.run(world[0].model, little, PLAN, world[2], quiet)
    assert [places.tolist() for places in taught] == [[], []]


def test_items_outside_of_the_catalogue_are_judged_by_no_probability(world, little) -> None:
    until = world[0].model.config.trained_until
    name = little.filter(pl.col("time") > until)["item"].value_counts(sort=True)["item"][0]
    frame = little.with_columns(pl.col("item").replace(name, "an item that the catalogue does not know"))
    judged: list[Any] = []
    of_items = proper_scores.of_items
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proper_scores, "of_items", lambda *given: judged.append(given) or of_items(*given))
        split = evaluated(world, PLAN, frame)
    data, places = split.data, split.outcome.places
    assert (data.rows[places] == UNKNOWN).any()
    assert (data.rows[split.known] == UNKNOWN).any()
    ((said, truth, met, items),) = judged
    assert truth.tolist() == [row for row in data.rows[places].tolist() if row != UNKNOWN]
    assert met.tolist() == [row for row in data.rows[split.known].tolist() if row != UNKNOWN]
    assert (len(said.truth), items) == (len(truth), len(world[0].model.items))


def test_an_item_is_right_in_the_answer_that_it_is_right_for() -> None:
    shares = torch.tensor([[0.6, 0.3], [0.5, 0.1]])
    first = evaluate.TopPredictions.of(shares, torch.tensor([[1, 3], [2, 1]]), np.array([0]), np.array([3]))
    assert first.rows[:, :3].tolist() == [[1, 3, UNKNOWN], [2, 1, UNKNOWN]]
    assert np.argwhere(first.happened).tolist() == [[0, 1]]
    assert first.probabilities[:, :2].tolist() == pytest.approx(shares.numpy())
