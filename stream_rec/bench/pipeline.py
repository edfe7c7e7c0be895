"""The pipeline on one machine: broker, agents, worker and load as processes of their own, at full load and at half.

Everything is warm before a figure is taken: each user's window stands in the windows topic as the agents would have
written it, the worker has answered them all once, its memory has learnt the log before, Java has compiled.
"""

import asyncio
import signal
import statistics
import time
from collections.abc import Callable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.progress import Progress

from stream_rec.bench.load import Load, Turn, at_most, steady
from stream_rec.bench.report import listed
from stream_rec.bench.report import show as show_figures
from stream_rec.bench.stage import Shape, Stage, staged
from stream_rec.bench.traffic import Traffic, logged, simulated
from stream_rec.config import Settings
from stream_rec.errors import UserError
from stream_rec.messages import encode
from stream_rec.runtime.terminal import Terminal

WAITING = 2_048
"""Events that are unanswered at full load: eight steps' worth."""
SILENCE_S = 60.0
"""After how long without an answer the pipeline counts as stuck."""
LOOK_S = 0.02


class PipelineBenchOptions(NamedTuple):
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
        """The most events that are fed: as many as answers are waited for, and `WAITING` that none waits for.

        Where the machine has become so slow that half a load is too much, they end before the measurement does: what
        it still waits for is on its way by then.
        """
        return (2 * self.runs + 1) * self.events + 3 * WAITING


class Run(NamedTuple):
    """What was seen while `Plan.events` events were answered, one after the other."""

    answers_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_s: dict[str, float]
    """Of each kind of process, a thousand events."""


Progressed = Callable[[str, float], None]
"""Called with what is going on and the share of the whole that is done."""


def show(settings: Settings, events: Path | None, columns: str, plan: PipelineBenchOptions, as_json: bool) -> None:
    """Measures, with a progress bar on stderr, and prints the figures. Raises `UserError`."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Progress(console=Terminal(stderr=True)) as bar:
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


def run(settings: Settings, traffic: Traffic, plan: PipelineBenchOptions, progress: Progressed) -> dict[str, Any]:
    """The figures, medians over the runs. All processes and folders are gone when it ends. Raises `UserError`."""
    with staged(settings, traffic, Shape(plan.width, plan.layers, plan.agents), coalesce=False) as stage:
        return asyncio.run(_measure(stage, traffic, plan, progress))


async def _measure(stage: Stage, traffic: Traffic, plan: PipelineBenchOptions, progress: Progressed) -> dict[str, Any]:
    progress("starting", 0)
    await stage.begin()
    settings, past = stage.settings, stage.past
    async with Load(settings, traffic.live) as load:
        watch = Watch(load, stage, lambda what: progress(what, load.answered / plan.fed))
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

    def __init__(self, load: Load, stage: Stage, say: Callable[[str], None]) -> None:
        self._load = load
        self._running = stage.running
        self._processes = stage.processes()
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

    async def runs(self, what: str, turn: Turn, plan: PipelineBenchOptions, skip: int) -> list[Run]:
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
