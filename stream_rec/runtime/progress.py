"""How far a long command is, for a person: a bar a stage, on stderr."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import progress
from rich.console import Console

from stream_rec.runtime.terminal import as_line

Progress = Callable[[str, float, float], None]
"""Called with (what is going on, done, total); what stands before a comma names the stage."""


@contextmanager
def bars(console: Console, *, stay: bool, before: str = "") -> Iterator[Progress]:
    """Draws what it is told. The bars `stay` when all is done, or vanish; `before` stands in front of each."""
    columns = (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=console, transient=not stay) as drawn:
        tasks: dict[str, progress.TaskID] = {}

        def told(what: str, done: float, total: float) -> None:
            stage, shown = what.partition(",")[0], as_line(before + what)
            if stage not in tasks:
                tasks[stage] = drawn.add_task(shown, total=total)
            drawn.update(tasks[stage], description=shown, completed=done, total=total)

        yield told
