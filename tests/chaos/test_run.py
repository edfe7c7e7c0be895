"""A short run of the harness, and one with each bug that it must catch; `make chaos` is the long one."""

from pathlib import Path

import pytest

from tests.chaos.bugs import BUGS, Bug
from tests.chaos.log import simulated
from tests.chaos.plan import Kind, Step
from tests.chaos.run import Summary, run

pytestmark = pytest.mark.e2e

KILLS = (Step(Kind.KILL, "agents", 0, 0.0, 0.0), Step(Kind.KILL, "worker", 0, 0.0, None))
SWAP = (Step(Kind.SWAP, "worker", 0, 0.0, None),)


async def faults(home: Path, steps: tuple[Step, ...], bug: Bug | None = None) -> Summary:
    return await run(simulated(7), steps, home, seed=7, rate=80.0, say=lambda *_: None, bug=bug)


async def test_killed_agents_and_workers_and_another_model_leave_what_a_calm_run_leaves(tmp_path: Path) -> None:
    found = await faults(tmp_path, KILLS + SWAP)
    assert (found.lost, found.duplicated, found.wrong, found.out_of_order) == (0, 0, 0, 0)
    assert found.answers > 100
    assert found.dead_letters > 0


@pytest.mark.parametrize(("name", "fault"), [("early", "lost"), ("again", "wrong"), ("offsets-first", "lost")])
async def test_a_bug_is_caught(name: str, fault: str, tmp_path: Path) -> None:
    found = await faults(tmp_path, (), BUGS[name])
    assert getattr(found, fault) > 0
