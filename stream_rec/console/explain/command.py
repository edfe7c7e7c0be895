"""`stream-rec explain`: why a user has this answer, as a table or as JSON."""

import asyncio
import logging
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from aiokafka.errors import KafkaError
from rich import box
from rich.console import Group
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from stream_rec.config import Settings
from stream_rec.console.explain import user_summary
from stream_rec.console.explain.contributions import difference, group_contributions
from stream_rec.console.explain.explainer_model import ExplainerModel
from stream_rec.console.lookup import UserState, held
from stream_rec.console.topic_reader import Batch, read
from stream_rec.errors import UserError
from stream_rec.messages import UNREADABLE, Item, Recommendation, Window, read_window
from stream_rec.runtime.terminal import Terminal, print_json, printable

if TYPE_CHECKING:
    from stream_rec.console.explain.llm_summary import Writer, Written
    from stream_rec.ranking.explanation import Explanation

TELLING = 5
"""Events of the window that are shown, those that moved the answer most."""

LOOKS: dict[str, Any] = {"box": box.SIMPLE_HEAD, "padding": 0, "show_edge": False}


class ExplainOptions(NamedTuple):
    """The options of `stream-rec explain`."""

    user: str | None
    window: Path | None
    as_json: bool
    llm: str | None = None


class ExplainedAnswer(NamedTuple):
    """An explanation and what it is about."""

    explanation: "Explanation"
    window: Window
    answer: Recommendation | None
    """As it was published; None for a window from a file, or where there is none yet."""
    items: Mapping[str, Item]
    memory: str
    """What the explanation's memory knows."""
    summary: "Written | None" = None
    """By a language model, where one is asked."""


def run(settings: Settings, plan: ExplainOptions) -> int:
    """Prints the explanation; returns the exit code, 1 where the user has no window. Raises `UserError`."""
    if plan.user is not None and plan.window is not None:
        raise UserError("give a USER or --window, not both")
    if settings.log_level != "debug":
        logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # what matters of it is said here, in a line
    console = Terminal(stderr=True)
    writer = None if plan.llm is None else _writer(plan.llm, console)
    told = asyncio.run(
        _live(settings, plan.user, console) if plan.user is not None else _offline(settings, _read(plan.window))
    )
    if told is None:
        print("no window for this user", file=sys.stderr)  # noqa: T201 - the command's output
        return 1
    if writer is not None:
        with console.status("the language model writes"):
            told = told._replace(
                summary=writer.write(
                    user_summary.user_summary(user_summary.user_facts(told.window, told.answer, told.items))
                )
            )
    if plan.as_json:
        print_json(as_dict(told))
    else:
        Terminal().print(shown(told))
    return 0


def _writer(name: str, console: Terminal) -> "Writer":
    """Before anything is read: a wrong name is told at once."""
    with console.status("loading the language model"):
        from stream_rec.console.explain.llm_summary import Writer  # torch and transformers: only where it is asked for

        return Writer.load(name)


def _read(path: Path | None) -> Window:
    if path is None:
        raise UserError("name a USER, or a window's file with --window")
    try:
        return read_window(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UNREADABLE as error:
        raise UserError(f"{path} holds no window: {error}") from None


async def _offline(settings: Settings, window: Window) -> ExplainedAnswer:
    """A window from a file; no broker is asked."""
    aside = await ExplainerModel.open(settings)
    try:
        return await _told(aside, UserState(window, None), window, "the model's own and this window")
    finally:
        await aside.close()


async def _live(settings: Settings, user: str, console: Terminal) -> ExplainedAnswer | None:
    """The newest window of `user`, explained by what the topics had taught when it was written."""
    found = await held(user, settings)
    if found.window is None:
        return None
    aside = await ExplainerModel.open(settings)
    try:
        with Progress(console=console, transient=True) as bar:
            await _through(settings, settings.items_topic, aside.admit, bar)

            async def learn(records: Any) -> None:
                await aside.learn([record for record in records if found.after(record)])

            await _through(settings, settings.windows_topic, learn, bar)
        return await _told(aside, found, found.window, "the model's own and the windows up to this one")
    except KafkaError as error:
        raise UserError(f"the topics can't be read: {type(error).__name__}") from None
    finally:
        await aside.close()


async def _through(settings: Settings, topic: str, take: Callable[[Any], Any], bar: Progress) -> None:
    task = bar.add_task(f"reading {topic}", total=1.0)
    batch: Batch
    async for batch in read(settings, topic, follow=False):
        await take(batch.records)
        bar.update(task, completed=batch.share)


async def _told(aside: ExplainerModel, found: UserState, window: Window, memory: str) -> ExplainedAnswer:
    explanation = await aside.explain(window, found.partition)
    named = {event.item_id for event in window.events} | {why.item_id for why in explanation.items}
    return ExplainedAnswer(explanation, window, found.answer, aside.items(named), memory)


def as_dict(told: ExplainedAnswer) -> dict[str, Any]:
    """For JSON."""
    known = user_summary.user_facts(told.window, told.answer, told.items)
    explained: dict[str, Any] = msgspec.to_builtins(told.explanation)
    return explained | {
        "facts": msgspec.to_builtins(known),
        "words": user_summary.user_summary(known),
        "summary": None if told.summary is None else told.summary._asdict(),
        "memory": told.memory,
        "published": difference(told.explanation, told.answer),
    }


def shown(told: ExplainedAnswer) -> Group:
    """For a terminal: what an item's score is made of, then which events moved the answer."""
    known = user_summary.user_facts(told.window, told.answer, told.items)
    title = _titled(told.items)
    explanation = told.explanation
    scores = Table(title=f"Why these items, after event {explanation.seq}", caption_justify="left", **LOOKS)
    groups = list(group_contributions(explanation.items[0].parts)) if explanation.items else []
    scores.add_column("", justify="right")
    scores.add_column("item")
    for heading in ("score", *groups):
        scores.add_column(heading.replace(" ", "\n"), justify="right", no_wrap=True)
    for place, why in enumerate(explanation.items, 1):
        added = group_contributions(why.parts)
        cells = (f"{added[group]:+.2f}" for group in groups)
        scores.add_row(str(place), title(why.item_id), f"{why.score:.2f}", *cells)
    scores.caption = (
        f"the parts add up to the score, the log-odds up to a constant; memory: {told.memory}\n"
        f"{difference(explanation, told.answer)}"
    )
    events = Table(title="What moved the answer most", caption="found by leaving each event out in turn", **LOOKS)
    for heading, side in (("event", "left"), ("item", "left"), ("time", "left"), ("moved", "right"), ("for", "left")):
        events.add_column(heading, justify=side)  # type: ignore[arg-type]
    for event in sorted(explanation.events, key=lambda event: -event.moved)[:TELLING]:
        best = max(range(len(event.gains)), key=event.gains.__getitem__, default=None)
        gains = Text() if best is None else title(explanation.items[best].item_id).append(f" {event.gains[best]:+.1%}")
        when = datetime.fromtimestamp(event.timestamp, UTC).strftime("%Y-%m-%d %H:%M")
        events.add_row(printable(event.event_type), title(event.item_id), when, f"{event.moved:.1%}", gains)
    words = [printable(" ".join(user_summary.user_summary(known)))]
    if told.summary is not None:
        words += [Text(), printable(told.summary.text), printable(f"({told.summary.note})")]
    return Group(*words, scores, events)


def _titled(items: Mapping[str, Item]) -> Callable[[str], Text]:
    return lambda item_id: printable(user_summary.title(item_id, items))
