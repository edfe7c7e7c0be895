import json
import os
import signal
import subprocess
import uuid
from pathlib import Path

import psutil
import pytest

from stream_rec.bench.pipeline import WAITING
from tests.e2e.process import COMMAND

pytestmark = pytest.mark.e2e

COUNT = 3_000
"""Events of a run: each process spends more of the processor's time on them than the clock's tick of 10 ms."""
SMALL = (
    *("--users", "100", "--width", "32", "--items", "700", "--capacity", "16"),
    *("--count", str(COUNT), "--runs", "1"),
)


class Bench:
    """`stream-rec bench pipeline`, with a folder for temporary files of its own."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._mark = uuid.uuid4().hex
        self.folder = folder / "temporary"
        self.folder.mkdir()
        self.said = folder / "stderr"
        self.process = subprocess.Popen(
            [*COMMAND, "bench", "pipeline", *SMALL, *arguments],
            env=os.environ | {"BENCH_MARK": self._mark, "TMPDIR": str(self.folder)},
            stdout=subprocess.PIPE,
            stderr=self.said.open("wb"),
            text=True,
        )

    def alive(self) -> list[str]:
        """The command lines of its processes."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("BENCH_MARK") == self._mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(" ".join(process.cmdline()))
            except psutil.Error:
                continue
        return found


def test_every_event_is_answered_once_and_the_figures_add_up(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "--agents", "2", "--json")
    output, _ = bench.process.communicate()
    assert bench.process.returncode == 0, bench.said.read_text()
    shown = json.loads(output.splitlines()[-1])
    assert shown["events"] == shown["answered"] > 3 * COUNT + WAITING
    assert shown["repeated"] == 0
    assert (shown["width"], shown["items"], shown["capacity"], shown["agents"]) == (32, 700, 16, 2)
    assert 0 < shown["half_load_updates_per_s"] < shown["updates_per_s"]
    for latency in (shown["latency_ms"], shown["full_load_latency_ms"]):
        assert 0 < latency["p50"] <= latency["p99"]
    for cpu in (shown["cpu_s_per_1000_events"], shown["half_load_cpu_s_per_1000_events"]):
        assert set(cpu) == {"broker", "agents", "worker", "load"}
        assert all(seconds > 0 for seconds in cpu.values())
    assert not bench.alive()
    assert not list(bench.folder.glob("stream-rec-*"))


def test_ctrl_c_ends_everything(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    while not any("cli worker" in line for line in bench.alive()):
        assert bench.process.poll() is None, bench.said.read_text()
    bench.process.send_signal(signal.SIGINT)
    bench.process.communicate(timeout=120)
    assert bench.process.returncode == 130
    assert "Traceback" not in bench.said.read_text()
    assert not bench.alive()
    assert not list(bench.folder.glob("stream-rec-*"))


def test_an_overload_leaves_every_users_newest_window_answered(tmp_path: Path) -> None:
    options = ("--users", "100", "--width", "32", "--items", "700", "--capacity", "16", "--partitions", "2")
    done = subprocess.run(
        [*COMMAND, "bench", "overload", *options, "--rate", "3000", "--seconds", "2", "--json"],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout.splitlines()[-1])
    assert shown["events"] > 3_000
    assert shown["peak_behind"]["agents"] > 0
    assert (shown["wrong_windows"], shown["unanswered_users"]) == (0, 0)
    assert shown["memory_mib"].keys() == {"broker", "agents", "worker", "load"}
    assert not list(tmp_path.glob("stream-rec-*"))
