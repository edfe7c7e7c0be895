"""Replaying a log: what it holds goes to the events topic, and a report says what became of it."""

import asyncio
import signal
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

from aiokafka.errors import KafkaError
from aiokafka.structs import RecordMetadata
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from stream_rec.config import Settings
from stream_rec.data import event_log, ids
from stream_rec.data.event_log import Log
from stream_rec.errors import NoBrokerError, UserError
from stream_rec.evaluation import report
from stream_rec.evaluation.baselines import Baselines
from stream_rec.kafka.access_control import check_access, on
from stream_rec.kafka.connection import access
from stream_rec.messages import Event
from stream_rec.replay.evaluation_consumer import following
from stream_rec.replay.kafka_source import read_catalogue
from stream_rec.replay.producer import Fed, RatePolicy, TimestampPolicy, feed, keep, now, speed, steady
from stream_rec.replay.refusals import Sent
from stream_rec.runtime.terminal import Terminal, print_json

QUIET_S = 30.0
"""After the last event: how long nothing may be answered before the rest counts as lost, seconds."""


class ReplayOptions(NamedTuple):
    """The options of `stream-rec replay`."""

    after: float
    speed: str
    rate: float | None
    shift: bool
    limit: int | None
    report: bool
    as_json: bool


def run(settings: Settings, log: Log, plan: ReplayOptions) -> None:
    """Replays `log` as the plan says; the report goes to stdout. Raises `UserError`."""
    if plan.rate is not None and plan.rate <= 0:
        raise UserError(f"--rate is {plan.rate}: give more than 0 events a second")
    if not 0 <= plan.after < 1:
        raise UserError(f"--after is {plan.after}: give a share of the log, 0 or more and below 1")
    past: Iterable[Event] = ()
    if plan.after:
        before, log = event_log.split(log, plan.after)
        past = event_log.to_events(before)
    count = min(len(log.frame), plan.limit or len(log.frame))
    pace = steady(plan.rate) if plan.rate is not None else speed(plan.speed)
    floors = Baselines((event.user_id, event.item_id) for event in past if event.item_id) if plan.report else None
    stamp = now if plan.shift else keep
    console = Terminal(stderr=True)
    for note in (*event_log.losses(log, "the log"), log.period, *asyncio.run(_coverage(settings, log))):
        console.say(note)
    sent = Sent()
    fed, summary = asyncio.run(_interruptible(settings, event_log.to_events(log), count, floors, pace, stamp, sent))
    if summary is None:
        refused = asyncio.run(_refused(settings, sent)) if fed.events else "nothing to refuse"
        console.say(f"{fed.events:,} events sent in {fed.seconds:.1f} s: {refused}")
    elif plan.as_json:
        print_json(summary)
    else:
        Terminal().print(report.table(summary))


async def _coverage(settings: Settings, log: Log) -> list[str]:
    """How many of the log's items the topic of items holds; that it can't be told where this user may not read it."""
    await check_access(access(settings), *on("Write", settings.events_topic))
    try:
        catalogue = await read_catalogue(settings)
    except NoBrokerError:
        raise
    except UserError as error:
        return [f"how many of the log's items the catalogue knows can't be told: {error}"]
    known = [item.item_id for item in catalogue.sorted()]
    return ids.coverage(ids.joined(log.frame["item"], known), known)


async def _refused(settings: Settings, sent: Sent) -> str:
    """What the agents made of the events, in words."""
    try:
        by_reason, whole = await sent.refused(settings)
    except (KafkaError, UserError) as error:
        return f"whether any was refused is not known ({error})"
    so_far = "" if whole else f" so far; the agents (group {settings.agents_group}) have not committed all of them"
    return report.refusals(by_reason) + so_far


async def _interruptible(
    settings: Settings,
    events: Iterable[Event],
    count: int,
    floors: Baselines | None,
    pace: RatePolicy,
    stamp: TimestampPolicy,
    sent: Sent,
) -> tuple[Fed, dict[str, Any] | None]:
    """Ctrl-C ends the feeding; what was sent is reported."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return await replay(events, settings, count, floors=floors, pace=pace, stamp=stamp, stop=stop, on_stored=sent.add)


async def replay(
    events: Iterable[Event],
    settings: Settings,
    count: int,
    *,
    floors: Baselines | None = None,
    quiet_s: float = QUIET_S,
    pace: RatePolicy,
    stamp: TimestampPolicy = keep,
    stop: asyncio.Event | None = None,
    on_stored: Callable[[RecordMetadata], None] = lambda _stored: None,
) -> tuple[Fed, dict[str, Any] | None]:
    """Feeds at most `count` events, with a progress bar on stderr.

    With `floors` to compare with, it also follows the topics, waits until everything is covered or nothing has been
    for `quiet_s` seconds, and returns the summary of `report.Report`.
    """
    await check_access(access(settings), *on("Write", settings.events_topic))
    async with AsyncExitStack() as stack:
        follower = await stack.enter_async_context(following(settings, floors)) if floors is not None else None
        columns = (TextColumn("events"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
        with Progress(*columns, console=Terminal(stderr=True)) as bar:
            task = bar.add_task("events", total=count)
            fed = await feed(
                events,
                settings,
                pace=pace,
                stamp=stamp,
                limit=count,
                stop=stop,
                on_sent=lambda sent: bar.update(task, completed=sent),
                on_stored=on_stored,
            )
        if follower is None:
            return fed, None
        await follower.drain(quiet_s)
        return fed, follower.summary()


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        rate = task.finished_speed or task.speed
        return Text("" if rate is None else f"{rate:,.0f}/s")
