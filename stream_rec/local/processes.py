"""The demo's processes: the project's own commands, with the demo's settings, ended together."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

from stream_rec.config import Settings, environment
from stream_rec.errors import UserError
from stream_rec.local import child

READY_S = 120.0
POLL_S = 0.1
END_S = 4.0
"""How long the processes may take to end in order, seconds; then they are killed."""


class Processes:
    """A context that ends its processes when it ends; what they say goes to files in `folder`."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self._folder = folder
        self._environment = {**os.environ, **environment(settings)}
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        child.end(list(self._running.values()), END_S)

    def start(self, name: str, *options: str) -> None:
        """Starts a command that goes on until it is ended; several of a kind are `agents-1`, `agents-2`, ..."""
        with self._log(name).open("wb") as sink:
            self._running[name] = child.start(self._line(_command(name), *options), sink, self._environment)

    def pid(self, name: str) -> int:
        """Of a started command."""
        return self._running[name].pid

    async def finish(self, command: str, *arguments: str) -> float:
        """Runs a command to its end, what it says going to stderr; returns how long it took, seconds.

        Raises `UserError` when it fails.
        """
        began = time.monotonic()
        process = child.start(self._line(command, *arguments), sys.stderr.buffer, self._environment)
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
