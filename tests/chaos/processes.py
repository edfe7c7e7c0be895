"""Agents and workers that can be killed, ended, stopped and woken."""

import os
import signal
from collections.abc import Callable, Iterator
from itertools import count
from multiprocessing.process import BaseProcess
from pathlib import Path

from stream_rec.config import Settings
from tests.e2e.process import launch


class Group:
    """The processes of one command."""

    def __init__(self, command: str, settings: Settings, folder: Path, bug: Callable[[], None] | None = None) -> None:
        self._command = command
        self._settings = settings
        self._folder = folder
        self._folder.mkdir(exist_ok=True)
        self._bug = bug
        self._numbers = count()
        self._running: list[BaseProcess] = []
        self._stopped: set[BaseProcess] = set()
        self._ending: list[BaseProcess] = []

    def __len__(self) -> int:
        return len(self._running)

    def add(self) -> None:
        log = self._folder / f"{self._command}-{next(self._numbers)}.log"
        self._running.append(launch(self._command, self._settings, log, self._bug))

    def kill(self, which: int) -> None:
        process = self._take(which)
        process.kill()
        self._ending.append(process)

    def end(self, which: int) -> None:
        """SIGTERM; it ends on its own time."""
        process = self._take(which)
        process.terminate()
        self.wake(process)
        self._ending.append(process)

    def stop(self, which: int) -> BaseProcess:
        process = self._running[which % len(self._running)]
        os.kill(process.pid or 0, signal.SIGSTOP)
        self._stopped.add(process)
        return process

    def wake(self, process: BaseProcess) -> None:
        if process in self._stopped and process.is_alive():
            os.kill(process.pid or 0, signal.SIGCONT)
        self._stopped.discard(process)

    def replace_dead(self) -> int:
        """Starts a process for each that has ended of itself; returns how many those were."""
        dead = [process for process in self._running if not process.is_alive()]
        for process in dead:
            self._running.remove(process)
            self.add()
        return len(dead)

    def close(self) -> None:
        """Kills all that are left."""
        for process in (*self._running, *self._ending):
            process.kill()
            process.join()
        self._running.clear()

    def logs(self) -> Iterator[Path]:
        yield from sorted(self._folder.glob(f"{self._command}-*.log"))

    def _take(self, which: int) -> BaseProcess:
        return self._running.pop(which % len(self._running))
