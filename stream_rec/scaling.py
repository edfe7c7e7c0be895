"""How many processes and partitions, how much memory and disk a load asks for, from what a machine was seen to need.

Every number is a product of the load and a measured cost; nothing here was tried at that size. See docs/scaling.md.
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from stream_rec.errors import UserError

FLOAT = 4
"""Bytes of a cached key or value."""
BASE_AGENT, BASE_WORKER = 150e6, 1.2e9
"""Resident bytes of a process before it holds anything of a user: Python, faust; torch and the text encoder."""
ROW = 2_500
"""Bytes that a worker holds of an item beside its vectors: text, terms, neighbours, transitions."""
TABLE = 1.6
"""What a window costs in an agent's table, in memory, for each of its bytes."""
HOUR_S = 3_600


class Load(NamedTuple):
    events_per_second: float
    """At the busiest hour."""
    users: int
    """With a window."""
    active_users: int
    """Whose next event should find their keys and values cached."""
    items: int
    retention_hours: float
    """Of the events."""


class Costs(NamedTuple):
    """Of one machine, as `stream-rec bench pipeline --json` prints them; the defaults are of docs/benchmarks.md."""

    broker_s: float = 0.116
    """Processor seconds a thousand events, likewise the next two."""
    agents_s: float = 0.172
    worker_s: float = 0.548
    window_bytes: int = 1_500
    capacity: int = 64
    width: int = 128
    layers: int = 2
    event_bytes: int = 150
    answer_bytes: int = 2_000

    @classmethod
    def read(cls, path: Path) -> "Costs":
        """From the last line of what the benchmark printed. Raises `UserError`."""
        try:
            said = json.loads(path.read_text(encoding="utf-8").strip().splitlines()[-1])
            cpu = said["cpu_s_per_1000_events"]
            return cls(
                cpu["broker"],
                cpu["agents"],
                cpu["worker"],
                *(said[name] for name in ("window_bytes", "capacity", "width", "layers")),
            )
        except (OSError, ValueError, KeyError, IndexError, TypeError):
            raise UserError(f"{path} is no output of 'stream-rec bench pipeline --json'") from None

    @property
    def cached_bytes(self) -> int:
        """Of a user's keys and values, where each head has its own."""
        return 2 * self.layers * self.width * self.capacity * FLOAT


def plan(load: Load, costs: Costs, busy: float, copies: int) -> dict[str, Any]:
    """What the load asks for when no process shall be busy for more than the share `busy` of a core.

    `copies` is Kafka's replication factor.
    """
    rate = load.events_per_second
    cores = {name: rate * cost / 1_000 for name, cost in zip(("broker", "agents", "worker"), costs, strict=False)}
    agents, workers = (max(1, math.ceil(cores[name] / busy)) for name in ("agents", "worker"))
    # Twice as many partitions as processes: as many again can join, and an uneven share costs less.
    partitions = max(4, 2 ** math.ceil(math.log2(2 * max(agents, workers))))
    written = rate * (costs.event_bytes + costs.window_bytes + costs.answer_bytes)
    item_bytes = load.items * (ROW + 2 * FLOAT * costs.width)
    cached = load.active_users * costs.cached_bytes
    return {
        "agents": agents,
        "workers": workers,
        "partitions": partitions,
        "broker_cores": round(cores["broker"] * copies / busy, 1),
        "agent_memory_gb": _gb(BASE_AGENT + TABLE * load.users * costs.window_bytes / agents),
        "worker_memory_gb": _gb(BASE_WORKER + item_bytes + cached / workers),
        "kv_cache_gb_each": _gb(cached / workers),
        "kafka_write_mb_per_s": round(written * copies / 1e6, 1),
        "kafka_disk_gb": _gb(
            copies
            * (
                rate * costs.event_bytes * load.retention_hours * HOUR_S
                + load.users * (costs.window_bytes + costs.answer_bytes)
            )
        ),
    }


def _gb(size: float) -> float:
    return round(size / 1e9, 2)
