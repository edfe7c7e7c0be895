"""What will be done to the processes, and when: a function of the seed and the number of kills."""

import random
from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple

ROLES = ("agents", "worker")
USUAL, MOST = 2, 3
"""Processes of each role at first, and at most."""


class Kind(StrEnum):
    KILL = "kill"
    """SIGKILL; another process is started."""
    END = "end"
    """SIGTERM; another process is started."""
    STOP = "stop"
    """SIGSTOP for longer than the group waits, then SIGCONT."""
    BROKER = "broker"
    """The broker is killed, or ended in order, and started again."""
    ADD = "add"
    REMOVE = "remove"
    """SIGTERM, with one process fewer from then on."""
    SWAP = "swap"
    """The workers' model is changed for the other one."""


class Step(NamedTuple):
    kind: Kind
    role: str
    """Of the process that it befalls."""
    which: int
    """Its number among those of its role, modulo how many there are."""
    hold_s: float
    """How long a process stands still; for a broker: 0 kills it."""
    pause_s: float | None
    """Until the next step; None waits until everything written after this step was answered."""


def plan(seed: int, kills: int) -> tuple[Step, ...]:
    """`kills` kills and in proportion everything else, at least one of each kind, in a random order.

    Half of the steps follow at once upon the one before, so that what recovers is hit again; the other half find the
    pipeline at work.
    """
    draw = random.Random(seed)
    shares = {Kind.END: 6, Kind.STOP: 8, Kind.BROKER: 20, Kind.ADD: 8, Kind.SWAP: 8}
    kinds = [Kind.KILL] * kills + [kind for kind, per in shares.items() for _ in range(max(1, kills // per))]
    draw.shuffle(kinds)
    return tuple(_steps(kinds, draw))


def _steps(kinds: list[Kind], draw: random.Random) -> Iterator[Step]:
    many = dict.fromkeys(ROLES, USUAL)
    for at, kind in enumerate(kinds):
        role = draw.choice(ROLES)
        if kind is Kind.ADD:
            kind = Kind.REMOVE if many[role] == MOST or (many[role] > 1 and draw.random() < 0.5) else Kind.ADD
            many[role] += 1 if kind is Kind.ADD else -1
        hold_s = round(draw.uniform(8, 11), 3) if kind is Kind.STOP else float(draw.randrange(2))
        last = at == len(kinds) - 1
        pause_s = None if last or draw.random() < 0.5 else round(draw.expovariate(0.5), 3)
        yield Step(kind, role, draw.randrange(1_000), hold_s, pause_s)
