"""Processes that end when their owner ends, however it ends."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import IO

_BIND_THEN_RUN = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)   # PR_SET_PDEATHSIG: stays in force across exec
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the owner is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


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
