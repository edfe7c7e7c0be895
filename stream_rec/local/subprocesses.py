"""Child processes of the demo: the project's own commands with the demo's settings, ended together.

A child also ends when its owner ends, however the owner ends.
"""

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import IO, Any, Self

from stream_rec.config import Settings, environment
from stream_rec.errors import UserError

_BIND_THEN_RUN = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)   # PR_SET_PDEATHSIG: stays in force across exec
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the owner is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


READY_S = 120.0
POLL_S = 0.1
END_S = 4.0
"""How long the processes may take to end in order, seconds; then they are killed."""


def start(
    command: Sequence[str], sink: IO[bytes] | None, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Starts `command` so that the kernel kills it when this process ends, `kill -9` included (prctl(2), Linux).

    Its output goes to `sink`, or where this process's goes. It stands in a session of its own: a terminal's Ctrl-C
    reaches the owner alone, which ends its parts in their order.

    A short Python in the child binds itself and becomes the command; a `preexec_fn` could deadlock in a process with
    threads. The kernel counts the end of the *thread* that forked as the parent's death, so that a thread of its own
    forks, and waits as long as the child lives.
    """
    began: Future[subprocess.Popen[bytes]] = Future()

    def hold() -> None:
        try:
            process = subprocess.Popen(  # noqa: S603 - our own command
                [sys.executable, "-I", "-S", "-c", _BIND_THEN_RUN, str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT if sink is not None else None,
                start_new_session=True,
                env=environment,
            )
        except BaseException as error:  # noqa: BLE001 - it is raised in the caller's thread
            began.set_exception(error)
        else:
            began.set_result(process)
            process.wait()

    threading.Thread(target=hold, name="owner", daemon=True).start()
    return began.result()


def end(processes: Sequence[subprocess.Popen[bytes]], timeout_s: float) -> None:
    """SIGTERM to all, SIGKILL to those that are left after `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Processes:
    """A context that ends its processes when it ends; what they say goes to files in `folder`."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self._folder = folder
        self._environment = {**os.environ, **environment(settings)}
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        end(list(self._running.values()), END_S)

    def start(self, name: str, *options: str) -> None:
        """Starts a command that goes on until it is ended; several of a kind are `agents-1`, `agents-2`, ..."""
        with self._log(name).open("wb") as sink:
            self._running[name] = start(self._line(_command(name), *options), sink, self._environment)

    def pid(self, name: str) -> int:
        """Of a started command."""
        return self._running[name].pid

    async def finish(self, command: str, *arguments: str) -> float:
        """Runs a command to its end, what it says going to stderr; returns how long it took, seconds.

        Raises `UserError` when it fails.
        """
        began = time.monotonic()
        process = start(self._line(command, *arguments), sys.stderr.buffer, self._environment)
        self._running[command] = process
        while process.poll() is None:
            self.check()
            await asyncio.sleep(POLL_S)
        del self._running[command]
        if process.returncode:
            raise UserError(f"stream-rec {command} failed, exit code {process.returncode}: what it said stands above")
        return time.monotonic() - began

    async def ready(self, name: str) -> None:
        """Waits until a started command says that it is ready. Raises `UserError` when it dies or takes too long."""
        deadline = time.monotonic() + READY_S
        while f"{_command(name)} ready" not in self._said(name):
            self.check()
            if time.monotonic() > deadline:
                raise UserError(f"stream-rec {name} is not ready after {READY_S:.0f} s: {self._tail(name)}")
            await asyncio.sleep(POLL_S)

    def address(self, name: str) -> str:
        """Where a started command that is ready serves its pages."""
        return self._said(name).partition(f"{_command(name)} on ")[2].split()[0]

    def check(self) -> None:
        """Raises `UserError` when a started command has ended."""
        for command, process in self._running.items():
            if process.poll() is not None and self._log(command).exists():
                raise UserError(f"stream-rec {command} ended, exit code {process.returncode}: {self._tail(command)}")

    def _line(self, command: str, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "stream_rec.cli", command, *arguments]

    def _log(self, command: str) -> Path:
        return self._folder / f"{command}.log"

    def _said(self, command: str) -> str:
        return self._log(command).read_text(errors="replace")

    def _tail(self, command: str) -> str:
        return " | ".join(self._said(command).splitlines()[-4:]) or "it said nothing"


def _command(name: str) -> str:
    return name.split("-")[0]
