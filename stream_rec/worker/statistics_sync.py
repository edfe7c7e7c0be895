"""Keeps the online statistics up to date with the windows topic: rebuilds them at the start, follows it while serving.

A step teaches the statistics the windows that it answers. The rest comes from here: what was answered before this
process began, and, unless each partition has statistics of its own, what other workers answer meanwhile, which is
read without a group. Learning a window a second time changes nothing, so the order of reading does not matter.

A snapshot in the cache folder shortens the next start, unless each partition has statistics of its own, which must be
a function of that partition's log alone. It is valid for the model and the topic that it was made from. It holds user
ids, as the windows topic does, so the first erasure removes it, and it expires before the topic may drop the
tombstone of an erasure that has not been read.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError
from msgspec import Struct

from stream_rec.config import Settings
from stream_rec.errors import UserError
from stream_rec.kafka.access_control import cluster_of, describe_topics, on
from stream_rec.kafka.connection import access
from stream_rec.kafka.consumer import make_consumer
from stream_rec.kafka.offset_ranges import OffsetRange, read
from stream_rec.messages import UNREADABLE, read_window
from stream_rec.metrics import WorkerMetrics
from stream_rec.runtime.retry import keep_running
from stream_rec.worker.batch import engine_user
from stream_rec.worker.prewarm import PrewarmQueue

if TYPE_CHECKING:
    from stream_rec.serving.engine import Engine


PART = "memory.part-"
"""How the names of files begin that are being written; a process's number follows."""
MARGIN_S = 60.0
"""How far the clocks of this machine and of Kafka's brokers may be apart, seconds."""

log = logging.getLogger(__name__)


READ = 2_000
"""Most windows that are learned in one go while nothing is served."""
BESIDE = 100
"""The same while windows are served: an event that comes meanwhile waits for no more than these."""
QUIET_MS = 200
KEEP_S = 2.0
"""How long the end of a worker waits for Kafka to say which cluster a snapshot is of, seconds."""


class SnapshotMeta(Struct, frozen=True):
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

    def save(self, body: bytes) -> bool:
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

    def delete(self) -> None:
        self._sweep()
        with contextlib.suppress(OSError):
            self._path.unlink()

    def _sweep(self) -> None:
        """What was never finished: whoever writes just now goes without a snapshot."""
        for part in self._path.parent.glob(f"{PART}*"):
            with contextlib.suppress(OSError):
                part.unlink()


async def is_valid(about: SnapshotMeta, settings: Settings, version: str) -> bool:
    """Whether a snapshot tells of the windows topic as it is, and of nothing that the group has yet to answer.

    A topic of the same name that was made anew has another id; where brokers give none, it holds what is younger than
    the snapshot below its offsets. Raises `KafkaError`, and `UserError` when no broker answers.
    """
    fresh = about.taken > time.time() - settings.retention_hours * 3_600 / 2
    if not fresh or (about.version, about.topic) != (version, settings.windows_topic):
        return False
    if about.cluster != await cluster_of(access(settings)):
        return False
    if about.topic_id != (await describe_topics(access(settings), *on("Read", about.topic)))[about.topic].id:
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


class StatisticsSync:
    """Teaches the memories of `engine`; `call` runs something on the engine's thread."""

    def __init__(
        self,
        settings: Settings,
        metrics: WorkerMetrics,
        engine: "Engine",
        recent: PrewarmQueue,
        call: Callable[..., Awaitable[Any]],
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._engine = engine
        self._recent = recent
        self._call = call
        self._own: frozenset[TopicPartition] = frozenset()
        """Partitions that are served here: their windows may be encoded ahead."""
        self._others: frozenset[TopicPartition] = frozenset()
        self._following: asyncio.Task[None] | None = None
        self.learned: dict[TopicPartition, int] = {}
        """Next offset of each partition that the memory hasn't learned."""
        self._file = SnapshotFile(settings)
        self._unsaved = False
        self._unread = False

    @property
    def troubles(self) -> set[str]:
        """What is wrong, in words."""
        unsaved = {"the memory can't be saved"} if self._unsaved else set()
        return unsaved | ({"other workers' windows are not learned"} if self._unread else set())

    def logs(self, partitions: Sequence[int]) -> Sequence[int]:
        """Which memory learns from each of `partitions`, see `serving.statistics`."""
        return [0] * len(partitions) if self._settings.memory == "all" else partitions

    async def load_snapshot(self) -> None:
        """Goes on from the snapshot of a former process, if there is one and it still holds; else removes it.

        Before `prepare_partitions`.
        """
        if self._settings.memory == "own":
            self._file.delete()
        if (body := await asyncio.to_thread(self._file.read)) is None:
            return
        memories = self._engine.memories
        try:
            about = msgspec.json.decode(await asyncio.to_thread(memories.about, body), type=SnapshotMeta)
            if not await is_valid(about, self._settings, self._engine.version):
                raise ValueError("it is too old, or of another model, topic or group")
            await self._call(memories.unpack, 0, body)
        except (KafkaError, UserError) as error:
            log.warning("the snapshot of the memory is not used: %s", error)
            return
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, the topic says the same
            log.info("the snapshot of the memory is not used: %s", error)
            self._file.delete()
            return
        self.learned = {TopicPartition(about.topic, number): offset for number, offset in about.offsets.items()}
        log.info("memory of model %s goes on from a snapshot", about.version)

    async def save_snapshot(self) -> None:
        """Leaves a snapshot for the next start."""
        if self._settings.memory == "own" or not self.learned:
            return
        kafka, name = access(self._settings), self._settings.windows_topic
        try:
            cluster = await cluster_of(kafka, KEEP_S)
            topic = (await describe_topics(kafka, *on("Read", name), timeout_s=KEEP_S))[name]
            kept = await self._call(self._write, cluster, topic.id)
        except Exception as error:  # noqa: BLE001 - a start without one takes longer, and that is all
            log.warning("no snapshot of the memory: %s", error)
            kept = False
        if not kept:
            self._metrics.failures.labels("snapshot").inc()
        self._unsaved = not kept

    def _write(self, cluster: str, topic_id: str) -> bool:
        """On the engine's thread, as `forget` is: an erasure comes before the file or removes it."""
        offsets = {partition.partition: offset for partition, offset in self.learned.items()}
        about = SnapshotMeta(
            self._engine.version, cluster, self._settings.windows_topic, time.time(), offsets, topic_id
        )
        return self._file.save(self._engine.memories.pack(0, msgspec.json.encode(about)))

    def forget(self, user_id: str) -> None:
        """On the engine's thread: erases what is held of a user, and the file that may name them."""
        self._engine.forget(user_id)
        self._recent.forget(user_id)
        self._file.delete()

    async def prepare_partitions(self, partitions: Collection[TopicPartition]) -> None:
        """The worker is about to take `partitions` over.

        A memory of a partition's own begins anew: it may have learned what was never committed, and would know then
        what comes after the windows that it is asked about.
        """
        self._own = frozenset(partitions)
        self._others -= self._own
        if self._settings.memory == "own":
            for partition in {*self.learned, *partitions}:
                # first, since the thread may still be teaching from a reading that was given up
                await self._call(self._engine.memories.drop, partition.partition)
                self.learned.pop(partition, None)
        for number in set(self.logs([partition.partition for partition in partitions])):
            await self._call(self._engine.memories.extractor, number)  # now, rather than in the first step

    async def replay_until(self, spans: Mapping[TopicPartition, OffsetRange]) -> int:
        """Learns what isn't learned yet of `spans`; returns how many windows those were.

        Raises `KafkaError`; what was learned until then is not read again.
        """
        for partition, span in spans.items():
            self.learned[partition] = max(span.begin, self.learned.get(partition, span.begin))
        left = {one: OffsetRange(self.learned[one], end) for one, (_, end) in spans.items() if self.learned[one] < end}
        if not left:
            return 0
        began, count = time.monotonic(), 0
        reader = self._reader()
        await reader.start()
        try:
            async for partition, records, position in read(reader, left, READ):
                count += await self._learn(records)
                self.learned[partition] = max(self.learned[partition], position)
        finally:
            await reader.stop()
        log.info("memory of model %s: %d windows in %.1f s", self._engine.version, count, time.monotonic() - began)
        return count

    def tail_other_partitions(self, others: Collection[TopicPartition]) -> None:
        """From now on learns from `others` too, which other workers serve, as their windows come."""
        self._own -= frozenset(others)
        self._others = frozenset(others) if self._settings.memory == "all" else frozenset()
        if self._others and self._following is None:
            self._following = asyncio.create_task(
                keep_running(self._follow, self._failed_to_follow), name="other partitions"
            )

    async def reset(self) -> None:
        """Stops following other partitions, and forgets every user and what was learned since the training."""
        await self.close()
        self._own = self._others = frozenset()
        self.learned.clear()
        self._recent.clear()
        await self._call(self._engine.reset)

    async def close(self) -> None:
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
            self._following = None
            self._unread = False

    async def _follow(self) -> None:
        reader = self._reader()
        try:
            await reader.start()
            await self._read_others(reader)
        finally:
            await reader.stop()

    def _failed_to_follow(self, error: Exception) -> None:
        self._unread = True
        if not isinstance(error, KafkaError):
            self._metrics.failures.labels("statistics").inc()
        log.warning("%s: learning from other partitions goes on in a moment", type(error).__name__)

    async def _read_others(self, reader: AIOKafkaConsumer) -> None:
        reading: frozenset[TopicPartition] = frozenset()
        while True:
            if reading != self._others:
                reading = self._others
                begins = await reader.beginning_offsets(list(reading))
                for partition, begin in begins.items():
                    self.learned.setdefault(partition, begin)
                reader.assign(list(begins))
                for partition, begin in begins.items():
                    reader.seek(partition, max(begin, self.learned[partition]))
            if not reading:
                await asyncio.sleep(QUIET_MS / 1_000)
                self._unread = False
                continue
            for partition, records in (await reader.getmany(timeout_ms=QUIET_MS, max_records=BESIDE)).items():
                if partition in self._others:
                    await self._learn(records)
            self._unread = False

    def _reader(self) -> AIOKafkaConsumer:
        return make_consumer(
            access(self._settings),
            max_batch_bytes=self._settings.max_batch_bytes,
            max_partition_fetch_bytes=self._settings.max_message_bytes,
            auto_offset_reset="earliest",
        )

    async def _learn(self, records: Sequence[ConsumerRecord]) -> int:
        """Returns how many of them were new."""
        count: int = await self._call(self._teach, records)
        self._metrics.learned.inc(count)
        return count

    def _teach(self, records: Sequence[ConsumerRecord]) -> int:
        """On the engine's thread. What is no window, or can't be learned, teaches nothing; who was erased is erased
        here too.

        Two readers may have the same records while a partition moves. An erasure that was read again would have what
        its user did since learned twice: so each record is taken once.
        """
        count = 0
        for record, number in zip(records, self.logs([record.partition for record in records]), strict=True):
            partition = TopicPartition(record.topic, record.partition)
            if record.offset < self.learned[partition]:
                continue
            self.learned[partition] = record.offset + 1
            count += 1
            if record.value is None:
                self.forget(engine_user((record.key or b"").decode(errors="replace"), record.partition))
                continue
            try:
                window = read_window(record.value)
                window = msgspec.structs.replace(window, user_id=engine_user(window.user_id, record.partition))
                self._engine.learn(window, number)
                if partition in self._own:
                    self._recent.add(window)
            except UNREADABLE:
                continue
            except Exception as error:  # noqa: BLE001 - statistics lack one window, and the stream goes on
                self._metrics.failures.labels("statistics").inc()
                place = f"{record.topic}/{record.partition}/{record.offset}"
                log.warning("%s: the window at %s teaches nothing", type(error).__name__, place)
        return count
