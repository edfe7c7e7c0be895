"""What is disturbed: a broker that can be started again on its data, agents, workers, the model in service."""

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from stream_rec.config import Settings
from stream_rec.local.broker import Broker
from tests.chaos.models import Models
from tests.chaos.plan import ROLES, USUAL, Kind, Step
from tests.chaos.processes import Group


class Kafka:
    """The embedded broker, on one port and one folder from start to start."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._broker = Broker(home).start()
        self.bootstrap = self._broker.bootstrap

    def restart(self, *, killed: bool) -> None:
        if killed:
            psutil.Process(self._broker.pid).send_signal(signal.SIGKILL)
            self._broker.wait()
        self._broker.stop()
        self._broker = Broker(self._home, self._broker.port).start()

    def stop(self) -> None:
        self._broker.stop()


class Stage:
    def __init__(self, kafka: Kafka, groups: dict[str, Group], models: Models) -> None:
        self._kafka = kafka
        self._groups = groups
        self._models = models
        self._serving = 0
        self.times: list[float] = []
        """Of everything that a recovery follows, seconds since 1970: for a broker when it listens again."""
        self.ended = 0
        """Processes that ended of themselves and were replaced: a zombie does when it wakes."""

    async def do(self, step: Step) -> None:
        self.supervise()
        group = self._groups[step.role]
        match step.kind:
            case Kind.KILL:
                group.kill(step.which)
                group.add()
            case Kind.END:
                group.end(step.which)
                group.add()
            case Kind.STOP:
                process = group.stop(step.which)
                self.times.append(time.time())
                await asyncio.sleep(step.hold_s)
                group.wake(process)
            case Kind.BROKER:
                await asyncio.to_thread(self._kafka.restart, killed=not step.hold_s)
            case Kind.ADD:
                group.add()
            case Kind.REMOVE:
                group.end(step.which)
            case Kind.SWAP:
                self._serving = 1 - self._serving
                self._models.point_to(self._serving)
        self.times.append(time.time())

    def supervise(self) -> None:
        """Replaces what has ended of itself."""
        self.ended += sum(group.replace_dead() for group in self._groups.values())


@contextmanager
def groups(
    settings: Settings, folder: Path, bug: Callable[[], None] | None = None, each: int = USUAL
) -> Iterator[dict[str, Group]]:
    """`each` agents and as many workers, started; killed at the end. What they say goes to files in `folder`."""
    made = {role: Group(role, settings, folder, bug) for role in ROLES}
    try:
        for group in made.values():
            for _ in range(each):
                group.add()
        yield made
    finally:
        for group in made.values():
            group.close()
