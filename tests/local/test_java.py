"""Only jars with a pinned checksum are run."""

from pathlib import Path

import pytest

from stream_rec.cli.main import main
from stream_rec.local.java import LOGGING, SERVER, pinned

JAR = "kafka_2.13-4.3.1.jar"


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder from which the broker takes its jars."""
    monkeypatch.setenv("JGO_CACHE_DIR", str(tmp_path))
    folder = tmp_path / "stream-rec" / f"{SERVER}+{LOGGING}".replace(":", "-")
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    ("name", "reason"),
    [(JAR, f"instead of {pinned()[JAR]}"), ("other.jar", "stream_rec knows no checksum of it")],
    ids=["changed", "unknown"],
)
def test_a_jar_without_its_pinned_checksum_ends_the_broker_with_one_line(
    kept: Path, name: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (kept / name).write_bytes(b"other code")
    with pytest.raises(SystemExit) as end:
        main(["broker", "--port", "0"])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"stream-rec: {kept / name} is not run: ")
    assert reason in line
