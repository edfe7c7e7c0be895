"""A short run of the harness, and one with a bug that it must catch; `make chaos` is the long one."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos import bugs
from tests.chaos.log import simulated
from tests.chaos.plan import Kind, Step
from tests.chaos.run import Summary, run

pytestmark = pytest.mark.e2e

KILLS = (Step(Kind.KILL, "agents", 0, 0.0, 0.0), Step(Kind.KILL, "worker", 0, 0.0, None))
SWAP = (Step(Kind.SWAP, "worker", 0, 0.0, None),)
BOTH_AGENTS = (
    Step(Kind.SWAP, "worker", 0, 0.0, 5.0),  # while the second agent joins, the first has committed everything
    Step(Kind.KILL, "agents", 0, 0.0, 0.0),
    Step(Kind.KILL, "agents", 0, 0.0, None),
)


async def faults(home: Path, steps: tuple[Step, ...], bug: Callable[[], None] | None = None) -> Summary:
    return await run(simulated(7), steps, home, seed=7, rate=80.0, say=lambda *_: None, bug=bug)


async def test_killed_agents_and_workers_and_another_model_leave_what_a_calm_run_leaves(tmp_path: Path) -> None:
    found = await faults(tmp_path, KILLS + SWAP)
    assert (found.lost, found.duplicated, found.wrong, found.out_of_order) == (0, 0, 0, 0)
    assert found.answers > 100
    assert found.dead_letters > 0


async def test_events_applied_twice_are_caught(tmp_path: Path) -> None:
    found = await faults(tmp_path, BOTH_AGENTS, bugs.again)
    assert found.wrong > 0
