"""The pipeline's commands as processes of their own.

Python's fork server imports their modules once: a process that is started costs no imports, which take seconds. The
commands themselves are started as they stand by the tests of the demo and of the README.
"""

import ctypes
import multiprocessing
import os
import re
import signal
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from urllib.error import HTTPError

from stream_rec.config import Settings, environment
from stream_rec.runtime.process import limit_openmp_spinning

COMMAND = (sys.executable, "-m", "stream_rec.cli")

limit_openmp_spinning()  # before the fork server has torch imported
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["stream_rec.pipeline.agents", "stream_rec.worker.main", "stream_rec.serving.engine", "stream_rec.console.server"]
)


def launch(command: str, settings: Settings, log: Path, first: Callable[[], None] | None = None) -> BaseProcess:
    """Starts `stream-rec COMMAND`, an option too, which writes to `log`; `first` is called in the process before."""
    given = command, os.environ | environment(settings), log, first
    process = SERVER.Process(target=_become, args=given, daemon=True)
    process.start()
    return process


def _become(command: str, environment: Mapping[str, str], log: Path, first: Callable[[], None] | None) -> None:
    """Turns a fork into the command, bound to the life of the fork server, which ends with its owner."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    os.setsid()
    sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    os.environ.update(environment)
    if first is not None:
        first()
    from stream_rec.cli.main import main

    sys.argv = ["stream-rec", *command.split()]
    main()


class Part:
    def __init__(self, command: str, settings: Settings, log: Path) -> None:
        log.touch()
        self._log = log
        self._process = launch(command, settings, log)

    @property
    def said(self) -> str:
        return self._log.read_text()

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The first match in what the process says; pytest's own time limit ends a wait that is in vain."""
        while not (match := re.search(pattern, self.said)):
            assert self.running, f"ended with {self._process.exitcode}: {self.said}"
            time.sleep(0.05)
        return match

    def page(self, path: str) -> tuple[int, str]:
        """Status and text of one of the process's pages."""
        url = self.wait_for(r"metrics on (http\S+)/metrics")[1] + path
        try:
            with urllib.request.urlopen(url) as page:  # noqa: S310 - our own
                return page.status, page.read().decode()
        except HTTPError as error:
            return error.code, error.read().decode()

    def metrics(self) -> dict[str, float]:
        """The samples of /metrics, by name and labels as they are written there."""
        lines = self.page("/metrics")[1].splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}

    @property
    def pid(self) -> int:
        return self._process.pid or 0

    @property
    def running(self) -> bool:
        return self._process.is_alive()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int | None:
        """Returns the exit code."""
        self._process.join()
        return self._process.exitcode

    def stop(self) -> int | None:
        """SIGTERM; returns the exit code."""
        self._process.terminate()
        return self.wait()

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.join()
