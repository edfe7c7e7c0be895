"""A run: the log is fed while the plan disturbs; the same log is read in calm; then all is compared."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

from stream_rec.config import Settings
from stream_rec.kafka import topics
from stream_rec.kafka.access_control import describe_topics, on
from stream_rec.kafka.connection import access
from tests.chaos import models
from tests.chaos.bugs import Bug
from tests.chaos.judge import Found, judge
from tests.chaos.log import Log, endless, spoiled
from tests.chaos.models import CAPACITY, STRIDE, Models
from tests.chaos.plan import Kind, Step
from tests.chaos.processes import Group
from tests.chaos.reading import Rules, read
from tests.chaos.stage import Kafka, Stage, groups
from tests.chaos.verdict import Faults
from tests.chaos.watch import Traffic, longest_recovery
from tests.e2e.kafka import alter, read_topic, settings_for, waiting

PARTITIONS = 4
HEALS_S = 60.0
"""After which a recovery is given up, seconds: what it has lost will show."""
DRAINS_S = 600.0
"""The same for what is left at the end."""
NEVER_MS = str(30 * 24 * 3_600_000)

Say = Callable[[str, float, float], None]
"""(what is going on, done, total)"""


class Summary(NamedTuple):
    """What is printed; the first nine say what the harness is for."""

    kills: int
    stops: int
    broker_restarts: int
    events: int
    """Records fed, those that can't be read among them."""
    lost: int
    duplicated: int
    wrong: int
    out_of_order: int
    longest_recovery_s: float
    terminated: int
    resized: int
    swapped: int
    ended: int
    """Processes that ended of themselves."""
    answers: int
    dead_letters: int
    erasures: int


async def run(
    log: Log,
    steps: Sequence[Step],
    home: Path,
    *,
    seed: int,
    rate: float,
    say: Say,
    bug: Bug | None = None,
) -> Summary:
    """Kafka's data, the models and what the processes say lie in `home` afterwards.

    Raises `AssertionError` where `bug` has not ended a process: such a run says nothing about it.
    """
    made = models.make(log.items, log.event_types, home)
    kafka = Kafka(home / "kafka")
    struck = home / "struck"
    try:
        settings = _settings(kafka, home, log)
        await _create(settings)
        records = spoiled(endless(log), random.Random(seed))
        async with Traffic(settings, records, rate) as traffic:
            with groups(settings, home / "disturbed", bug and partial(bug, struck)) as running:
                stage = Stage(kafka, running, made)
                await _disturb(stage, steps, traffic, say)
                if bug is not None:
                    await _struck(struck, stage, traffic)
                await traffic.end()
                await _drained(settings, say, stage)
            recovery = longest_recovery(stage.times, traffic)
        say(f"recovered, {recovery:.1f} s at the longest", 1, 1)
        events = await read_topic(settings, settings.events_topic)
        topic = (await describe_topics(access(settings), *on("Read", settings.events_topic)))[settings.events_topic]
        found = await _found(settings)
        calm = await _calm(settings, made, home / "calm", say)
    finally:
        kafka.stop()
    limits = settings.max_event_bytes, settings.max_future_s
    rules = Rules(frozenset(log.event_types), CAPACITY, STRIDE, *limits, topic.id)
    reading = read(events, rules)
    faults = judge(reading, events, found, calm)
    say(f"verdict, {faults}", 1, 1)
    kinds = Counter(step.kind for step in steps)
    return Summary(
        kinds[Kind.KILL],
        kinds[Kind.STOP],
        kinds[Kind.BROKER],
        len(events),
        *sum(faults.values(), Faults()),
        longest_recovery_s=round(recovery, 1),
        terminated=kinds[Kind.END],
        resized=kinds[Kind.ADD] + kinds[Kind.REMOVE],
        swapped=kinds[Kind.SWAP],
        ended=stage.ended,
        answers=sum(record.value is not None for record in found.answers),
        dead_letters=len(reading.refused),
        erasures=sum(one.window is None for written in reading.windows.values() for one in written),
    )


def _settings(kafka: Kafka, home: Path, log: Log) -> Settings:
    return settings_for(
        home / "cache",
        bootstrap_servers=kafka.bootstrap,
        model=home / "model",
        event_types=log.event_types,
        partitions=PARTITIONS,
        capacity=CAPACITY,
        stride=STRIDE,
        coalesce=False,
        memory="own",  # so that an answer is a function of its partition alone
        watch_model_s=0.5,
        token_budget=512,
    )


async def _create(settings: Settings) -> None:
    """Topics whose every record can be compared at the end: nothing is compacted before."""
    await topics.create(settings)
    for topic in (settings.windows_topic, settings.recommendations_topic):
        kept = topics.layouts(settings)[topic] | {"min.compaction.lag.ms": NEVER_MS, "max.compaction.lag.ms": NEVER_MS}
        await alter(settings, topic, **{name.replace(".", "_"): value for name, value in kept.items()})


async def _disturb(stage: Stage, steps: Sequence[Step], traffic: Traffic, say: Say) -> None:
    """Begins when answers come."""
    stage.times.append(time.time())
    await _healed(stage, traffic)
    for number, step in enumerate(steps, 1):
        await stage.do(step)
        say(
            f"disturbed, {step.kind} {step.role}: {traffic.events} events, {traffic.answers} answers",
            number,
            len(steps),
        )
        if step.pause_s is None:
            await _healed(stage, traffic)
        else:
            await asyncio.sleep(step.pause_s)


async def _struck(file: Path, stage: Stage, traffic: Traffic) -> None:
    """Returns when the bug has ended a process. Raises `AssertionError` where it doesn't."""
    until = time.monotonic() + HEALS_S
    while not await asyncio.to_thread(file.exists):
        assert time.monotonic() < until, "the bug has ended no process"
        traffic.check()
        stage.supervise()
        await asyncio.sleep(0.1)


async def _healed(stage: Stage, traffic: Traffic) -> None:
    """Returns when everything works again after the last disturbance."""
    until = time.monotonic() + HEALS_S
    while traffic.healed(stage.times[-1]) is None and time.monotonic() < until:
        traffic.check()
        stage.supervise()
        await asyncio.sleep(0.1)


async def _drained(settings: Settings, say: Say, stage: Stage | None = None) -> None:
    """Returns when everything is done, or nothing more is to be expected."""
    total, until = 1, time.monotonic() + DRAINS_S
    groups = {settings.agents_group: settings.events_topic, settings.worker_group: settings.windows_topic}
    for group, topic in groups.items():
        while (left := await waiting(settings, group, topic)) and time.monotonic() < until:
            total = max(total, left)
            say(f"{group} to the end", total - left, total)
            if stage is not None:
                stage.supervise()
            await asyncio.sleep(0.5)


async def _found(settings: Settings) -> Found:
    return Found(
        await read_topic(settings, settings.windows_topic),
        await read_topic(settings, settings.recommendations_topic),
        await read_topic(settings, settings.dead_letter_topic),
    )


async def _calm(settings: Settings, made: Models, folder: Path, say: Say) -> list[Found]:
    """What one agent, and one worker for each model, make of the same events topic undisturbed."""
    with ExitStack() as running:

        def start(command: str, settings: Settings) -> None:
            group = Group(command, settings, folder)
            running.callback(group.close)
            group.add()

        own = ("windows_topic", "dead_letter_topic", "agents_group")
        calm = settings.model_copy(update={name: f"{getattr(settings, name)}-calm" for name in own})
        each = []
        for number, path in enumerate(made.folders):
            own = ("recommendations_topic", "worker_group")
            names = {name: f"{getattr(settings, name)}-calm-{number}" for name in own}
            each.append(calm.model_copy(update={**names, "model": path}))
            await _create(each[-1])
            start("worker", each[-1])
        start("agents", calm)
        for one in each:
            await _drained(one, say)
        return [await _found(one) for one in each]
