"""One case after the other in a child process, which may crash, hang or take all the memory it finds."""

import contextlib
import multiprocessing
import random
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable
from enum import StrEnum
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from stream_rec.errors import UserError


class Limits(NamedTuple):
    """Of a case."""

    cpu_s: float = 30.0
    """Processor time after which it counts as stalled."""
    wall_s: float = 300.0
    """Time after which it counts as stalled though it uses no processor, seconds."""
    memory: int = 3 << 30
    """Bytes; beyond, the process is ended, which counts as a crash."""


class Case(NamedTuple):
    """What is tried is a function of these."""

    kind: str
    seed: int
    number: int

    def __str__(self) -> str:
        return f"{self.kind}-{self.seed}-{self.number}"


class Outcome(StrEnum):
    USED = "used"
    REFUSED = "refused"
    CRASH = "crashes"
    STALL = "stalls"
    TRACEBACK = "tracebacks"
    POISONED = "poisoned"


BAD = (Outcome.CRASH, Outcome.STALL, Outcome.TRACEBACK, Outcome.POISONED)


class Result(NamedTuple):
    case: Case
    outcome: Outcome
    detail: str = ""


class RefusedError(Exception):
    """The case was refused as it should be."""


class PoisonedError(Exception):
    """The case changed an answer that it has nothing to do with."""


Attempt = Callable[[random.Random, Path], None]
"""Tries a case that is drawn, and writes it into the folder before."""


class Lane:
    """Runs cases of one kind. `prepare` is called in the child; it gives what tries a case.

    Bad cases are copied to the folder `keep`. With `apart` each case has a child of its own, so that memory that one
    has corrupted harms no other.
    """

    def __init__(
        self,
        kind: str,
        prepare: Callable[[], Attempt],
        keep: Path,
        *,
        apart: bool = False,
        start_method: str = "forkserver",
        limits: Limits = Limits(),  # noqa: B008 - frozen
    ) -> None:
        self._kind = kind
        self._prepare = prepare
        self._keep = keep
        self._apart = apart
        self._context: Any = multiprocessing.get_context(start_method)
        self._limits = limits
        self._scratch = Path(tempfile.mkdtemp(prefix="stream-rec-fuzz-"))
        self._process: BaseProcess | None = None

    def run(self, seed: int, number: int) -> Result:
        case = Case(self._kind, seed, number)
        if self._process is None:
            self._start()
        shutil.rmtree(self._scratch)
        self._scratch.mkdir()
        self._pipe.send(case)
        result = self._wait(case)
        if result.outcome in BAD:
            shutil.copytree(self._scratch, self._keep / str(case), dirs_exist_ok=True)
            (self._keep / str(case) / "outcome.txt").write_text(f"{result.outcome}\n{result.detail}\n")
        if self._apart or result.outcome in BAD:
            self._end()
        return result

    def close(self) -> None:
        self._end()
        shutil.rmtree(self._scratch)

    def _start(self) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        self._process = self._context.Process(target=_serve, args=(self._prepare, theirs, self._scratch), daemon=True)
        self._process.start()
        theirs.close()
        self._pipe.recv()  # it is ready

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
        self._process = None

    def _wait(self, case: Case) -> Result:
        assert self._process is not None
        child = psutil.Process(self._process.pid)
        began, used = time.monotonic(), _cpu(child)
        try:
            while not self._pipe.poll(0.2):
                if child.memory_info().rss > self._limits.memory:
                    return Result(case, Outcome.CRASH, f"more than {self._limits.memory} bytes of memory")
                if _cpu(child) - used > self._limits.cpu_s or time.monotonic() - began > self._limits.wall_s:
                    return Result(case, Outcome.STALL)
            return Result(case, *self._pipe.recv())
        except (EOFError, ConnectionError, psutil.NoSuchProcess):
            self._process.join()
            return Result(case, Outcome.CRASH, f"exit code {self._process.exitcode}")


def _cpu(child: psutil.Process) -> float:
    times = child.cpu_times()
    return float(times.user + times.system)


def _serve(prepare: Callable[[], Attempt], pipe: Connection, scratch: Path) -> None:
    attempt = prepare()
    pipe.send("ready")
    with contextlib.suppress(EOFError):
        while True:
            pipe.send(outcome_of(attempt, pipe.recv(), scratch))


def outcome_of(attempt: Attempt, case: Case, scratch: Path) -> tuple[Outcome, str]:
    try:
        attempt(random.Random(str(case)), scratch)
    except RefusedError as error:
        return Outcome.REFUSED, str(error)
    except UserError as error:
        if "\n" in str(error):
            return Outcome.TRACEBACK, f"more than one line: {error}"
        return Outcome.REFUSED, str(error)
    except PoisonedError as error:
        return Outcome.POISONED, str(error)
    except BaseException:  # noqa: BLE001 - polars panics with an exception that is none
        return Outcome.TRACEBACK, traceback.format_exc()
    return Outcome.USED, ""
