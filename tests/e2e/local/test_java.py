import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from stream_rec.errors import UserError
from stream_rec.local.java import java_command

pytestmark = pytest.mark.e2e

SMALL = "org.slf4j:slf4j-api:1.7.36"
ASK = f"""
from stream_rec.local.java import java_command
command = java_command("Main", artifact={SMALL!r}, notify=print)
print(command[command.index("-cp") + 1])
"""
DIE = """
import os, pathlib, signal
pathlib.Path.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # all is fetched, nothing is in its place
"""
JARS = ["slf4j-api-1.7.36.jar", "slf4j-simple-1.7.36.jar"]


@pytest.fixture
def run(tmp_path: Path) -> Callable[[str], subprocess.Popen[str]]:
    """Starts a Python process on a machine that has no jars yet."""
    where = os.environ | {"JGO_CACHE_DIR": str(tmp_path)}
    return lambda code: subprocess.Popen([sys.executable, "-c", code], env=where, stdout=subprocess.PIPE, text=True)


def jars(asking: subprocess.Popen[str]) -> list[Path]:
    """The class path that a process was given."""
    printed = asking.communicate()[0]
    assert asking.returncode == 0
    return [Path(jar) for jar in printed.splitlines()[-1].split(":")]


def test_processes_that_start_at_once_get_all_jars(run: Callable[[str], subprocess.Popen[str]]) -> None:
    given = [jars(asking) for asking in [run(ASK) for _ in range(4)]]
    assert [jar.name for jar in given[0]] == JARS
    assert all(jar.stat().st_size > 1_000 for jar in given[0])
    assert given == given[:1] * 4


def test_what_a_killed_process_left_is_not_used(run: Callable[[str], subprocess.Popen[str]], tmp_path: Path) -> None:
    assert run(DIE + ASK).wait() == -9
    part = tmp_path / "stream-rec/part"
    left = list(part.rglob("*.jar"))
    for jar in left:
        jar.write_bytes(b"cut short")
    assert left
    whole = jars(run(ASK))
    assert [jar.name for jar in whole] == JARS
    assert all(jar.stat().st_size > 1_000 for jar in whole)
    assert not part.exists()


def test_the_jars_are_fetched_once(run: Callable[[str], subprocess.Popen[str]]) -> None:
    assert "fetching" in run(ASK).communicate()[0]
    assert "fetching" not in run(ASK).communicate()[0]


def test_a_fetched_jar_with_another_checksum_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JGO_CACHE_DIR", str(tmp_path))
    for checksums in ({}, dict.fromkeys(JARS, "0" * 64)):
        with pytest.raises(UserError, match="is not run"):
            java_command("Main", artifact=SMALL, checksums=checksums)
        assert [path.name for path in (tmp_path / "stream-rec").glob("*slf4j*")] == []


def test_without_a_network_it_says_so_in_one_line(tmp_path: Path) -> None:
    nowhere = dict.fromkeys(("https_proxy", "HTTPS_PROXY"), "http://127.0.0.1:9")
    asked = subprocess.run(
        [sys.executable, "-m", "stream_rec.cli", "broker"],
        env=os.environ | nowhere | {"JGO_CACHE_DIR": str(tmp_path), "no_proxy": "", "NO_PROXY": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.returncode == 2
    assert asked.stderr.splitlines()[-1].startswith("stream-rec: cannot fetch Apache Kafka 4.3.1: check the network")
