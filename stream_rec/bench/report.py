"""What a benchmark prints: a table for a person, and at will JSON as the last line for a program."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from stream_rec.runtime.terminal import Terminal, print_json


def listed(figures: Mapping[str, Any]) -> Table:
    """A figure a line."""
    view = Table(box=None, show_header=False)
    for name, value in figures.items():
        shown = ", ".join(f"{key} {one}" for key, one in value.items()) if isinstance(value, dict) else str(value)
        view.add_row(name, shown)
    return view


def show(view: Table, figures: Mapping[str, Any], as_json: bool) -> None:
    """Prints `view`, and as JSON the `figures` that it shows."""
    Terminal().print(view)
    if as_json:
        print_json(figures)
