import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from socket import socket

import click
import pytest
from click.testing import CliRunner

from stream_rec import config
from stream_rec.cli.main import cli, main
from stream_rec.cli.options import Option
from stream_rec.errors import UserError
from stream_rec.models import model_store
from tests.tiny import tiny_model

COMMAND = (sys.executable, "-m", "stream_rec.cli")
HANG_S = 300
"""After which a command has stopped, however busy the machine is."""


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        yield one.getsockname()[1]


def run(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=HANG_S, check=False
    )


def commands(group: object = cli, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


def command_at(path: tuple[str, ...]) -> click.Command:
    found: object = cli
    for name in path:
        found = found.commands[name]
    return found


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_help_says_what_a_command_does_and_its_defaults(path: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(cli, [*path, "--help"], terminal_width=200)
    assert shown.exit_code == 0
    lines = shown.output.splitlines()
    assert len(lines[2].strip()) > 10
    for line in lines:
        if "STREAM_REC_" in line:
            name = line.rsplit("[STREAM_REC_", 1)[1].rstrip("]").lower()
            assert config.Settings.model_fields[name].description in line


def test_every_command_of_the_product_is_there() -> None:
    wanted = [
        "demo",
        "simulate",
        "broker",
        "agents",
        "worker",
        "replay",
        "train",
        "recommend",
        "version",
        "items",
        "settings",
        "evaluate",
        "console",
        "explain",
        "forget",
        "pseudonym",
        "plan",
        "schemas",
    ]
    grouped = {("topics", name) for name in ("create", "check", "acls")} | {
        ("bench", name) for name in ("engine", "catalog", "blend", "peers", "pipeline", "overload")
    }
    assert {(name,) for name in wanted} | grouped == set(commands())


DEPENDENT = [
    (path, option)
    for path in commands()
    for option in command_at(path).params
    if isinstance(option, Option) and (option.needs or option.excludes)
]


def words(option: click.Parameter) -> tuple[str, ...]:
    """The option as it is typed, with some value that it takes."""
    return (option.opts[0],) if getattr(option, "is_flag", False) else (option.opts[0], "1")


@pytest.mark.parametrize(
    ("path", "option"), DEPENDENT, ids=[f"{' '.join(path)} {option.opts[0]}" for path, option in DEPENDENT]
)
def test_an_option_that_has_no_effect_beside_the_others_is_refused(path: tuple[str, ...], option: Option) -> None:
    params = command_at(path).params
    flags = {flag: one for one in params for flag in one.opts}
    assert {*option.needs, *option.excludes} <= flags.keys()
    must = [one for one in params if one.required and one is not option]
    always = [word for one in must for word in (words(one) if one.opts[0].startswith("-") else ("1",))]
    cases = [(flags[other], "does not go with") for other in option.excludes]
    cases += [(None, "is for")] if option.needs else []
    for other, says in cases:
        given = [*path, *always, *words(option), *(() if other is None else words(other))]
        done = CliRunner().invoke(cli, given)
        assert isinstance(done.exception, UserError), given
        assert says in str(done.exception)
        assert str(done.exception).startswith(option.opts[0])


def test_importing_the_commands_loads_nothing_heavy() -> None:
    heavy = ["torch", "transformers", "faust", "aiokafka", "aiohttp", "polars", "numpy", "rich", "pydantic"]
    code = f"import sys, stream_rec.cli; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


NOWHERE = ("--bootstrap-servers", "127.0.0.1:1")
AT_ONCE = ("--fail-fast", "true")
MISTAKES = {
    "a log that is not there": (("train", "nowhere.csv", "--out", "m"), "nowhere.csv"),
    "a log that is none": (("train", "noise.csv", "--out", "m"), "which column is the user"),
    "a catalogue that is not there": (("train", "log.csv", "--items", "nowhere.csv", "--out", "m"), "nowhere.csv"),
    "an out that is a file": (("train", "log.csv", "--out", "log.csv"), "is a file"),
    "an odd number": (("train", "log.csv", "--out", "m", "--epochs", "0"), "--epochs is 0"),
    "words without a language model": (("train", "log.csv", "--out", "m", "--read", "words"), "name one with --base"),
    "an odd template": (("train", "log.csv", "--out", "m", "--template", "{user}"), "the template '{user}' may hold"),
    "a setting out of range": (("agents", "--capacity", "1"), "setting capacity (STREAM_REC_CAPACITY)"),
    "a setting of the wrong type": (("worker", "--top-k", "many"), "setting top_k (STREAM_REC_TOP_K)"),
    "no settings file": (("--config", "nowhere.toml", "settings"), "nowhere.toml"),
    "an unknown option": (("worker", "--no-such-thing"), "No such option"),
    "no broker for topics": (("topics", "check", *NOWHERE), "no Kafka broker answers"),
    "no broker for agents": (("agents", *NOWHERE, *AT_ONCE), "no Kafka broker answers"),
    "no broker for the worker": (("worker", *NOWHERE, *AT_ONCE), "no Kafka broker answers"),
    "no broker to replay to": (("replay", "log.csv", *NOWHERE), "no Kafka broker answers"),
    "no broker to ask": (("recommend", "u", *NOWHERE), "no Kafka broker answers"),
    "no broker for the console": (("console", *NOWHERE, *AT_ONCE), "no Kafka broker answers"),
    "no broker to explain from": (("explain", "u", *NOWHERE), "no Kafka broker answers"),
    "a folder of schemas that is a file": (("schemas", "log.csv"), "cannot write to log.csv"),
    "nobody to explain": (("explain",), "name a USER"),
    "a window that is none": (("explain", "--window", "noise.csv"), "noise.csv holds no window"),
    "a demo without its log": (("demo", "--events", "nowhere.csv"), "nowhere.csv"),
    "a rate of nothing": (("demo", "--rate", "0"), "--rate is 0"),
    "a rate that is no number": (("demo", "--rate", "nan"), "nan is no finite number"),
    "infinitely many events": (("plan", "--events-per-second", "inf", "--users", "1"), "inf is not in the range"),
    "a negative count": (
        ("simulate", "--events", "e.csv", "--items", "i.csv", "--count", "-1"),
        "-1 is not in the range",
    ),
    "no thread": (("train", "log.csv", "--out", "m", "--threads", "0"), "0 is not in the range"),
    "more threads than a machine has": (
        ("train", "log.csv", "--out", "m", "--threads", "9" * 12),
        "is not in the range",
    ),
    "more users than a number counts": (
        ("plan", "--events-per-second", "1", "--users", "9" * 400),
        "is more than 1,000,000,000,000,000",
    ),
    "one file for two": (("simulate", "--events", "e.csv", "--items", "./e.csv"), "are both e.csv"),
    "a port that is none": (("broker", "--port", "99999"), "99999 is not in the range"),
    "a broker's port that is none": (("topics", "check", "--bootstrap-servers", "a:99999"), "the port of 'a:99999'"),
    "a broker's place that is none": (("worker", "--bootstrap-servers", "kafka://a:1"), "is not of the form host:port"),
    "a console's port that is none": (("console", "--port", "-1"), "setting console_port (STREAM_REC_CONSOLE_PORT)"),
    "a folder in place of a log": (("train", "folder.csv", "--out", "m"), "no file at folder.csv"),
    "an empty log": (("train", "empty.csv", "--out", "m"), "empty.csv"),
    "a folder in place of settings": (("--config", "folder.csv", "settings"), "no settings file at folder.csv"),
    "settings in another encoding": (("--config", "latin.toml", "settings"), "latin.toml: it is not UTF-8"),
    "a place that can't be written to": (
        ("simulate", "--events", "nowhere/e.csv", "--items", "i.csv", "--count", "1"),
        "nowhere/e.csv",
    ),
    "a catalogue's column without one": (("train", "log.csv", "--out", "m", "--columns", "title=x"), "has no title"),
    "a broker for a log in a file": (
        ("train", "log.csv", "--out", "m", "--bootstrap-servers", "kafka:9092"),
        "--bootstrap-servers has no effect: without --from-topic nothing is read from Kafka",
    ),
    "a topic for models compared on a file": (
        ("replay", "log.csv", "--diff", "--model", "a", "--model", "b", "--events-topic", "events"),
        "--events-topic has no effect",
    ),
    "a demo's catalogue without its log": (("demo", "--items", "log.csv"), "--items is for --events"),
}


@pytest.mark.parametrize(("arguments", "says"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    (tmp_path / "log.csv").write_text("user,item,time\na,x,1\nb,y,2\n")
    (tmp_path / "noise.csv").write_text("some,thing\n1,2\n")
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "empty.csv").touch()
    (tmp_path / "latin.toml").write_bytes(b'model = "mod\xe8le"')
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 or lines[0].startswith("Usage:")


def test_a_mistake_that_cannot_be_told_still_has_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("aiokafka"), "setLevel", lambda _: None)  # as it is for other tests
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr("sys.stderr", full)
        with pytest.raises(SystemExit) as ended:
            main(["no-such-command"])
        monkeypatch.undo()
        with suppress(OSError):
            full.close()
    assert ended.value.code == 2


@pytest.mark.parametrize("command", ["recommend", "forget", "explain", "pseudonym"])
@pytest.mark.parametrize("user", [b"", b"\xff", b"x" * 257], ids=["empty", "not UTF-8", "too long"])
def test_a_user_whom_no_event_can_name_is_refused(command: str, user: bytes) -> None:
    done = CliRunner().invoke(cli, [command, os.fsdecode(user)])
    assert done.exit_code == 2
    assert "a user's id has 1 to 256" in done.output or "it is not in UTF-8" in done.output


def piped(*arguments: str, cwd: Path, stdout: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *arguments]
    err = subprocess.PIPE
    return subprocess.run(
        command, cwd=cwd, env=environment, stdout=stdout, stderr=err, text=True, timeout=HANG_S, check=False
    )


@pytest.mark.parametrize("command", [("version",), ("settings",), ("plan", "--events-per-second=9", "--users=9")])
def test_an_output_that_cannot_be_written_is_one_line_and_exit_code_2(tmp_path: Path, command: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        done = piped(*command, cwd=tmp_path, stdout=full)
    said = "stream-rec: what is printed can't be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (2, said)
    reader, writer = os.pipe()
    os.close(reader)
    done = piped(*command, cwd=tmp_path, stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr.count("\n"), "Broken pipe" in done.stderr) == (2, 1, True)


def test_a_terminal_of_ascii_is_shown_what_it_can_show(tmp_path: Path) -> None:
    done = run("settings", cwd=tmp_path, PYTHONIOENCODING="ascii", STREAM_REC_CACHE_DIR="größe\x1b[2J", COLUMNS="300")
    assert (done.returncode, done.stderr) == (0, "")
    assert "gr\\xf6\\xdfe\\ufffd[2J" in "".join(done.stdout.split())
    done = run("train", "größe.csv", "--out", "m", cwd=tmp_path, LC_ALL="C", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_settings_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "stream-rec.toml").write_bytes(b"\xef\xbb\xbftop_k = 7\n")
    assert "top_k                    7 " in run("settings", cwd=tmp_path, COLUMNS="200").stdout


def test_a_busy_port_is_one_line_and_exit_code_2(tmp_path: Path, taken: int) -> None:
    done = run("broker", "--port", taken, cwd=tmp_path)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert str(taken) in done.stderr.strip().splitlines()[-1]


def test_a_model_is_not_overwritten_unasked(tmp_path: Path) -> None:
    model_store.save(tiny_model(), tmp_path / "m")
    (tmp_path / "log.csv").write_text("user,item,time\na,x,1\nb,y,2\n")
    done = run("train", "log.csv", "--out", "m", cwd=tmp_path)
    assert (done.returncode, "--overwrite" in done.stderr) == (2, True)


def test_settings_come_from_options_then_environment_then_file(tmp_path: Path) -> None:
    (tmp_path / "stream-rec.toml").write_text('log_level = "error"\ntop_k = 7\ncapacity = 9\n')
    done = run("settings", "--log-level", "debug", cwd=tmp_path, STREAM_REC_TOP_K="8", COLUMNS="200")
    shown = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines()}
    assert (shown["log_level"], shown["top_k"], shown["capacity"]) == ("debug", "8", "9")


def test_simulating_with_one_seed_writes_the_same_files(tmp_path: Path) -> None:
    for name in "ab":
        options = ("--events", f"{name}.csv", "--items", f"{name}-items.csv", "--count", 500, "--seed", 3)
        assert run("simulate", *options, cwd=tmp_path).returncode == 0
    for kind in (".csv", "-items.csv"):
        assert (tmp_path / f"a{kind}").read_bytes() == (tmp_path / f"b{kind}").read_bytes()
    assert (tmp_path / "a.csv").read_text().count("\n") == 501
