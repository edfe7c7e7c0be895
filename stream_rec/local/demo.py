"""Everything on one machine: broker, topics, a model, agents and worker as processes of their own, live events.

All that the demo shows and prints at the end is read from the topics, by the same join that `replay --report` uses.
"""

import asyncio
import logging
import shutil
import signal
import tempfile
from collections.abc import Awaitable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from rich.console import Group
from rich.live import Live
from rich.text import Text

from stream_rec import config
from stream_rec.config import Settings
from stream_rec.data import event_log
from stream_rec.data.simulator.storefront import Storefront
from stream_rec.data.source import Period, from_files
from stream_rec.errors import UserError
from stream_rec.evaluation import report
from stream_rec.evaluation.baselines import Baselines
from stream_rec.kafka import topics
from stream_rec.kafka.publish import publish_items
from stream_rec.local import lookup
from stream_rec.local.broker import Broker
from stream_rec.local.subprocesses import Processes
from stream_rec.messages import Event, Item
from stream_rec.replay.evaluation_consumer import EvaluationConsumer, following
from stream_rec.replay.producer import feed, steady
from stream_rec.runtime.terminal import Terminal, print_json

SIMULATED_EVENTS = 40_000
"""Of the storefront, to train on; what comes after them is fed live."""
DRAIN_S = 30.0
"""How long the last answers may take after the last event, seconds."""
HURRY_S = 2.0
"""The same after Ctrl-C, which ends everything within 10 s."""
BROKER_END_S = 3.0

T = TypeVar("T")


class DemoOptions(NamedTuple):
    """The options of `stream-rec demo`."""

    events: Path | None
    items: Path | None
    columns: str
    first: float
    seconds: float | None
    rate: float
    epochs: int
    seed: int
    as_json: bool


class Shop(NamedTuple):
    """What is trained on and what is fed."""

    items: Sequence[Item]
    past: Iterable[Event]
    """What the training sees, for the floors."""
    live: Iterator[Event]
    event_types: tuple[str, ...]
    training: tuple[str, ...]
    """The arguments of `stream-rec train` that name the log."""


def run(settings: Settings, plan: DemoOptions) -> int:
    """Runs the demo; returns the exit code, 0 also when it was stopped before anything was fed. Raises `UserError`."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    for name, value in (("--rate", plan.rate), ("--seconds", plan.seconds)):
        if value is not None and value <= 0:
            raise UserError(f"{name} is {value}: give more than 0")
    console = Terminal(stderr=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as stack:
        home = Path(tempfile.mkdtemp(prefix="stream-rec-demo-"))
        stack.callback(shutil.rmtree, home, ignore_errors=True)
        try:
            shop = _simulated(plan, home) if plan.events is None else _logged(plan, plan.events, console)
            broker = Broker(notify=lambda line: console.print(line, highlight=False)).start()
            stack.callback(broker.stop, BROKER_END_S)
            here = {**broker.settings, "event_types": shop.event_types, "model": home / "model"}
            ports = {"agents_metrics_port": 0, "worker_metrics_port": 0}
            # Every event is compared with what was predicted right before it; the console takes any free port.
            each = {"coalesce": False, "console_port": 0}
            own = config.load_settings(**(each | settings.model_dump(exclude_unset=True) | here | ports))
            running = stack.enter_context(Processes(home, own))
            summary = asyncio.run(_demonstrate(own, plan, shop, running, console))
        except KeyboardInterrupt:
            console.print("stopped")
            return 0
    console.print(report.table(summary))
    if plan.as_json:
        print_json(summary)
    return 0


def _simulated(plan: DemoOptions, home: Path) -> Shop:
    shop = Storefront(plan.seed)
    live = shop.events()
    past = list(islice(live, SIMULATED_EVENTS))
    events, items = home / "events.jsonl", home / "items.jsonl"
    event_log.write_events(past, events)
    event_log.write_items(shop.items, items)
    return Shop(shop.items, past, live, ("view", "cart", "purchase"), (str(events), "--items", str(items)))


def _logged(plan: DemoOptions, events: Path, console: Terminal) -> Shop:
    source = from_files(events, plan.items, plan.columns, Period())
    for note in source.notes:
        console.say(note)
    log, items = source.log, source.items
    past, live = event_log.split(log, plan.first)
    training = [str(events), "--first", str(plan.first), "--columns", plan.columns]
    if plan.items:
        training += ["--items", str(plan.items)]
    types = tuple(log.frame["event"].unique().sort().to_list())
    return Shop(items, event_log.to_events(past), event_log.to_events(live), types, tuple(training))


async def _demonstrate(
    settings: Settings, plan: DemoOptions, shop: Shop, running: Processes, console: Terminal
) -> dict[str, Any]:
    """Starts the processes in their order, feeds until time or events are over or the person says stop; the summary."""
    told, over = asyncio.Event(), asyncio.Event()

    def tell() -> None:
        told.set()
        over.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, tell)
    await topics.create(settings)
    await publish_items(shop.items, settings)
    running.start("agents")
    fast = ("--no-refit", "--epochs", str(plan.epochs), "--seed", str(plan.seed))
    training_s = await _unless(told, running.finish("train", *shop.training, *fast, "--out", str(settings.model)))
    running.start("worker")
    running.start("console", "--allow-events")
    with console.status("starting the agents, the worker and the console"):
        await _unless(told, asyncio.gather(*map(running.ready, ("agents", "worker", "console"))))
    console.print(f"look at it in a browser: {running.address('console')}", highlight=False)
    floors = Baselines((event.user_id, event.item_id) for event in shop.past if event.item_id)
    titles = {item.item_id: item for item in shop.items}
    if plan.seconds is not None:
        asyncio.get_running_loop().call_later(plan.seconds, over.set)
    async with following(settings, floors) as follower:
        with Live(console=console, refresh_per_second=4, transient=True) as live:
            watching = asyncio.create_task(_watch(live, follower, titles, running, over))
            await feed(shop.live, settings, pace=steady(plan.rate), stop=over)
            draining, hurry = asyncio.create_task(follower.drain(DRAIN_S)), asyncio.create_task(told.wait())
            await asyncio.wait({draining, hurry}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({draining}, timeout=HURRY_S)
            hurry.cancel()
            watching.cancel()
        running.check()
        return {**follower.summary(), "training_s": round(training_s, 1)}


async def _unless(told: asyncio.Event, work: Awaitable[T]) -> T:
    """The result of `work`. Raises KeyboardInterrupt if the person stops it first."""
    working, stop = asyncio.ensure_future(work), asyncio.create_task(told.wait())
    await asyncio.wait({working, stop}, return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if told.is_set():
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        raise KeyboardInterrupt
    return await working


async def _watch(
    live: Live, follower: EvaluationConsumer, titles: dict[str, Item], running: Processes, over: asyncio.Event
) -> None:
    """Draws the live view once a second; a process that dies ends the feeding."""
    events = recommendations = 0
    while True:
        summary = follower.summary()
        fresh, answers = summary["events"] - events, summary["recommendations"] - recommendations
        events, recommendations = summary["events"], summary["recommendations"]
        now = Text(f"{fresh:,} events/s, {answers:,} recommendations/s; Ctrl-C ends it all", style="bold")
        newest = follower.newest
        accuracy = report.table(summary, "on their way")
        live.update(Group(now, accuracy, lookup.table(newest, titles, most=5) if newest else Text()))
        await asyncio.sleep(1)
        try:
            running.check()
        except UserError:
            over.set()
            return
