import asyncio
import contextlib
import signal
import socket
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from aiokafka import AIOKafkaConsumer

from stream_rec.client import LatestRecommendations, Recommendations
from stream_rec.config import Settings
from stream_rec.evaluation.baselines import Baselines
from stream_rec.kafka import topics
from stream_rec.local.broker import Broker
from stream_rec.messages import Event
from stream_rec.models import model_store
from stream_rec.replay.evaluation_consumer import following
from stream_rec.replay.producer import feed, steady
from stream_rec.runtime.retry import start_with_retry
from tests.e2e.kafka import settings_for, until
from tests.e2e.process import Part
from tests.tiny import CAPACITY, STRIDE, tiny_model

pytestmark = pytest.mark.e2e


async def serve(settings: Settings, seen: Counter[tuple[str, int]]) -> None:
    """A service that reads the answers in a group of its own."""
    server, topic = settings.bootstrap_servers, settings.recommendations_topic
    async with Recommendations(bootstrap_servers=server, topic=topic, group="service") as answers:
        async for answer in answers:
            seen[answer.user_id, answer.seq] += 1


async def test_a_consumer_waits_for_a_broker_that_went_away_since_it_was_asked(bootstrap: str) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        servers = iter([f"127.0.0.1:{nobody.getsockname()[1]}", bootstrap])
        consumer = await start_with_retry(lambda: AIOKafkaConsumer(bootstrap_servers=next(servers)))
    assert isinstance(await consumer.topics(), set)
    await consumer.stop()


async def leave(view: LatestRecommendations) -> None:
    """Ends a view while Kafka is away, on asyncio's own loop: it neither raises a cancellation nor hangs."""
    async with asyncio.timeout(240):
        await view.__aexit__(None, None, None)


def kill(broker: Broker, _disk: Path) -> Callable[[], None]:
    psutil.Process(broker.pid).send_signal(signal.SIGKILL)
    return lambda: None


def fill(_broker: Broker, disk: Path) -> Callable[[], None]:
    """Leaves no byte on the disk: the next write ends the broker, as it does where no other disk is left."""
    ballast = disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(1 << 16)):
            pass
    return ballast.unlink


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small one."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=192m", "tmpfs", place], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small disk can't be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


@pytest.mark.parametrize("trouble", [kill, fill])
async def test_a_broker_that_is_gone_and_comes_back_costs_time_and_nothing_else(
    tmp_path: Path, disk: Path, start: Callable[[str, Settings], Part], trouble: Callable[..., Callable[[], None]]
) -> None:
    model_store.save(tiny_model(), tmp_path / "model")
    log = [Event(f"u{n % 30}", "view", 1_000.0 + n, f"i{n * 7 % 40}") for n in range(1_200)]
    with Broker(disk / "kafka") as first, ExitStack() as again:
        limits = {"capacity": CAPACITY, "stride": STRIDE, "model": tmp_path / "model"}
        settings = settings_for(tmp_path, bootstrap_servers=first.bootstrap, coalesce=False, **limits)
        await topics.create(settings)
        agents, worker = start("agents", settings), start("worker", settings)
        agents.wait_for("agents ready")
        worker.wait_for("worker ready")
        seen: Counter[tuple[str, int]] = Counter()
        service = asyncio.create_task(serve(settings, seen))
        view = LatestRecommendations(bootstrap_servers=first.bootstrap, topic=settings.recommendations_topic)
        passing = LatestRecommendations(bootstrap_servers=first.bootstrap, topic=settings.recommendations_topic)
        await passing.__aenter__()
        async with following(settings, Baselines()) as follower, view:
            feeding = asyncio.create_task(feed(log, settings, pace=steady(150)))

            async def under_way() -> bool:
                return min(follower.prequential.recommendations, len(seen)) > 250  # the service has committed by then

            async def all_seen() -> bool:
                return len(seen) == len(log)

            async def unready() -> bool:
                said = worker.page("/readyz")[1] + agents.page("/readyz")[1]
                return said.count("Kafka does not answer") == 2

            await until(under_way)
            assert agents.page("/readyz")[0] == worker.page("/readyz")[0] == 200
            mend = trouble(first, disk)
            await asyncio.to_thread(first.wait)
            await until(unready)
            assert agents.page("/healthz")[0] == worker.page("/healthz")[0] == 200
            await leave(passing)
            mend()
            first.stop()  # it holds the lock on its folder
            again.enter_context(Broker(disk / "kafka", first.port))
            await feeding
            await follower.drain()
            summary = follower.summary()
            await until(all_seen)
            await view.caught_up()
            newest = {user: view.get(user).seq for user in {event.user_id for event in log}}
            service.cancel()
            await asyncio.wait({service})
            assert (agents.stop(), worker.stop()) == (0, 0)
    assert (summary["events"], summary["recommendations"]) == (len(log), len(log))
    assert (summary["lost"], summary["repeated"], summary["dead_letters"]) == (0, 0, 0)
    assert newest == Counter(event.user_id for event in log)
    assert all(seen[user, 1] == 1 for user in newest)  # its group did not begin anew
    assert "Traceback" not in agents.said + worker.said


async def test_who_starts_before_the_broker_waits_for_it(
    tmp_path: Path, start: Callable[[str, Settings], Part]
) -> None:
    model_store.save(tiny_model(), tmp_path / "model")
    with Broker(tmp_path / "kafka") as first:
        limits = {"capacity": CAPACITY, "stride": STRIDE, "model": tmp_path / "model"}
        settings = settings_for(tmp_path, bootstrap_servers=first.bootstrap, **limits)
        await topics.create(settings)
    agents, worker, leaving = (start(command, settings) for command in ("agents", "worker", "worker"))
    for part in (agents, worker, leaving):
        part.wait_for("no Kafka broker answers .*; trying again in")
    assert leaving.stop() == 0
    with Broker(tmp_path / "kafka", first.port):
        agents.wait_for("agents ready")
        worker.wait_for("worker ready")
        assert (agents.stop(), worker.stop()) == (0, 0)
    assert "Traceback" not in agents.said + worker.said + leaving.said
