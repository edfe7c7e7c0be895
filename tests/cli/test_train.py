"""`stream-rec train` as a person runs it, on a small shop: one model, several seeds, a search."""

import json
import sys
from itertools import islice
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from stream_rec.cli.main import cli
from stream_rec.data import event_log
from stream_rec.data.simulator.storefront import Storefront
from stream_rec.errors import UserError
from stream_rec.features.online_statistics import FOREVER, HalfLives
from stream_rec.models import model_store
from stream_rec.training import lbfgs, model_card, search, train
from stream_rec.training import run as single
from stream_rec.training.model_card import Measured

SMALL = ("--width", "32", "--layers", "1", "--capacity", "8", "--threads", "1", "--no-refit")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with events.csv and items.jsonl, whose items bring vectors of their own."""
    path = tmp_path_factory.mktemp("shop")
    front = Storefront(seed=1, products=312, shoppers=40)
    items = [msgspec.structs.replace(item, vector=[float(len(item.title)), item.price or 0.0]) for item in front.items]
    event_log.write_items(items, path / "items.jsonl")
    event_log.write_events(islice(front.events(), 400), path / "events.csv")
    return path


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few validation predictions, coarse weights: what the blend is worth is another test's."""
    monkeypatch.setattr(train, "VALIDATION_PREDICTIONS", 20)
    monkeypatch.setattr(lbfgs, "ITERATIONS", 3)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_card, "draw_picture", lambda *_: None)


def run(shop: Path, out: Path, *more: str, epochs: int = 1) -> Result:
    files = (str(shop / "events.csv"), "--items", str(shop / "items.jsonl"), "--epochs", str(epochs))
    cache = ("--text-encoder", "none", "--cache-dir", str(shop))
    return CliRunner().invoke(cli, ["train", *files, *cache, "--out", str(out), *SMALL, *more])


def measured(folder: Path) -> Measured:
    return msgspec.json.decode((folder / "metrics.json").read_bytes(), type=Measured)


def test_the_folder_keeps_the_curve_and_the_card_shows_the_picture(shop: Path, tmp_path: Path) -> None:
    done = run(shop, tmp_path, epochs=2)
    assert done.exit_code == 0, done.output
    found = measured(tmp_path)
    first, second = found.epochs
    assert first.loss > second.loss > 0
    assert second.held_out is not None
    assert set(second.held_out) == {"loss", "hr_at_10", "ndcg_at_10"}
    assert sum(count for _, _, count in found.reliability) == 20 * found.predictions
    card = (tmp_path / "README.md").read_text()
    assert "](training.svg)" in card
    assert "events.csv: 400 events" in card
    picture = (tmp_path / "training.svg").read_text()
    for label in ("held out, among all items", "transitions", "Calibration"):
        assert label in picture
    assert not list(tmp_path.glob("checkpoint-*"))


def test_without_matplotlib_there_is_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / model_card.PICTURE).write_text("that of an older model")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert model_card.draw_picture(Measured(1, {}, {}, {}, 0.0, 0.0, 0.0, []), tmp_path) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("undrawn")
def test_seeds_make_folders_that_evaluate_takes_together(shop: Path, tmp_path: Path) -> None:
    def seeds(share: str) -> Result:
        return run(shop, tmp_path, "--seeds", "2", "--first", share)

    def evaluated(*more: str) -> dict[str, float]:
        command = ("evaluate", *map(str, folders), str(shop / "events.csv"), "--json", *more)
        shown = CliRunner().invoke(cli, [*command, "--cache-dir", str(shop)])
        assert shown.exit_code == 0, (shown.output, shown.exception)
        return json.loads(shown.stdout)

    done = seeds("0.8")
    assert done.exit_code == 0, done.output
    assert "spread" in done.output
    folders = sorted(tmp_path.iterdir())
    assert [folder.name for folder in folders] == ["seed-0", "seed-1"]
    assert len({measured(folder).fingerprint for folder in folders}) == 2
    written = [(folder / "config.json").stat().st_mtime_ns for folder in folders]
    assert seeds("0.8").exit_code == 0
    assert [(folder / "config.json").stat().st_mtime_ns for folder in folders] == written  # they were there already
    assert "other settings or data" in str(seeds("0.7").exception)
    found, late = evaluated(), evaluated("--after", "0.9")
    assert found["seeds"] == 2
    assert 0 < late["predictions"] < found["predictions"]


@pytest.fixture
def params(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """What each trial asked for."""
    asked: list[dict[str, object]] = []
    suggest = search.suggest

    def noted(*arguments: object) -> dict[str, object]:
        asked.append(suggest(*arguments))
        return asked[-1]

    monkeypatch.setattr(search, "suggest", noted)
    return asked


@pytest.mark.usefixtures("undrawn")
def test_a_search_begins_with_the_recipe_and_goes_on_as_if_it_had_not_been_interrupted(
    shop: Path, tmp_path: Path, params: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run(shop, tmp_path / "whole", "--trials", "2")
    assert done.exit_code == 0, done.output
    assert "2 trials" in done.output
    whole, params[:] = list(params), []
    assert whole[0] == {"learning_rate": 2e-3, "weight_decay": 0.01, "dropout": 0.3, "residual_dropout": 0.2}
    assert [set(one) for one in whole] == [set(whole[0])] * 2
    assert len({tuple(one.values()) for one in whole}) == 2
    config = json.loads((tmp_path / "whole" / "config.json").read_text())["encoder"]
    assert any(one["dropout"] == config["dropout"] for one in whole)
    assert not list((tmp_path / "whole").glob("trial-*"))

    fit = single.fit

    def interrupted(*arguments: object, **named: object) -> object:
        if len(params) in (1, 3):  # the first trial, then the second one
            raise KeyboardInterrupt
        return fit(*arguments, **named)

    monkeypatch.setattr(single, "fit", interrupted)
    for _ in range(2):
        assert "the same command goes on" in run(shop, tmp_path / "cut", "--trials", "2").output
    other = run(shop, tmp_path / "cut", "--trials", "2", "--first", "0.7")
    assert "trials of other settings" in str(other.exception)
    resumed = run(shop, tmp_path / "cut", "--trials", "2")
    assert resumed.exit_code == 0, resumed.output
    assert params == [whole[0], *whole, whole[1]]


@pytest.mark.usefixtures("undrawn")
def test_a_model_goes_on_with_what_it_has_settled(shop: Path, tmp_path: Path) -> None:
    assert run(shop, tmp_path / "a", "--first", "0.6").exit_code == 0
    log, items = str(shop / "events.csv"), ("--items", str(shop / "items.jsonl"))

    def onward(*more: str) -> Result:
        given = (log, *items, "--continue", str(tmp_path / "a"), "--out", str(tmp_path / "b"), "--epochs", "1", *more)
        return CliRunner().invoke(cli, ["train", *given, "--cache-dir", str(shop)])

    assert "setting capacity is 16, and of the model" in str(onward("--capacity", "16").exception)
    assert "--tune is for a pre-trained language model" in str(onward("--tune", "lora").exception)
    assert isinstance(onward("--first", "0.5").exception, UserError)  # nothing new
    done = onward("--capacity", "8", "--no-refit")
    assert done.exit_code == 0, done.output
    version = measured(tmp_path / "b")
    assert version.interest is not None
    assert "trained further" in (tmp_path / "b" / "README.md").read_text()


def test_a_log_of_single_events_is_too_short(shop: Path, tmp_path: Path) -> None:
    items = [item.item_id for item in event_log.read_items(shop / "items.jsonl")]
    rows = (f"u{number},{items[number]},{number}\n" for number in range(40))
    (tmp_path / "log.csv").write_text("user,item,time\n" + "".join(rows))
    given = (str(tmp_path / "log.csv"), "--items", str(shop / "items.jsonl"), "--out", str(tmp_path / "m"))
    done = CliRunner().invoke(cli, ["train", *given, *SMALL, "--cache-dir", str(tmp_path)])
    assert "the log is too short" in str(done.exception)


@pytest.mark.usefixtures("undrawn")
def test_a_log_without_times_trains_a_model_that_goes_by_none(shop: Path, tmp_path: Path) -> None:
    events = event_log.to_events(event_log.read_events(shop / "events.csv"))
    (tmp_path / "log.csv").write_text("user,item\n" + "".join(f"{one.user_id},{one.item_id}\n" for one in events))
    (tmp_path / "items.jsonl").symlink_to(shop / "items.jsonl")
    (tmp_path / "events.csv").symlink_to(tmp_path / "log.csv")
    done = run(tmp_path, tmp_path / "m")
    assert done.exit_code == 0, done.output
    assert "without times" in done.stderr
    assert "items, 100.0% of its events" in done.stderr
    config = model_store.load(tmp_path / "m").config
    assert (config.has_time, config.blend.recency) == (False, 0)
    assert config.horizons == HalfLives(FOREVER, FOREVER)
    assert "| times | the log had none" in (tmp_path / "m" / "README.md").read_text()
    assert "recency" not in measured(tmp_path / "m").alone
    command = ("evaluate", str(tmp_path / "m"), str(shop / "events.csv"), "--cache-dir", str(shop))
    assert "has no times and the log" in str(CliRunner().invoke(cli, command).exception)
    (tmp_path / "b.csv").write_text((shop / "events.csv").read_text())
    more = (str(tmp_path / "b.csv"), "--continue", str(tmp_path / "m"), "--out", str(tmp_path / "n"))
    further = CliRunner().invoke(cli, ["train", *more, "--cache-dir", str(shop)])
    assert "learned from a log without times" in str(further.exception)


def test_a_column_that_the_catalogue_lacks_ends_the_training_before_it_begins(shop: Path, tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("id,title\n1,tea\n")
    given = (str(shop / "events.csv"), "--items", str(tmp_path / "items.csv"), "--columns", "title=no_such")
    done = CliRunner().invoke(cli, ["train", *given, "--out", str(tmp_path / "m")])
    assert "no column 'no_such' to be the title" in str(done.exception)
