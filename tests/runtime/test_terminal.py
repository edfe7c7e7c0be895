"""Whatever stands in a log, a topic or a path is shown as text."""

import ast
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

import stream_rec
from stream_rec.runtime.progress import bars
from stream_rec.runtime.terminal import Terminal, as_line, print_json

PACKAGE = Path(stream_rec.__file__).parent
MARKUP = "[red]a[/red] [/b] [link=file:///x]b[/link] :bomb: \\[c"


def written(capsys: pytest.CaptureFixture[str]) -> str:
    return "".join(capsys.readouterr())


@pytest.mark.parametrize("stderr", [False, True])
def test_a_string_is_text_wherever_it_stands(capsys: pytest.CaptureFixture[str], stderr: bool) -> None:
    console = Terminal(stderr=stderr)
    console.width = 400
    view = Table(MARKUP, title=MARKUP, caption=MARKUP)
    view.add_row(MARKUP + "\x1b[2J")
    console.print(view)
    console.print(MARKUP)
    shown = written(capsys)
    assert shown.count(MARKUP) == 5
    assert "\x1b" not in shown


@given(st.text())
def test_a_line_stays_one_and_does_nothing(text: str) -> None:
    assert as_line(text).isprintable()
    assert len(as_line(text)) == len(text)
    as_line(text).encode()


def test_what_a_bar_says_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    with bars(Terminal(stderr=True), stay=True, before="[/b] \x1b[2J") as told:
        told(MARKUP, 1, 1)
    assert "[/b]" in written(capsys)


@given(st.text())
def test_json_is_ascii(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", out := io.StringIO())
        print_json({"title": text.encode("utf-8", "replace").decode()})
    assert out.getvalue().isascii()
    assert out.getvalue().count("\n") == 1


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_prints_by_another_console(path: Path) -> None:
    """rich's own reads markup in every string, and keeps control characters."""
    if path.name == "terminal.py":
        return
    calls = (node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    named = {ast.unparse(call).rpartition(".")[2] for call in calls}
    assert not named & {"Console", "from_markup", "rprint"}
