"""Every block of commands in the documents is run, or says why not; every command in them is one that there is."""

import re
from pathlib import Path

import click
import psutil
import pytest

from stream_rec import config
from stream_rec.cli.main import cli
from stream_rec.cli.options import Command
from tests.docs.blocks import PAGES, ROOT, Block, blocks, command_lines, run, to_run

BLOCKS = [block for page in PAGES for block in blocks(page)]
RUN = [page for page in PAGES if to_run(page) and not any(block.says for block in to_run(page))]
"""Where something goes on, it needs Kafka: tests/e2e/test_docs.py runs those."""


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_the_blocks_of_a_page_run(page: Path, tmp_path: Path) -> None:
    done = run(to_run(page), tmp_path)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("block", [one for one in BLOCKS if one.reason], ids=lambda block: block.place)
def test_what_is_not_run_says_why(block: Block) -> None:
    for path in re.findall(r"tests/\S+\.py", block.reason or ""):
        assert (ROOT / path).exists(), path
    pytest.skip(f"{block.place} is not run: {block.reason}")


def parse(words: list[str]) -> None:
    """Raises click's errors, KeyError for a command that there isn't, and `UserError` for a setting's wrong value."""
    command: click.Command = cli
    while isinstance(command, click.Group):
        _, (name, *words), _ = command.make_parser(click.Context(command)).parse_args(words)
        command = command.commands[name]
    given = command.make_context(name, words).params
    if isinstance(command, Command):
        config.load_settings(**{setting: given[setting] for setting in command.settings})


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.place)
def test_the_commands_of_a_block_are_there_and_take_their_options(block: Block) -> None:
    for program, *words in command_lines(block.code):
        if program == "make":
            targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert {word for word in words if "=" not in word} <= set(targets)
        else:
            parse(words)


@pytest.mark.parametrize(
    "line",
    [
        "stream-rec trian log.csv --out model",
        "stream-rec train log.csv --out model --no-such-option 1",
        "stream-rec train log.csv --out model --epochs many",
        "stream-rec train log.csv",
        "stream-rec --no-such-option 1 worker",
        "FOO=1 stream-rec worker --top-k many",
        "true && stream-rec plan \\\n  --users 0 --events-per-second 1",
    ],
)
def test_a_command_that_is_not_there_would_be_seen(line: str) -> None:
    ((_, *words),) = command_lines(line)
    with pytest.raises((click.UsageError, KeyError, config.UserError)):
        parse(words)


def test_an_option_may_stand_before_the_command() -> None:
    parse(["--config", "other.toml", "topics", "create"])


def test_commands_are_found_where_a_shell_finds_them() -> None:
    code = (
        "A=1 stream-rec agents  # not this\nstream-rec items 'a b.csv' --columns a=b,c=d | cat; make x ARGS=1\necho x"
    )
    assert list(command_lines(code)) == [
        ["stream-rec", "agents"],
        ["stream-rec", "items", "a b.csv", "--columns", "a=b,c=d"],
        ["make", "x", "ARGS=1"],
    ]


def page(folder: Path, text: str) -> Path:
    path = folder / "page.md"
    path.write_text(text)
    return path


READY = "<!-- until it is ended; says: ready -->\n```sh\n"


def test_blocks_share_a_shell_and_what_goes_on_is_ended_in_order(tmp_path: Path) -> None:
    text = f"""
```sh
x=1; echo here > file
```
{READY}python -c 'import signal; print("ready", flush=True); signal.pause()' || echo ended >> file
```
<!-- not run: it fails -->
```sh
false
```
```sh
echo $x >> file
```
"""
    done = run(to_run(page(tmp_path, text)), tmp_path)
    assert (done.returncode, "page.md:12" in done.stdout) == (0, False)
    assert (tmp_path / "home" / "file").read_text() == "here\n1\nended\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("```sh\nfalse\n```\n```sh\necho so what\n```", "page.md:1"),
        ("<!-- not run -->\n```sh\nfalse\n```", "page.md:2"),
        (READY + "true\n```\n```sh\ntrue\n```", "ended before it said 'ready'"),
        (READY + "trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done\n```", "did not end in order"),
    ],
)
def test_a_block_that_fails_fails_its_page(tmp_path: Path, text: str, says: str) -> None:
    done = run(to_run(page(tmp_path, text)), tmp_path)
    assert done.returncode != 0
    assert says in done.stdout
    assert "so what" not in done.stdout


def test_what_goes_on_ends_with_a_page_that_fails(tmp_path: Path) -> None:
    text = READY + "echo $BASHPID > pid; echo ready; sleep 1000\n```\n```sh\nfalse\n```"
    assert run(to_run(page(tmp_path, text)), tmp_path).returncode != 0
    assert not psutil.pid_exists(int((tmp_path / "home" / "pid").read_text()))
