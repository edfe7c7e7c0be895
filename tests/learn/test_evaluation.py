from itertools import islice
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from stream_rec.errors import UserError
from stream_rec.learn import dataset, evaluation, protocol, train, truth
from stream_rec.learn.diversity_curve import STRENGTHS, figures
from stream_rec.learn.recipe import TrainConfig
from stream_rec.learn.simulate import Storefront
from stream_rec.messages import Event, Window
from stream_rec.model.catalog import Catalog
from stream_rec.model.encoder import EncoderConfig
from stream_rec.model.engine import Engine, Limits
from stream_rec.model.parts import PARTS
from stream_rec.model.scorer import Table
from stream_rec.model.text import TextEncoder
from stream_rec.model.tokens import UNKNOWN
from stream_rec.window import append

EVENTS = 9_000
ENCODER = EncoderConfig(width=64, layers=1, heads=2, kv_heads=2, inner=128)
PLAN = evaluation.Plan("prequential", stride=16)


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
    return evaluation.run(trained.model, frame, PLAN, texts, quiet)


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
    found = figures(lists, np.array([0, 1, 1]), np.array([2, UNKNOWN, 12]), np.eye(13, dtype=np.float32), 12)
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
    frozen = evaluation.run(trained.model, frame, PLAN._replace(protocol="global-time"), texts, quiet)
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
        evaluation.run(trained.model, seen, PLAN, texts, quiet)


def made(rows: str, times: list[float]) -> dataset.Dataset:
    """A log of one user a word; an item is a letter."""
    users = [str(number) for number, word in enumerate(rows.split()) for _ in word]
    frame = pl.DataFrame(
        {"user": users, "item": list(rows.replace(" ", "")), "event": ["view"] * len(users), "time": times}
    )
    return dataset.dataset(frame, {letter: row for row, letter in enumerate("abcdef", 1)}, {"view": 1})


def test_a_basket_is_predicted_in_one() -> None:
    data = made("abbcd ef", [1, 2, 2, 2, 3, 1, 1])
    assert protocol.same_time(data) == pytest.approx(3 / 5)
    targets = protocol.first_of_basket(data, np.array([1, 2, 3, 4, 6]))
    assert targets.tolist() == [1, 4]
    of, rows = truth.right(data, targets, baskets=True)
    assert (of.tolist(), rows.tolist()) == ([0, 0, 1], [2, 3, 4])


def test_what_a_user_ever_met_is_known_per_user() -> None:
    data = made("abc dea", [1, 2, 3, 1, 2, 3])
    answers, rows = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([1, 3, 4, 1, 4, 5])
    table = Table(answers, rows, torch.zeros(6, len(PARTS)))
    assert truth.met(data, np.array([2, 5]), table).tolist() == [True, False, False, False, True, True]
    assert truth.repeats(made("aba cc", [1, 2, 3, 1, 2])) == pytest.approx(2 / 5)
