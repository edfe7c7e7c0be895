"""Markdown as lines."""

from collections.abc import Iterable, Iterator, Sequence

MADE = "<!-- Made from the code: run 'make reference' after a change of it. -->"


def text(lines: Iterable[str]) -> str:
    return "\n".join([MADE, *lines]) + "\n"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield _row(headings)
    yield "|" + "---|" * len(headings)
    for row in rows:
        yield _row([cell.replace("|", r"\|") for cell in row])
    yield ""


def _row(cells: Sequence[str]) -> str:
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)


def code(*words: object) -> str:
    return ", ".join(f"`{word}`" for word in words)
