"""Options of `stream-rec train` that don't go together: one line, before anything is read."""

from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner

from stream_rec.cli import train
from stream_rec.cli.main import cli
from stream_rec.data.column_roles import Columns
from stream_rec.data.event_log import Log
from stream_rec.data.source import Source
from stream_rec.errors import UserError
from stream_rec.training import options
from stream_rec.training.options import TrainOptions

LOG = ("log.csv",)
PRIVATE = (*LOG, "--private-epsilon", "8")
ON = (*LOG, "--continue", "m0")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((), "name what to train on"),
        ((*LOG, "--from-topic", "events"), "not both"),
        (("--from-topic", "events", "--columns", "user=who"), "--columns is for a file"),
        ((*LOG, "--base", "gpt", "--width", "64"), "--width does not go with --base"),
        ((*LOG, "--base", "gpt", "--event-tokens", "8"), "give --read words too"),
        ((*ON, "--event-tokens", "8"), "leave out --event-tokens"),
        ((*LOG, "--since", "soon"), "--since is 'soon'"),
        ((*LOG, "--since", "2026-11-02", "--until", "2026-11-01"), "is not before"),
        ((*LOG, "--width", "40"), "--width is 40: give a multiple of 32"),
        ((*LOG, "--layers", "1000000000000"), "--layers is 1000000000000: give 1 to 512"),
        ((*LOG, "--tune", "lora"), "name one with --base"),
        ((*LOG, "--weights", "view"), "not of the form"),
        ((*LOG, "--seeds", "0"), "--seeds is 0"),
        ((*LOG, "--trials", "0"), "--trials is 0"),
        ((*LOG, "--trials", "2", "--seeds", "2"), "don't go together"),
        ((*LOG, "--private-clip", "1"), "give --private-epsilon too"),
        (PRIVATE, "name one with --items"),
        ((*PRIVATE, "--seeds", "2", "--goal", "cart"), "leave out --seeds, --goal"),
        ((*LOG, "--private-epsilon", "99"), "--private-epsilon is 99.0: give 0.1 to 20"),
        ((*PRIVATE, "--items", "i.csv", "--base", "gpt", "--tune", "full"), "takes --tune lora or frozen"),
        ((*ON, "--width", "64", "--base", "gpt"), "leave out --width, --base"),
        ((*ON, "--protocol", "leave-one-out"), "which --protocol leave-one-out can't measure"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_does_not_go_together_is_told(given: tuple[str, ...], says: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["train", *given, "--out", str(tmp_path / "m")])
    assert isinstance(done.exception, UserError)
    assert says in str(done.exception)
    assert "\n" not in str(done.exception)


def test_columns_name_those_of_a_catalogue_beside_a_topic() -> None:
    options.check(TrainOptions(None, Path("items.csv"), Path("nowhere"), from_topic="events", columns="title=name"))


def test_an_interrupted_training_reads_the_same_events_again() -> None:
    columns = Columns(user="user", item="item")
    log = Log(pl.DataFrame({"time": [10.5, 86_400.0]}), columns, has_time=True, dropped=0)
    of_topic = TrainOptions(None, None, Path("m"), from_topic="events", since="30d")
    said = train.again(of_topic, Source(log, [], "topic events"))
    assert said == " with --since 1970-01-01T00:00:10 --until 1970-01-02T00:00:01"
    assert train.again(TrainOptions(Path("log.csv"), None, Path("m")), Source(log, [], "log.csv")) == ""


def test_a_log_without_times_trains_nothing_further(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("user,item\na,x\nb,y\n")
    done = CliRunner().invoke(cli, ["train", str(log), "--continue", "m0", "--out", str(tmp_path / "m")])
    assert "log.csv: it has no times" in str(done.exception)


@pytest.mark.parametrize("given", [(*LOG, "--trials", "2"), (*PRIVATE, "--items", "i.csv")], ids=["search", "private"])
def test_what_needs_a_library_says_which(
    given: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(options, "find_spec", lambda _name: None)
    done = CliRunner().invoke(cli, ["train", *given, "--out", str(tmp_path / "m")])
    assert "pip install 'stream-rec[train]'" in str(done.exception)
