"""`stream-rec` without its imports, which take seconds: a server has them done, and forks for each call.

The fork takes over the caller's arguments, folder, environment, files and process group, so that it does and ends as
the caller would; the caller, which imports nothing, waits for its exit code.
"""

import ctypes
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import AF_UNIX, recv_fds, send_fds, socket

ROOT = Path(__file__).parents[2]
LARGEST = 1 << 20
"""Bytes of a call."""


@contextmanager
def forks(path: Path) -> Iterator[str]:
    """The command that stands for `stream-rec`, as a shell reads it; its calls go through a socket at `path`."""
    with socket(AF_UNIX) as door:
        door.bind(str(path))
        door.listen()
        command = (sys.executable, "-m", "tests.docs.forks", "serve", str(door.fileno()))
        server = subprocess.Popen(command, cwd=ROOT, pass_fds=[door.fileno()])
    try:
        yield shlex.join([sys.executable, "-ES", __file__, "call", str(path)])
    finally:
        server.kill()  # and with it what still runs
        server.wait()


def serve(door: socket) -> None:
    _end_with_parent()
    from stream_rec.runtime.process import limit_openmp_spinning

    limit_openmp_spinning()  # before torch is imported
    import stream_rec.console.server
    import stream_rec.pipeline.agents
    import stream_rec.serving.engine
    import stream_rec.worker.main  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    while True:
        caller, _ = door.accept()
        if os.fork() == 0:
            break
        caller.close()
    door.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _become(caller)


def _end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _become(caller: socket) -> None:
    _end_with_parent()
    from stream_rec.cli.main import main

    message, files, *_ = recv_fds(caller, LARGEST, 3)
    call = json.loads(message)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    # Python's own were made for the fork server's files, which it may have been able to seek in
    sys.stdin, sys.stdout, sys.stderr = (open(number, mode) for number, mode in enumerate("rww"))  # noqa: SIM115
    os.setpgid(0, call["group"])
    os.chdir(call["folder"])
    os.environ.clear()
    os.environ.update(call["environment"])
    sys.argv = ["stream-rec", *call["arguments"]]
    try:
        main()
    except SystemExit as end:
        caller.sendall(b"%d" % (end.code or 0))
        raise


def call(path: str, arguments: list[str]) -> int:
    """Has a fork run `stream-rec ARGUMENTS`; returns its exit code, 1 where it told none."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the fork, of the same group, gets it too
    told = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ), "group": os.getpgid(0)}
    with socket(AF_UNIX) as one:
        one.connect(path)
        send_fds(one, [json.dumps(told).encode()], [0, 1, 2])
        code = b""
        while part := one.recv(16):
            code += part
    return int(code or b"1")


if __name__ == "__main__":
    verb, where, *rest = sys.argv[1:]
    if verb == "serve":
        serve(socket(fileno=int(where)))
    else:
        sys.exit(call(where, rest))
