import json
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from stream_rec.cli.main import cli
from stream_rec.errors import UserError
from stream_rec.evaluation.model_comparison import overlap
from stream_rec.messages import Event, RankedItem
from stream_rec.models import model_store
from stream_rec.serving.engine import Engine, Limits
from stream_rec.window import append
from tests.tiny import CAPACITY, STRIDE, tiny_model

HOSTILE = "[red]\x1b]0;owned\x07"
USERS = ["ann", "bob", "cy", HOSTILE]
SEEN = 1_100.0
"""What the second model was trained until; the first one until 0."""


class World(NamedTuple):
    log: Path
    events: list[Event]
    models: tuple[Path, Path]

    def diff(self, *options: str) -> Result:
        first, second = map(str, self.models)
        given = ("--capacity", str(CAPACITY), "--stride", str(STRIDE), "--kv-cache-gb", "0.01")
        command = ["replay", str(self.log), "--model", first, "--model", second, "--diff", *given, *options]
        return CliRunner().invoke(cli, command, env={"COLUMNS": "250"})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Four users who walk through forty items, one of whom comes late; two models of unlike weights."""
    path = tmp_path_factory.mktemp("diff")
    draw = np.random.default_rng(1)
    events = [
        Event(USERS[n % (3 if n < 60 else 4)], "view", 1_000.0 + n, f"i{draw.integers(20) * 2 % 41}")
        for n in range(240)
    ]
    log = path / "events.csv"
    log.write_text("user,item,time\n" + "".join(f"{e.user_id},{e.item_id},{e.timestamp}\n" for e in events))
    one, other = tiny_model(), tiny_model()
    with torch.no_grad():
        for weight in other.encoder.parameters():
            weight.mul_(0.5)
    config = msgspec.structs.replace(other.config, trained_until=SEEN)
    model_store.save(one, path / "one")
    model_store.save(other._replace(config=config), path / "other")
    return World(log, events, (path / "one", path / "other"))


def place(item: str, items: tuple[RankedItem, ...]) -> float:
    return next((at for at, ranked in enumerate(items, 1) if ranked.item_id == item), np.inf)


def test_the_figures_are_those_of_two_engines_that_answer_one_window_after_the_other(world: World, tmp_path: Path):
    done = world.diff("--json")
    assert done.exit_code == 0, (done.output, done.exception)
    found = json.loads(done.stdout.splitlines()[-1])
    engines = [Engine.load(path, tmp_path, Limits(stride=STRIDE), "cpu") for path in world.models]
    held, before = {}, {}
    places, overlaps = defaultdict(list), defaultdict(list)
    for offset, event in enumerate(world.events):
        held[event.user_id] = window = append(
            held.get(event.user_id), event, offset=offset, arrived=event.timestamp, capacity=CAPACITY, stride=STRIDE
        )
        if event.timestamp <= SEEN:
            for engine in engines:
                engine.learn(window)
            continue
        said = [engine.step([window]).recommendations[0].items for engine in engines]
        if event.user_id in before:
            places[event.user_id].append([place(event.item_id, items) for items in before[event.user_id]])
        before[event.user_id] = said
        overlaps[event.user_id].append(overlap(*([ranked.item_id for ranked in items[:10]] for items in said)))
    ranks = np.concatenate([np.array(one) for one in places.values()])
    assert (found["answers"], found["predictions"]) == (139, len(ranks)) == (139, 135)
    for at, model in enumerate(found["models"]):
        assert model["hr_at_10"] == pytest.approx((ranks[:, at] <= 10).mean(), abs=1e-4)
        gains = np.where(ranks[:, at] <= 10, 1 / np.log2(1 + ranks[:, at]), 0)
        assert model["ndcg_at_10"] == pytest.approx(gains.mean(), abs=1e-4)
        assert model["mrr"] == pytest.approx((1 / ranks[:, at]).mean(), abs=1e-4)
        assert (model["folder"], model["version"]) == (str(world.models[at]), engines[at].version)
    for name in ("hr_at_10", "ndcg_at_10", "mrr"):
        mean, low, high = found["difference"][name]
        assert mean == pytest.approx(found["models"][1][name] - found["models"][0][name], abs=2e-4)
        assert low <= mean <= high
    assert 0 < found["overlap_at_10"] < 1
    assert found["overlap_at_10"] == pytest.approx(np.mean(np.concatenate([*overlaps.values()])), abs=1e-4)
    changed = {one["user_id"]: one for one in found["most_changed"]}
    assert list(changed) == sorted(overlaps, key=lambda user: (round(np.mean(overlaps[user]), 4), -len(overlaps[user])))
    for user, one in changed.items():
        assert one["overlap_at_10"] == pytest.approx(np.mean(overlaps[user]), abs=1e-4)
        assert (one["answers"], one["predictions"]) == (len(overlaps[user]), len(places[user]))
        assert one["hits_at_10"] == (np.array(places[user]) <= 10).sum(axis=0).tolist()


def test_a_model_differs_in_nothing_from_itself(world: World):
    done = world._replace(models=(world.models[0],) * 2).diff("--json", "--limit", "50")
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["answers"], found["overlap_at_10"], found["same_first"]) == (50, 1, 1)
    assert set(map(tuple, found["difference"].values())) == {(0, 0, 0)}


def test_a_range_chooses_what_is_compared_and_not_what_the_windows_hold(world: World):
    found = json.loads(world.diff("--json", "--range", "1170..1220").stdout.splitlines()[-1])
    assert (found["begin"], found["end"], found["answers"]) == (1_170, 1_219, 50)
    late = json.loads(world.diff("--json", "--range", "1050..").stdout.splitlines()[-1])
    assert late["begin"] == SEEN + 1


def test_a_person_sees_tables_and_user_ids_that_do_no_harm(world: World):
    shown = world.diff().stdout
    for heading in ("135 predictions for 4 users", "HR@10", "95% of resampled users", "Whose answers changed most"):
        assert heading in shown
    assert "[red]\N{REPLACEMENT CHARACTER}]0" in shown
    assert all(one.isprintable() for line in shown.splitlines() for one in line)


MISTAKES = {
    "no model": (("E", "--diff"), "compares two models, and was given 0"),
    "one model": (("E", "--diff", "--model", "A"), "was given 1"),
    "three models": (("E", "--diff", *("--model", "A") * 3), "was given 3"),
    "no folder": (("E", "--diff", "--model", "A", "--model", "nowhere"), "no model in nowhere"),
    "nothing to read": (("--diff", "--model", "A", "--model", "B"), "name what to read"),
    "a file and a topic": (("E", "--from-topic", "events", "--diff", "--model", "A", "--model", "B"), "name what to"),
    "an odd range": (("E", "--diff", "--model", "A", "--model", "B", "--range", "x.."), "the begin of --range is 'x'"),
    "a range that is none": (("E", "--diff", "--model", "A", "--model", "B", "--range", "9..8"), "is not before"),
    "a range of nothing": (("E", "--diff", "--model", "A", "--model", "B", "--range", "2099.."), "holds nothing newer"),
    "a range before all": (("E", "--diff", "--model", "A", "--model", "B", "--range", "..900"), "no event of the time"),
    "no second event": (("E", "--diff", "--model", "A", "--model", "B", "--limit", "2"), "none is a user's second"),
    "no times": (("untimed.csv", "--diff", "--model", "A", "--model", "B", "--range", "1d"), "it has no times"),
    "what is for sending": (("E", "--diff", "--model", "A", "--model", "B", "--rate", "5"), "--rate does not go with"),
    "what is for comparing": (("E", "--model", "A"), "--model is for --diff"),
    "a topic to send": (("--from-topic", "events"), "--from-topic is for --diff"),
    "nothing to send": ((), "name a file of events"),
}


@pytest.mark.parametrize(("arguments", "says"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_told_in_one_line(world, tmp_path, monkeypatch, arguments: tuple[str, ...], says: str):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "untimed.csv").write_text("user,item\na,i1\na,i2\n")
    real = {"E": world.log, "A": world.models[0], "B": world.models[1]}
    done = CliRunner().invoke(cli, ["replay", *(str(real.get(word, word)) for word in arguments)])
    assert isinstance(done.exception, UserError)
    assert says in str(done.exception)
    assert "\n" not in str(done.exception)


def test_a_limit_of_nothing_is_no_limit_that_the_option_takes(world) -> None:
    models = (word for path in world.models for word in ("--model", str(path)))
    done = CliRunner().invoke(cli, ["replay", str(world.log), "--diff", *models, "--limit", "0"])
    assert done.exit_code == 2
    assert "0 is not in the range" in done.output


def test_a_model_that_knows_no_times_is_not_compared_by_them(world: World, tmp_path: Path) -> None:
    untimed = tiny_model()
    model_store.save(
        untimed._replace(config=msgspec.structs.replace(untimed.config, has_time=False)), tmp_path / "untimed"
    )
    done = world._replace(models=(world.models[0], tmp_path / "untimed")).diff()
    assert isinstance(done.exception, UserError)
    assert "untimed learned from a log without times" in str(done.exception)
