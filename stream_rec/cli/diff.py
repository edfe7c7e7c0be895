"""`stream-rec replay --diff` as a person sees it: reads events, shows how far it is, prints tables, or one JSON object.

The events are those of a file or of a topic. Compared is what lies in the range and neither model was trained on;
whatever came before fills the users' windows, and is learned by the models' memories as after a worker's start.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
from rich.table import Table

from stream_rec.config import Settings
from stream_rec.data import event_log
from stream_rec.data.source import Period, ReadTopic, Source, from_files
from stream_rec.errors import UserError
from stream_rec.evaluation import model_comparison
from stream_rec.evaluation.metrics import CUT
from stream_rec.evaluation.model_comparison import Comparison, Pair
from stream_rec.messages import Item, Rejected
from stream_rec.runtime.progress import bars
from stream_rec.runtime.terminal import Terminal, print_json, printable

if TYPE_CHECKING:
    from stream_rec.serving.engine import Engine

HEADINGS = {"hr_at_10": "HR@10", "ndcg_at_10": "NDCG@10", "mrr": "MRR"}

Load = Callable[[Settings], "Engine"]
"""Loads the settings' model as a worker serves it. Raises `UserError`."""


class DiffOptions(NamedTuple):
    """The options of `stream-rec replay --diff`."""

    models: Sequence[Path]
    events: Path | None = None
    from_topic: str | None = None
    range: str | None = None
    columns: str = ""
    limit: int | None = None
    as_json: bool = False


class Told(NamedTuple):
    """What was compared, and what came of it."""

    source: Source
    begin: float
    """Time of the first event that was answered, seconds since 1970."""
    end: float
    """Of the last one."""
    models: Pair
    found: Comparison


def run(settings: Settings, plan: DiffOptions, read_topic: ReadTopic, load: Load) -> None:
    """Compares the two models; the figures go to stdout. Raises `UserError` for what a person can put right."""
    period = check(plan)
    console = Terminal(stderr=True)
    source = _read(plan, period, read_topic, console)
    for note in source.notes:
        console.say(note)
    with console.status("loading the models"):
        first, second = (_opened(settings, path, source.items, load) for path in plan.models)
    told = _compare(settings, plan, source, period.since, (first, second), console)
    if plan.as_json:
        print_json(_object(plan, told))
    else:
        _show(plan, told)


def check(plan: DiffOptions) -> Period:
    """The range. Raises `UserError` for what doesn't go together, and for a folder that holds no model."""
    if len(plan.models) != 2:
        raise UserError(f"--diff compares two models, and was given {len(plan.models)}: --model A --model B")
    if (plan.events is None) == (plan.from_topic is None):
        raise UserError("name what to read: a file of events, or a topic with --from-topic")
    if plan.limit is not None and plan.limit < 1:
        raise UserError(f"--limit is {plan.limit}: give 1 or more")
    for path in plan.models:
        if not (path / "config.json").is_file():  # here, because reading a topic may take minutes
            raise UserError(f"no model in {path}: --model wants a folder that 'stream-rec train' has made")
    return Period.span(plan.range or "")


def _read(plan: DiffOptions, period: Period, read_topic: ReadTopic, console: Terminal) -> Source:
    """All events before the range's end: those before its begin fill the windows."""
    until = Period(until=period.until)
    if plan.events is None:
        with bars(console, stay=False) as progress:
            return read_topic(str(plan.from_topic), until, None, "", progress)
    source = from_files(plan.events, None, plan.columns, until)
    if not source.log.has_time:
        raise UserError(f"{plan.events}: it has no times, and --diff compares what is newer than both models")
    return source


def _opened(settings: Settings, path: Path, items: Sequence[Item], load: Load) -> "Engine":
    """The model at `path` with the newest of `items`; its answers are at least as long as what is compared."""
    model = load(settings.model_copy(update={"model": path, "top_k": max(CUT, settings.top_k)}))
    usable: list[Item] = []
    for item in items:
        try:
            model.catalog.admit(item)
        except Rejected:  # a worker makes a dead letter of it
            continue
        usable.append(item)
    if news := model.catalog.news(usable):
        model.upsert(news, model.read(news))
    return model


def _compare(
    settings: Settings, plan: DiffOptions, source: Source, since: float | None, models: Pair, console: Terminal
) -> Told:
    seen, times = max(map(_trained_until, plan.models, models)), source.log.frame["time"]
    begin = -math.inf if since is None else since
    first = max(int(times.search_sorted(seen, "right")), int(times.search_sorted(begin, "left")))
    end = min(len(times), first + (plan.limit or len(times)))
    if first == end:
        raise UserError(
            f"{source.about}: the range holds nothing newer than what the models learned from, until {_when(seen)} UTC"
        )
    log = source.log._replace(frame=source.log.frame[:end])
    windows = model_comparison.windows_of(event_log.to_events(log), settings.capacity, settings.effective_stride)
    with bars(console, stay=False) as progress:
        found = model_comparison.compare(models, windows, first, end, progress)
    return Told(source, times[first], times[end - 1], models, found)


def _trained_until(path: Path, model: "Engine") -> float:
    if model.trained_until is None:
        raise UserError(f"the model in {path} learned from a log without times, and --diff compares what is newer")
    return model.trained_until


def _object(plan: DiffOptions, told: Told) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(told.found)
    models = [
        {"folder": str(path), "version": model.version} | accuracy
        for path, model, accuracy in zip(plan.models, told.models, found.pop("accuracy"), strict=True)
    ]
    return {"events": told.source.about, "begin": told.begin, "end": told.end, "models": models} | found


def _show(plan: DiffOptions, told: Told) -> None:
    found, console = told.found, Terminal()
    period = f"{_when(told.begin)} to {_when(told.end)} UTC"
    view = Table(title=f"{found.predictions:,} predictions for {found.users:,} users, {period}")
    view.add_column()
    for heading in (*map(str, plan.models), "difference", "95% of resampled users"):
        view.add_column(printable(heading), justify="right")
    first, second = found.accuracy
    for name, heading in HEADINGS.items():
        mean, low, high = found.difference[name]
        view.add_row(heading, f"{first[name]:.4f}", f"{second[name]:.4f}", f"{mean:+.4f}", f"{low:+.4f} to {high:+.4f}")
    console.print(view)
    console.print(
        f"of the first ten items {found.overlap_at_10:.1%} are the same, of the first ones {found.same_first:.1%} "
        f"({found.answers:,} answers)",
        highlight=False,
    )
    changed = Table(title="Whose answers changed most")
    changed.add_column("user")
    for heading in ("answers", "same of ten", *(f"hits of {path}" for path in plan.models)):
        changed.add_column(printable(heading), justify="right")
    for one in found.most_changed:
        hits = (f"{count} of {one.predictions}" for count in one.hits_at_10)
        changed.add_row(printable(one.user_id), f"{one.answers:,}", f"{one.overlap_at_10:.1%}", *hits)
    console.print(changed)


def _when(at: float) -> str:
    """The minute, as --range takes it, whatever the year."""
    return str(np.datetime64(int(at // 60), "m"))
