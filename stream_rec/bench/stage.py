"""A pipeline on this machine to measure: broker, agents and a worker as processes of their own, warm from the start.

Each user's window stands in the windows topic as the agents would have written it, and the model's memory has learnt
what lies before.
"""

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from stream_rec import config, window
from stream_rec.bench.random_model import random_model
from stream_rec.bench.traffic import Traffic
from stream_rec.config import Settings
from stream_rec.features.online_statistics import REACH, HalfLives, OnlineStatistics
from stream_rec.kafka import topics
from stream_rec.kafka.publish import Publisher
from stream_rec.local.broker import Broker
from stream_rec.local.subprocesses import Processes
from stream_rec.messages import Window, encode
from stream_rec.models import model_store
from stream_rec.models.user_encoder import EncoderConfig
from stream_rec.ranking.blend import Blend

if TYPE_CHECKING:
    from psutil import Process

BLEND = Blend(
    decoder=0.5,
    transitions=0.3,
    reverse=-0.1,
    together=0.8,
    text=0.1,
    words=0.3,
    popularity=0.1,
    recency=0.2,
    session=0.5,
    again=0.3,
    category=0.5,
    price=0.3,
    repeat=-2.0,
)
"""All parts, as a trained model has them."""
HORIZONS = HalfLives(lasting=14 * 86_400.0, recent=86_400.0)
HEAD = 32
"""Width of an attention head, as `stream-rec train` has it."""
BROKER_END_S = 3.0


class Shape(NamedTuple):
    """Of what runs."""

    width: int
    layers: int
    agents: int
    """Agent processes."""


class Past(NamedTuple):
    """What the events before the first one fed have left behind."""

    windows: dict[str, Window]
    memory: OnlineStatistics


class Stage(NamedTuple):
    settings: Settings
    """With the stage's own broker and folders."""
    past: Past
    agents: tuple[str, ...]
    """Names of the agent processes."""
    running: Processes
    broker: int | None
    """Process id."""

    async def begin(self) -> None:
        """Starts the processes, and returns when they are ready. Raises `UserError`."""
        await topics.create(self.settings)
        async with Publisher(self.settings, self.settings.windows_topic) as publisher:
            for user, held in self.past.windows.items():
                await publisher.send(user, encode(held))
        for name in (*self.agents, "worker"):
            self.running.start(name)
        await asyncio.gather(*map(self.running.ready, (*self.agents, "worker")))

    def processes(self) -> "dict[str, list[Process]]":
        """What runs, by kind; this process is the load."""
        from psutil import Process  # of the extra `local`, like the broker, which misses it in words

        return {
            "broker": [Process(self.broker)],
            "agents": [Process(self.running.pid(name)) for name in self.agents],
            "worker": [Process(self.running.pid("worker"))],
            "load": [Process()],
        }


@contextmanager
def staged(settings: Settings, traffic: Traffic, shape: Shape, *, coalesce: bool) -> Iterator[Stage]:
    """A stage with a broker that runs; all processes and folders are gone when it ends. Raises `UserError`."""
    with ExitStack() as stack:
        home = Path(tempfile.mkdtemp(prefix="stream-rec-bench-"))
        stack.callback(shutil.rmtree, home, ignore_errors=True)
        broker = Broker().start()
        stack.callback(broker.stop, BROKER_END_S)
        own = config.load_settings(
            **settings.model_dump(exclude_unset=True)
            | {**broker.settings, "event_types": traffic.event_types, "model": home / "model"}
            | {"agents_metrics_port": 0, "worker_metrics_port": 0, "cache_dir": home / "cache", "coalesce": coalesce}
        )
        past = _past(traffic, own)
        _save_model(traffic, own, shape, past.memory)
        agents = tuple(f"agents-{number}" for number in range(1, shape.agents + 1))
        yield Stage(own, past, agents, stack.enter_context(Processes(home, own)), broker.pid)


def _past(traffic: Traffic, settings: Settings) -> Past:
    """What the agents and the training make of the past; offset -1 stands before whatever is fed.

    The worker will learn from the windows once more: the sums in its memory differ by that, the work does not.
    """
    row_of = {item.item_id: row for row, item in enumerate(traffic.items, 1)}
    windows: dict[str, Window] = {}
    memory = OnlineStatistics(HORIZONS)
    for event in traffic.past:
        held = windows[event.user_id] = window.append(
            windows.get(event.user_id),
            event,
            offset=-1,
            arrived=event.timestamp,
            capacity=settings.capacity,
            stride=settings.effective_stride,
        )
        memory.learn_last([row_of[one.item_id] for one in held.events[-REACH - 1 :]], event.timestamp)
    return Past(windows, memory)


def _save_model(traffic: Traffic, settings: Settings, shape: Shape, memory: OnlineStatistics) -> None:
    heads = shape.width // HEAD
    encoder = EncoderConfig(
        width=shape.width, layers=shape.layers, heads=heads, kv_heads=heads, inner=2 * shape.width, residual_dropout=0
    )
    model = random_model(encoder, traffic.items, traffic.event_types, settings.capacity, blend=BLEND, memory=memory)
    model_store.save(model, settings.model)
