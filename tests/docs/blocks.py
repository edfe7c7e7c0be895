"""The commands in the documents: every `sh` block, with what a comment before it says that readers don't see.

    <!-- not run: REASON -->                  it can't be run here
    <!-- until it is ended; says: TEXT -->    it goes on beside the blocks after it, which wait until it has said TEXT
    <!-- after the tutorial -->               it runs where the tutorial has ended, while all parts still run
    <!-- first: COMMANDS -->                  what a reader has done before

They go together, in this order, parted by "; ". All other blocks of a page run one after the other, in one shell and an
empty folder. A training that isn't told how long is a short one, and USER is a user of the tutorial's.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from socket import socket
from threading import Timer
from typing import NamedTuple

import psutil
from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

PRELUDE = """
set -euo pipefail
set -m  # each background block is a process group
trap finish EXIT
finish() {
    [ $? = 0 ] || tail -n 30 "$LOGS"/*
    for pid in $(jobs -p); do kill -KILL -- "-$pid" 2>&- || :; done
    wait
}
stream-rec() { # where a page's broker would take the usual port, it takes a free one
    case " $* " in
        " broker "*) set -- broker --port "$BROKER_PORT" "${@:2}" ;;
        *" --epochs "*) ;;
        " train "*) set -- "$@" --epochs 1 --no-refit ;;
    esac
    $STREAM_REC "$@"
}
wait_until_it_says() { # TEXT LOG PID
    until grep -qsF -- "$1" "$2"; do
        kill -0 "$3" 2>&- || { echo "ended before it said '$1'"; exit 1; }
        sleep 0.1
    done
}
end() { # PID
    kill -TERM -- "-$1"
    wait "$1" || { echo "did not end in order"; exit 1; }
}
"""


TUTORIAL = ROOT / "docs" / "tutorial.md"
ANOTHER = 'user=$(cut -d , -f 1 log.csv | grep -vxF "$user" | tail -n 1)'
"""The tutorial erases its user."""
BLOCK_S = 720
"""A block that takes longer has stopped: the longest, a training, takes some 40 s alone on two cores."""


class Block(NamedTuple):
    page: Path
    line: int
    code: str
    reason: str | None
    """Why it is not run."""
    says: str | None
    """It goes on until it is ended, and works when it has said this."""
    later: bool
    """It runs after the tutorial."""
    first: str | None
    """What was done before."""

    @property
    def place(self) -> str:
        return f"{self.page.name}:{self.line}"


COMMENT = re.compile(
    r"<!-- (?:not run: (?P<reason>.+)|(?:until it is ended; says: (?P<says>.+?))?"
    r"(?:; )?(?P<later>after the tutorial)?(?:; )?(?:first: (?P<first>.+))?) -->\s*"
)


def blocks(page: Path) -> Iterator[Block]:
    comment = ""
    for token in MarkdownIt().parse(page.read_text()):
        if token.type == "fence" and token.info == "sh" and token.map:
            told = COMMENT.fullmatch(comment)
            reason, says, later, first = told.group("reason", "says", "later", "first") if told else [None] * 4
            yield Block(page, token.map[0] + 1, token.content, reason, says, later is not None, first)
        comment = token.content if token.type == "html_block" else ""


def to_run(page: Path) -> list[Block]:
    """What is run for a page, in order: of the tutorial also what runs after it."""
    own = [one for one in blocks(page) if one.reason is None and not one.later]
    if page != TUTORIAL:
        return own
    later = [one for other in PAGES for one in blocks(other) if one.later]
    return [*own, Block(page, 0, ANOTHER, None, None, True, None), *later]


def command_lines(code: str) -> Iterator[list[str]]:
    """The words of each command of `stream-rec` and `make` in a block, the program's name first."""
    for line in code.replace("\\\n", " ").splitlines():
        if not re.search(r"\b(stream-rec|make) ", line):
            continue
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("();<>|&"):
                if words and words[0] in ("stream-rec", "make"):
                    yield words
                words = []
            elif words or not re.match(r"\w+=", word):  # a variable for this command alone stands before it
                words.append(word)


def script(of: Iterable[Block]) -> str:
    """What is to be run of a page, for bash. What goes on is ended last to first, and must end in order."""
    lines, waiting, ends = [PRELUDE], [], []
    for number, block in enumerate(of):
        code = re.sub(r"\bUSER\b", '"$user"', block.code)
        if block.says is None:
            lines += [*waiting, f"echo '== {block.place}'", block.first or "", code]
            waiting.clear()
        else:
            log, pid = f'"$LOGS/{number}"', f"$pid_{number}"
            lines += [f"echo '== {block.place}'", block.first or ""]
            lines += [f"(trap : TERM\n{code}) >{log} 2>&1 &", f"pid_{number}=$!"]
            waiting.append(f"wait_until_it_says {shlex.quote(block.says)} {log} {pid}")
            ends.append(f"end {pid}")
    return "\n".join([*lines, *waiting, *reversed(ends)])


def run(of: Iterable[Block], folder: Path, stream_rec: str = "command stream-rec") -> subprocess.CompletedProcess[str]:
    """Runs what is to be run; `stdout` holds all that the blocks printed in the foreground, each under its place.

    `stream_rec` is the command that stands for `stream-rec`. A block that takes `BLOCK_S` is ended, with a code that is
    not 0; how long the page takes as a whole depends on what else the machine does.
    """
    home, logs = folder / "home", folder / "logs"
    home.mkdir()
    logs.mkdir()
    (home / ".venv").symlink_to(sys.prefix)
    with socket() as one:
        one.bind(("127.0.0.1", 0))
        port = str(one.getsockname()[1])
    own = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "STREAM_REC": stream_rec,
        "LOGS": str(logs),
        "BROKER_PORT": port,
        "STREAM_REC_BOOTSTRAP_SERVERS": f"127.0.0.1:{port}",
        **{f"STREAM_REC_{part}_PORT": "0" for part in ("AGENTS_METRICS", "WORKER_METRICS", "CONSOLE")},
    }
    process = subprocess.Popen(
        ["bash", "-c", script(of)],
        cwd=home,
        env=os.environ | own,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    shell = psutil.Process(process.pid)

    def end() -> None:
        for left in [*shell.children(recursive=True), shell] if shell.is_running() else ():
            left.kill()

    said, limit = [], Timer(BLOCK_S, end)
    limit.start()
    try:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if line.startswith("== "):
                limit.cancel()
                limit = Timer(BLOCK_S, end)
                limit.start()
    finally:
        limit.cancel()
        end()
    return subprocess.CompletedProcess(process.args, process.wait(), "".join(said))
