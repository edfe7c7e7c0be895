"""What the online memory has learned, in a file of the cache folder: the next start goes on from there.

It holds user ids, as the windows topic does, so it goes with the first erasure that comes, and grows old before the
topic may drop the tombstone of one that has not been read. It counts for the model and the topic that it was made from.
"""

import contextlib
import logging
import os
import time

from aiokafka import TopicPartition
from msgspec import Struct

from stream_rec.config import Settings
from stream_rec.kafka.access_control import on
from stream_rec.kafka.connection import access
from stream_rec.kafka.consumer import make_consumer
from stream_rec.kafka.granted import cluster_of, describe

PART = "memory.part-"
"""How the names of files begin that are being written; a process's number follows."""
MARGIN_S = 60.0
"""How far the clocks of this machine and of Kafka's brokers may be apart, seconds."""

log = logging.getLogger(__name__)


class About(Struct, frozen=True):
    version: str
    """The model's."""
    cluster: str
    topic: str
    taken: float
    """Seconds since 1970."""
    offsets: dict[int, int]
    """The next one to learn in each partition."""
    topic_id: str = ""
    """Kafka's id of the topic; empty where the brokers give topics none."""


class SnapshotFile:
    """One for each folder: who comes last is right, and anything wrong costs a start as long as the first."""

    def __init__(self, settings: Settings) -> None:
        self._path = settings.cache_dir / "memory.safetensors"

    def read(self) -> bytes | None:
        """None where there is none."""
        with contextlib.suppress(OSError):
            return self._path.read_bytes()
        return None

    def write(self, body: bytes) -> bool:
        """For this user's eyes only; whole or not at all. Returns whether it was written."""
        part = self._path.with_name(f"{PART}{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._sweep()
            with open(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
                file.write(body)
            part.replace(self._path)
        except OSError as error:
            log.warning("no snapshot of the memory in %s: %s", self._path.parent, error.strerror)
            return False
        return True

    def drop(self) -> None:
        self._sweep()
        with contextlib.suppress(OSError):
            self._path.unlink()

    def _sweep(self) -> None:
        """What was never finished: whoever writes just now goes without a snapshot."""
        for part in self._path.parent.glob(f"{PART}*"):
            with contextlib.suppress(OSError):
                part.unlink()


async def holds(about: About, settings: Settings, version: str) -> bool:
    """Whether a snapshot tells of the windows topic as it is, and of nothing that the group has yet to answer.

    A topic of the same name that was made anew has another id; where brokers give none, it holds what is younger than
    the snapshot below its offsets. Raises `KafkaError`, and `UserError` when no broker answers.
    """
    fresh = about.taken > time.time() - settings.retention_hours * 3_600 / 2
    if not fresh or (about.version, about.topic) != (version, settings.windows_topic):
        return False
    if about.cluster != await cluster_of(access(settings)):
        return False
    if about.topic_id != (await describe(access(settings), *on("Read", about.topic)))[about.topic].id:
        return False
    learned = {TopicPartition(about.topic, number): offset for number, offset in about.offsets.items()}
    after = int((about.taken + MARGIN_S) * 1_000)
    async with make_consumer(
        access(settings),
        group_id=settings.worker_group,  # asked for its commits; never joined
    ) as reader:
        ends = await reader.end_offsets(list(learned))
        answered = {one: await reader.committed(one) or 0 for one in learned}
        younger = await reader.offsets_for_times(dict.fromkeys(learned, after))
    return all(
        offset <= min(ends[one], answered[one]) and ((place := younger[one]) is None or place.offset >= offset)
        for one, offset in learned.items()
    )
