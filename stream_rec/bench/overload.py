"""More events than the pipeline can take, for minutes: what grows, what does not, and what is there in the end.

Lag may grow, memory may not. When the load has ended, both groups come to the ends of their topics, and every user's
newest window and answer are those of all that was sent.
"""

import asyncio
import math
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from msgspec import structs
from rich.progress import Progress

from stream_rec.bench.load import BREATH, steady
from stream_rec.bench.report import listed
from stream_rec.bench.report import show as show_figures
from stream_rec.bench.stage import Shape, Stage, staged
from stream_rec.bench.traffic import Traffic, logged, simulated
from stream_rec.config import Settings
from stream_rec.errors import UserError
from stream_rec.kafka.connection import access, connect
from stream_rec.kafka.consumer import make_consumer
from stream_rec.kafka.key_lookup import KeyLookup
from stream_rec.kafka.publish import Publisher
from stream_rec.messages import Event, encode, read_recommendation, read_window
from stream_rec.runtime.terminal import Terminal

LOOK_S = 1.0
"""Between two looks at lag and memory."""
STUCK_S = 60.0
"""After how long without progress the pipeline counts as stuck."""
FED = 100_000
"""Events that are fed over and over, at most."""
MIB = 1 << 20


class OverloadOptions(NamedTuple):
    rate: float
    """Events a second that are sent."""
    seconds: float
    """For how long."""
    width: int = 128
    layers: int = 2
    items: int = 10_000
    agents: int = 1
    """Agent processes."""
    users: int = 2_000
    """In the simulated log."""

    @property
    def history(self) -> int:
        """What lies before, in the simulated log."""
        return 40 * self.users

    @property
    def fed(self) -> int:
        """Events of the log that are fed; over and over where more are sent."""
        return min(FED, math.ceil(self.rate * self.seconds))


class Look(NamedTuple):
    """What was seen at a moment."""

    time: float
    """Seconds of a monotonic clock."""
    behind: dict[str, int]
    """Records that wait, by group: events for the agents, windows for the worker."""
    handled: dict[str, int]
    """Records that each group is done with."""
    memory: dict[str, int]
    """Resident bytes of each kind of process."""


def show(settings: Settings, events: Path | None, columns: str, plan: OverloadOptions, as_json: bool) -> None:
    """Measures, with a progress bar on stderr, and prints the figures. Raises `UserError`."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    traffic = (
        logged(events, columns, plan.items, plan.fed)
        if events
        else simulated(plan.items, plan.users, plan.history, plan.fed)
    )
    with Progress(console=Terminal(stderr=True)) as bar:
        task = bar.add_task("starting", total=plan.seconds)
        with staged(
            settings, traffic, Shape(plan.width, plan.layers, plan.agents), coalesce=settings.coalesce
        ) as stage:
            figures = asyncio.run(
                _measure(stage, traffic, plan, lambda what, done: bar.update(task, description=what, completed=done))
            )
    show_figures(listed(figures), figures, as_json)


async def _measure(
    stage: Stage, traffic: Traffic, plan: OverloadOptions, say: Callable[[str, float], None]
) -> dict[str, Any]:
    await stage.begin()
    async with connect(access(stage.settings)) as admin, make_consumer(access(stage.settings)) as reader:
        watch = Watch(stage, admin, reader)
        await watch.until_done(lambda behind: say(f"warming up, {behind:,} windows wait", 0))
        sent, loaded = await _overload(stage, traffic.live, plan, watch, say)
        ended = time.monotonic()
        drained = await watch.until_done(lambda behind: say(f"catching up, {behind:,} records wait", plan.seconds))
        caught_up_s = time.monotonic() - ended
    wrong, unanswered = await _left(stage, sent)
    return {
        "offered_per_s": round(sent.total() / (loaded[-1].time - loaded[0].time)),
        "seconds": plan.seconds,
        "events": sent.total(),
        "users": len(stage.past.windows.keys() | sent.keys()),
        "coalesce": stage.settings.coalesce,
        "handled_per_s": _rates(loaded),
        "peak_behind": {group: max(look.behind[group] for look in loaded) for group in loaded[0].behind},
        "caught_up_s": round(caught_up_s, 1),
        "handled_per_s_while_catching_up": _rates([loaded[-1], *drained]),
        "memory_mib": {kind: _memory([*loaded, *drained], kind) for kind in loaded[0].memory},
        "wrong_windows": wrong,
        "unanswered_users": unanswered,
    }


async def _overload(
    stage: Stage, events: Sequence[Event], plan: OverloadOptions, watch: "Watch", say: Callable[[str, float], None]
) -> tuple[Counter[str], list[Look]]:
    """Sends for `plan.seconds`; returns the events of each user and what was seen."""
    sent: Counter[str] = Counter()
    looks = [await watch.look()]
    began = looks[0].time
    sending = asyncio.create_task(_send(stage.settings, _again_and_again(events), plan, sent))
    while not sending.done():
        await asyncio.wait({sending}, timeout=LOOK_S)
        looks.append(await watch.look())
        say(f"{sum(looks[-1].behind.values()):,} records wait", looks[-1].time - began)
    await sending
    return sent, looks


async def _send(settings: Settings, events: Iterator[Event], plan: OverloadOptions, sent: Counter[str]) -> None:
    turn, until = steady(plan.rate), time.monotonic() + plan.seconds
    async with Publisher(settings, settings.events_topic) as publisher:
        for number, event in enumerate(events):
            await turn(number)
            if number % BREATH == 0:
                if time.monotonic() > until:
                    return
                await asyncio.sleep(0)
            await publisher.send(event.user_id, encode(event))
            sent[event.user_id] += 1


def _again_and_again(events: Sequence[Event]) -> Iterator[Event]:
    """`events` without their ids: a second event of an id is refused."""
    return cycle([structs.replace(event, event_id=None) for event in events])


class Watch:
    """Looks at how far the groups are and at what the processes hold. Raises `UserError` when one dies or stands."""

    def __init__(self, stage: Stage, admin: AIOKafkaAdminClient, reader: AIOKafkaConsumer) -> None:
        settings = stage.settings
        self._stage = stage
        self._admin = admin
        self._reader = reader
        self._groups = {
            "agents": (settings.agents_group, _partitions(settings, settings.events_topic)),
            "worker": (settings.worker_group, _partitions(settings, settings.windows_topic)),
        }
        self._processes = stage.processes()

    async def look(self) -> Look:
        self._stage.running.check()
        behind, handled = {}, {}
        for name, (group, partitions) in self._groups.items():
            ends = await self._reader.end_offsets(partitions)
            committed = await self._admin.list_consumer_group_offsets(group)
            handled[name] = sum(max(0, committed[one].offset) for one in partitions if one in committed)
            behind[name] = sum(ends.values()) - handled[name]
        memory = {kind: sum(one.memory_info().rss for one in some) for kind, some in self._processes.items()}
        return Look(time.monotonic(), behind, handled, memory)

    async def until_done(self, say: Callable[[int], None]) -> list[Look]:
        """Returns when nothing waits, with what was seen until then."""
        looks = [await self.look()]
        moved = looks[0]
        while sum(looks[-1].behind.values()):
            say(sum(looks[-1].behind.values()))
            await asyncio.sleep(LOOK_S)
            looks.append(await self.look())
            if looks[-1].handled != moved.handled:
                moved = looks[-1]
            elif looks[-1].time > moved.time + STUCK_S:
                raise UserError(f"nothing went on for {STUCK_S:.0f} s, and {looks[-1].behind} records wait")
        return looks


def _partitions(settings: Settings, topic: str) -> list[TopicPartition]:
    return [TopicPartition(topic, number) for number in range(settings.partitions)]


async def _left(stage: Stage, sent: Mapping[str, int]) -> tuple[int, int]:
    """Users whose window does not count all that was sent, and users whose newest window is not answered."""
    settings, past = stage.settings, stage.past.windows
    keys = {user.encode() for user in past.keys() | sent.keys()}
    async with KeyLookup(access(settings), settings.windows_topic) as search:
        windows = {key: read_window(one.value) for key, one in (await search.newest(keys)).items()}
    async with KeyLookup(access(settings), settings.recommendations_topic) as search:
        answers = {key: read_recommendation(one.value) for key, one in (await search.newest(keys)).items()}
    wrong = unanswered = 0
    for key in keys:
        user = key.decode()
        before = past[user].n if user in past else 0
        wrong += key not in windows or windows[key].n != before + sent.get(user, 0)
        unanswered += key not in windows or key not in answers or answers[key].offset != windows[key].offset
    return wrong, unanswered


def _rates(looks: Sequence[Look]) -> dict[str, float]:
    """Records a second that each group was done with."""
    first, last = looks[0], looks[-1]
    seconds = max(1e-9, last.time - first.time)
    return {group: round((last.handled[group] - first.handled[group]) / seconds) for group in last.handled}


def _memory(looks: Sequence[Look], kind: str) -> dict[str, float]:
    """Resident MiB at the begin and at the end, the largest, and how much more it is each minute in the second half."""
    held = np.array([look.memory[kind] for look in looks]) / MIB
    minutes = np.array([look.time for look in looks]) / 60
    tenth, half = max(1, len(looks) // 10), len(looks) // 2
    slope = np.polyfit(minutes[half:], held[half:], 1)[0] if len(looks) > 3 else 0.0
    figures = {
        "begin": float(np.median(held[:tenth])),
        "end": float(np.median(held[-tenth:])),
        "largest": float(held.max()),
        "each_minute": float(slope),
    }
    return {name: round(value, 1) for name, value in figures.items()}
