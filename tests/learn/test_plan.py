"""Options of `stream-rec train` that don't go together: one line, before anything is read."""

from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner

from stream_rec.cli import cli
from stream_rec.errors import UserError
from stream_rec.learn import plan, session
from stream_rec.learn.columns import Columns
from stream_rec.learn.logs import Log
from stream_rec.learn.plan import Plan
from stream_rec.learn.source import Source

LOG = ("log.csv",)
ON = (*LOG, "--continue", "m0")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((), "name what to train on"),
        ((*LOG, "--from-topic", "events"), "not both"),
        (("--from-topic", "events", "--columns", "user=who"), "--columns is for a file"),
        ((*LOG, "--since", "soon"), "--since is 'soon'"),
        ((*LOG, "--since", "2026-11-02", "--until", "2026-11-01"), "is not before"),
        ((*LOG, "--width", "40"), "--width is 40: give a multiple of 32"),
        ((*LOG, "--tune", "lora"), "name one with --base"),
        ((*LOG, "--weights", "view"), "not of the form"),
        ((*LOG, "--seeds", "0"), "--seeds is 0"),
        ((*LOG, "--trials", "0"), "--trials is 0"),
        ((*LOG, "--trials", "2", "--seeds", "2"), "don't go together"),
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


def test_an_interrupted_training_reads_the_same_events_again() -> None:
    columns = Columns(user="user", item="item")
    log = Log(pl.DataFrame({"time": [10.5, 86_400.0]}), columns, has_time=True, dropped=0)
    of_topic = Plan(None, None, Path("m"), from_topic="events", since="30d")
    said = session.again(of_topic, Source(log, [], "topic events"))
    assert said == " with --since 1970-01-01T00:00:10 --until 1970-01-02T00:00:01"
    assert session.again(Plan(Path("log.csv"), None, Path("m")), Source(log, [], "log.csv")) == ""


def test_a_log_without_times_trains_nothing_further(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("user,item\na,x\nb,y\n")
    done = CliRunner().invoke(cli, ["train", str(log), "--continue", "m0", "--out", str(tmp_path / "m")])
    assert "log.csv: it has no times" in str(done.exception)


def test_a_search_needs_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "find_spec", lambda _name: None)
    done = CliRunner().invoke(cli, ["train", *LOG, "--trials", "2", "--out", str(tmp_path / "m")])
    assert "pip install 'stream-rec[train]'" in str(done.exception)
