import json
import os
import signal
import subprocess
import time
import uuid
from pathlib import Path

import psutil
import pytest

from tests.e2e.process import COMMAND

pytestmark = pytest.mark.e2e


class Demo:
    """`stream-rec demo`, and all processes that it started, however they are related by now."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._mark = uuid.uuid4().hex
        self.said = folder / "stderr"
        self.process = subprocess.Popen(
            [*COMMAND, "demo", "--epochs", "1", *arguments],
            env=os.environ | {"DEMO_MARK": self._mark},
            stdout=subprocess.PIPE,
            stderr=self.said.open("wb"),
            text=True,
        )

    def alive(self) -> dict[str, psutil.Process]:
        """Its processes by their command: the last words of the command line."""
        found = {}
        for process in psutil.process_iter():
            try:
                if process.environ().get("DEMO_MARK") == self._mark and process.status() != psutil.STATUS_ZOMBIE:
                    line = process.cmdline()
                    found["kafka" if "kafka.Kafka" in line else line[line.index("stream_rec.cli") + 1]] = process
            except (psutil.Error, ValueError):
                continue
        return found

    def until(self, *names: str) -> None:
        while not set(names) <= self.alive().keys():
            assert self.process.poll() is None, self.said.read_text()
            time.sleep(0.1)


def test_the_demo_shows_that_nothing_is_lost_and_leaves_no_process(tmp_path: Path) -> None:
    demo = Demo(tmp_path, "--seconds", "6", "--rate", "50", "--json")
    output, _ = demo.process.communicate()
    assert demo.process.returncode == 0, demo.said.read_text()
    shown = json.loads(output.splitlines()[-1])
    assert shown["events"] == shown["recommendations"] > 100
    assert (shown["lost"], shown["dead_letters"], shown["repeated"]) == (0, 0, 0)
    assert shown["evaluated"] + shown["too_late"] + shown["first_events"] == shown["events"]
    assert 0 < shown["latency_ms"]["p50"] <= shown["latency_ms"]["p99"]
    assert shown["updates_per_s"] > 0
    assert shown["training_s"] > 0
    assert "look at it in a browser: http://127.0.0.1:" in demo.said.read_text()
    assert set(shown["floors"]) == {"popularity", "markov"}
    assert shown["hit_rate_at_10"] > shown["floors"]["popularity"]
    assert not demo.alive()


def small(folder: Path) -> tuple[str, ...]:
    """The options for a log that is trained on at once."""
    rows = [f"c{n % 40},sku-{(n % 40 + n // 40) % 25},{('look', 'buy')[n % 5 == 0]},{n * 30}" for n in range(2_000)]
    log = folder / "log.csv"
    log.write_text("who,what,did,when\n" + "\n".join(rows) + "\n")
    return "--events", str(log), "--columns", "user=who,item=what,event=did,time=when"


def test_a_log_of_ones_own_with_odd_names_is_trained_on_and_fed(tmp_path: Path) -> None:
    demo = Demo(tmp_path, *small(tmp_path), "--rate", "200", "--json")
    output, _ = demo.process.communicate()
    assert demo.process.returncode == 0, demo.said.read_text()
    shown = json.loads(output.splitlines()[-1])
    assert (shown["events"], shown["lost"], shown["dead_letters"]) == (400, 0, 0)
    assert set(shown["by_event_type"]) == {"look", "buy"}


@pytest.mark.parametrize(("stage", "number"), [("train", signal.SIGTERM), ("worker", signal.SIGINT)])
def test_being_told_to_stop_ends_everything(tmp_path: Path, stage: str, number: signal.Signals) -> None:
    demo = Demo(tmp_path, *small(tmp_path), "--rate", "1")
    demo.until("kafka", "agents", stage)
    demo.process.send_signal(number)
    demo.process.communicate(timeout=120)  # promised are 10 s; a busy machine may take longer
    assert demo.process.returncode == 0, demo.said.read_text()
    assert "Traceback" not in demo.said.read_text()
    assert not demo.alive()


def test_when_the_demo_is_killed_its_parts_die_with_it(tmp_path: Path) -> None:
    demo = Demo(tmp_path, *small(tmp_path))
    demo.until("kafka", "agents", "train")
    demo.process.kill()
    demo.process.wait()
    while demo.alive():
        time.sleep(0.1)
