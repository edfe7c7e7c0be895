"""A part of the pipeline as a process of its own, started as a person would start it."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from stream_rec.config import Settings, environment_name

COMMAND = (sys.executable, "-m", "stream_rec.cli")


def environment_of(settings: Settings) -> dict[str, str]:
    """The settings that differ from the defaults, as environment variables."""
    changed = settings.model_dump(exclude_defaults=True)
    texts = {name: ",".join(value) if isinstance(value, tuple) else str(value) for name, value in changed.items()}
    return {environment_name(name): text for name, text in texts.items()}


class Part:
    def __init__(self, command: str, settings: Settings, log: Path) -> None:
        self._log = log
        with log.open("wb") as sink:
            self._process = subprocess.Popen(
                [*COMMAND, command], env=os.environ | environment_of(settings), stdout=sink, stderr=subprocess.STDOUT
            )

    @property
    def said(self) -> str:
        return self._log.read_text()

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The first match in what the process says; pytest's own time limit ends a wait that is in vain."""
        while not (match := re.search(pattern, self.said)):
            assert self._process.poll() is None, f"ended with {self._process.returncode}: {self.said}"
            time.sleep(0.05)
        return match

    def metrics(self) -> dict[str, float]:
        """The samples of /metrics, by name and labels as they are written there."""
        url = self.wait_for(r"metrics on (http\S+)")[1]
        with urllib.request.urlopen(url) as page:  # noqa: S310 - our own
            lines = page.read().decode().splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        return self._process.wait()

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        self._process.terminate()
        return self._process.wait()

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()
