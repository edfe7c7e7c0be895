"""The pipeline on one machine: broker, agents, worker and load as processes of their own, at full load and at half.

Everything is warm before a figure is taken: each user's window stands in the windows topic as the agents would have
written it, the worker has answered them all once, its memory has learnt the log before, Java has compiled.
"""

import asyncio
import os
import shutil
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import Progress

from stream_rec import config, window
from stream_rec.bench.figures import listed
from stream_rec.bench.figures import show as show_figures
from stream_rec.bench.load import Load, Turn, at_most, steady
from stream_rec.bench.random_model import random_model
from stream_rec.bench.traffic import Traffic, logged, simulated
from stream_rec.config import Settings
from stream_rec.errors import UserError
from stream_rec.messages import Window, encode
from stream_rec.model import folder
from stream_rec.model.counters import REACH, Horizons, Memory
from stream_rec.model.encoder import EncoderConfig
from stream_rec.model.scorer import Blend
from stream_rec.pipeline import topics
from stream_rec.pipeline.broker import Broker
from stream_rec.pipeline.processes import Processes
from stream_rec.pipeline.publish import Publisher

BLEND = Blend(
    decoder=0.5,
    transitions=0.3,
    reverse=-0.1,
    together=0.8,
    text=0.1,
    words=0.3,
    popularity=0.1,
    recency=0.2,
    session=0.5,
    again=0.3,
    category=0.5,
    price=0.3,
    repeat=-2.0,
)
"""All parts, as a trained model has them."""
HORIZONS = Horizons(lasting=14 * 86_400.0, recent=86_400.0)
HEAD = 32
"""Width of an attention head, as `stream-rec train` has it."""
WAITING = 2_048
"""Events that are unanswered at full load: eight steps' worth."""
SILENCE_S = 60.0
"""After how long without an answer the pipeline counts as stuck."""
LOOK_S = 0.02
BROKER_END_S = 3.0


class Plan(NamedTuple):
    """What is measured. Counts of events but where it says otherwise."""

    width: int = 128
    layers: int = 2
    items: int = 10_000
    agents: int = 1
    """Agent processes."""
    events: int = 15_000
    """In a run."""
    runs: int = 3
    """At full load, and again at half of it; one more warms everything."""
    users: int = 2_000
    """In the simulated log."""

    @property
    def history(self) -> int:
        """What lies before, in the simulated log; of a log of one's own it is all but the last events."""
        return 40 * self.users

    @property
    def fed(self) -> int:
        """The most events that are fed."""
        return (2 * self.runs + 1) * self.events + 3 * WAITING


class Past(NamedTuple):
    """What the events before the first one fed have left behind."""

    windows: dict[str, Window]
    memory: Memory


class Run(NamedTuple):
    """What was seen while `Plan.events` events were answered, one after the other."""

    answers_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_s: dict[str, float]
    """Of each kind of process, a thousand events."""


Progressed = Callable[[str, float], None]
"""Called with what is going on and the share of the whole that is done."""


def show(settings: Settings, events: Path | None, columns: str, plan: Plan, as_json: bool) -> None:
    """Measures, with a progress bar on stderr, and prints the figures. Raises `UserError`."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("the log", total=1)
        figures = run(
            settings,
            logged(events, columns, plan.items, plan.fed)
            if events
            else simulated(plan.items, plan.users, plan.history, plan.fed),
            plan,
            lambda what, share: bar.update(task, description=what, completed=share),
        )
    show_figures(listed(figures), figures, as_json)


def run(settings: Settings, traffic: Traffic, plan: Plan, progress: Progressed) -> dict[str, Any]:
    """The figures, medians over the runs. All processes and folders are gone when it ends. Raises `UserError`."""
    with ExitStack() as stack:
        home = Path(tempfile.mkdtemp(prefix="stream-rec-bench-"))
        stack.callback(shutil.rmtree, home, ignore_errors=True)
        broker = Broker().start()
        stack.callback(broker.stop, BROKER_END_S)
        own = config.load(
            **settings.model_dump(exclude_unset=True)
            | {"bootstrap_servers": broker.bootstrap, "event_types": traffic.event_types, "model": home / "model"}
            | {"agents_metrics_port": 0, "worker_metrics_port": 0, "cache_dir": home / "cache", "coalesce": False}
        )
        past = _past(traffic, own)
        _save_model(traffic, own, plan, past.memory)
        running = stack.enter_context(Processes(home, own))
        return asyncio.run(_measure(own, traffic, plan, past, running, broker.pid, progress))


def _past(traffic: Traffic, settings: Settings) -> Past:
    """What the agents and the training make of the past; offset -1 stands before whatever is fed.

    The worker will learn from the windows once more: the sums in its memory differ by that, the work does not.
    """
    row_of = {item.item_id: row for row, item in enumerate(traffic.items, 1)}
    windows: dict[str, Window] = {}
    memory = Memory(HORIZONS)
    for event in traffic.past:
        held = windows[event.user_id] = window.append(
            windows.get(event.user_id),
            event,
            offset=-1,
            arrived=0.0,
            capacity=settings.capacity,
            stride=settings.move,
        )
        memory.learn_last([row_of[one.item_id] for one in held.events[-REACH - 1 :]], event.timestamp)
    return Past(windows, memory)


def _save_model(traffic: Traffic, settings: Settings, plan: Plan, memory: Memory) -> None:
    heads = plan.width // HEAD
    shape = EncoderConfig(
        width=plan.width, layers=plan.layers, heads=heads, kv_heads=heads, inner=2 * plan.width, residual_dropout=0
    )
    model = random_model(shape, traffic.items, traffic.event_types, settings.capacity, blend=BLEND, memory=memory)
    folder.save(model, settings.model)


async def _measure(
    settings: Settings,
    traffic: Traffic,
    plan: Plan,
    past: Past,
    running: Processes,
    broker: int | None,
    progress: Progressed,
) -> dict[str, Any]:
    progress("starting", 0)
    await topics.create(settings)
    async with Publisher(settings, settings.windows_topic) as publisher:
        for user, held in past.windows.items():
            await publisher.send(user, encode(held))
    agents = [f"agents-{number}" for number in range(1, plan.agents + 1)]
    for name in (*agents, "worker"):
        running.start(name)
    await asyncio.gather(*map(running.ready, (*agents, "worker")))
    pids: dict[str, list[int | None]] = {
        "broker": [broker],
        "agents": [running.pid(name) for name in agents],
        "worker": [running.pid("worker")],
    }
    async with Load(settings, traffic.live) as load:
        watch = Watch(
            load, running, pids | {"load": [os.getpid()]}, lambda what: progress(what, load.answered / plan.fed)
        )
        await watch.until("warming up", lambda: load.warmed == len(past.windows))
        full = await watch.runs("full load", at_most(load, WAITING), plan, plan.events)
        rate = _median(full, attrgetter("answers_per_s"))
        half = await watch.runs("half load", steady(rate / 2), plan, WAITING)
        return {
            "events": load.sent,
            "answered": load.answered,
            "repeated": load.repeated,
            "users": len(past.windows),
            "window_bytes": round(statistics.mean(len(encode(held)) for held in past.windows.values())),
            "width": plan.width,
            "layers": plan.layers,
            "capacity": settings.capacity,
            "items": len(traffic.items),
            "agents": plan.agents,
            "partitions": settings.partitions,
            "updates_per_s": round(rate, 1),
            "latency_ms": _latency(half),
            "full_load_latency_ms": _latency(full),
            "cpu_s_per_1000_events": _cpu(full),
            "half_load_updates_per_s": round(_median(half, attrgetter("answers_per_s")), 1),
            "half_load_cpu_s_per_1000_events": _cpu(half),
        }


class Watch:
    """Waits for answers and takes the figures meanwhile. Raises `UserError` when a process dies or nothing comes."""

    def __init__(
        self, load: Load, running: Processes, pids: Mapping[str, Sequence[int | None]], say: Callable[[str], None]
    ) -> None:
        import psutil  # of the extra `local`, like the broker, which misses it in words

        self._load = load
        self._running = running
        self._processes = {kind: [psutil.Process(pid) for pid in some] for kind, some in pids.items()}
        self._say = say

    async def until(self, what: str, reached: Callable[[], bool]) -> None:
        """Returns when `reached`."""
        heard, since = self._load.heard, time.monotonic()
        while not reached():
            self._say(what)
            self._running.check()
            self._load.check()
            await asyncio.sleep(LOOK_S)
            if self._load.heard > heard:
                heard, since = self._load.heard, time.monotonic()
            elif time.monotonic() > since + SILENCE_S:
                raise UserError(f"no answer for {SILENCE_S:.0f} s, {what}: is the machine too busy?")

    async def runs(self, what: str, turn: Turn, plan: Plan, skip: int) -> list[Run]:
        """Feeds until `skip` events and then `plan.runs` times `plan.events` are answered, then until all are."""
        load = self._load
        async with load.fed(turn):
            await self._answered(what, skip)
            found = [await self._run(f"{what}, run {number}", plan.events) for number in range(1, plan.runs + 1)]
        await self.until(what, lambda: not load.waiting)
        return found

    async def _run(self, what: str, count: int) -> Run:
        began, before, first = time.monotonic(), self._cpu(), self._load.answered
        await self._answered(what, count)
        seconds, after = time.monotonic() - began, self._cpu()
        latencies = self._load.latencies_ms[first:]
        p50, p99 = np.percentile(latencies, (50, 99)).tolist()
        cpu = {kind: 1_000 * (after[kind] - before[kind]) / len(latencies) for kind in after}
        return Run(len(latencies) / seconds, p50, p99, cpu)

    async def _answered(self, what: str, count: int) -> None:
        wanted = self._load.answered + count
        await self.until(what, lambda: self._load.answered >= wanted)

    def _cpu(self) -> dict[str, float]:
        """Seconds of each kind so far."""
        return {
            kind: sum(times.user + times.system for times in (process.cpu_times() for process in some))
            for kind, some in self._processes.items()
        }


def _latency(runs: Sequence[Run]) -> dict[str, float]:
    return {"p50": round(_median(runs, attrgetter("p50_ms")), 1), "p99": round(_median(runs, attrgetter("p99_ms")), 1)}


def _cpu(runs: Sequence[Run]) -> dict[str, float]:
    return {kind: round(statistics.median(run.cpu_s[kind] for run in runs), 3) for kind in runs[0].cpu_s}


def _median(runs: Sequence[Run], figure: Callable[[Run], float]) -> float:
    return statistics.median(map(figure, runs))
