"""What a case does to its process is noticed and kept."""

import os
import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from stream_rec.errors import UserError
from tests.fuzz.lane import Attempt, Lane, Limits, Outcome, PoisonedError, RefusedError


def prepare(what: str) -> Attempt:
    return partial(attempt, what)


def attempt(what: str, draw: random.Random, scratch: Path) -> None:
    (scratch / "case").write_text(str(draw.random()))
    match what:
        case "crash":
            os.abort()
        case "memory":
            time.sleep(60)
        case "loop":
            while True:
                pass
        case "wait":
            time.sleep(60)
        case "error":
            raise KeyError(what)
        case "two lines":
            raise UserError("one\ntwo")
        case "poison":
            raise PoisonedError("another answer")
        case "refusal":
            raise RefusedError("a reason")
        case "person's mistake":
            raise UserError("a reason")


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Lane]]:
    lanes = []

    def begin(what: str, **limits: float) -> Lane:
        lanes.append(
            Lane(what, partial(prepare, what), tmp_path / "keep", start_method="spawn", limits=Limits(**limits))
        )
        return lanes[-1]

    yield begin
    for lane in lanes:
        lane.close()


@pytest.mark.parametrize(
    ("what", "limits", "outcome"),
    [
        ("crash", {}, Outcome.CRASH),
        ("memory", {"memory": 1}, Outcome.CRASH),
        ("loop", {"cpu_s": 0.2}, Outcome.STALL),
        ("wait", {"wall_s": 0.2}, Outcome.STALL),
        ("error", {}, Outcome.TRACEBACK),
        ("two lines", {}, Outcome.TRACEBACK),
        ("poison", {}, Outcome.POISONED),
    ],
)
def test_harm_is_noticed_and_the_case_kept(
    make: Callable[..., Lane], tmp_path: Path, what: str, limits: dict[str, float], outcome: Outcome
) -> None:
    lane = make(what, **limits)
    assert lane.run(0, 7).outcome is outcome
    kept = tmp_path / "keep" / f"{what}-0-7"
    assert (kept / "outcome.txt").read_text().startswith(outcome)
    drawn = (kept / "case").read_text()
    assert lane.run(0, 7).outcome is outcome  # in another process
    assert (kept / "case").read_text() == drawn


def test_what_is_used_or_refused_is_not_kept(make: Callable[..., Lane], tmp_path: Path) -> None:
    for what, outcome in (("use", "used"), ("refusal", "refused"), ("person's mistake", "refused")):
        assert make(what).run(0, 0).outcome == outcome
    assert not (tmp_path / "keep").exists()
