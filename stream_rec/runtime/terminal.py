"""A person's terminal: whatever is printed there, from a log, a topic or a path, is text and nothing else."""

import json
from typing import Any

import msgspec
from rich.console import Console
from rich.text import Text

REPLACED = "\N{REPLACEMENT CHARACTER}"


def as_line(text: str) -> str:
    """One line without control characters, without what turns its direction around, and without half characters."""
    return "".join(one if one.isprintable() else REPLACED for one in text)


def printable(text: str) -> Text:
    """`as_line`, as text that holds no markup."""
    return Text(as_line(text))


def print_json(value: Any, indent: int | None = None) -> None:
    """Prints JSON in ASCII: every terminal can show it, and no character of it does anything there."""
    print(json.dumps(json.loads(msgspec.json.encode(value)), indent=indent), flush=True)  # noqa: T201


class Terminal(Console):
    """A console that takes strings as they are, in tables and titles too: no markup, no emoji codes, no highlighting.

    Control characters are replaced, lines stay lines. A reader that is gone is an error like a full disk.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def say(self, line: str) -> None:
        """Prints one line, however long: a terminal wraps it, a file keeps it."""
        self.print(printable(line), soft_wrap=True)

    def render_str(self, text: str, **how: Any) -> Text:
        return super().render_str("\n".join(map(as_line, text.split("\n"))), **how)

    def on_broken_pipe(self) -> None:
        raise
