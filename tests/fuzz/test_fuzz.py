"""A short run of the fuzzer; `make fuzz` is the long one."""

from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.fuzz import files
from tests.fuzz.lane import Attempt, Case, Outcome, PoisonedError, outcome_of
from tests.fuzz.records import Readers
from tests.tiny import items

SEED = 2


@pytest.mark.parametrize(
    ("kind", "prepare", "cases"),
    [("files", files.prepare, 60), ("records", Readers, 150)],
    ids=["files", "records"],
)
def test_no_case_does_harm(kind: str, prepare: Callable[[], Attempt], cases: int, tmp_path: Path) -> None:
    attempt, outcomes = prepare(), []
    for number in range(cases):
        outcome, detail = outcome_of(attempt, Case(kind, SEED, number), tmp_path)
        assert outcome in (Outcome.USED, Outcome.REFUSED), f"{kind}-{SEED}-{number}: {detail}"
        outcomes.append(outcome)
    assert min(outcomes.count(Outcome.USED), outcomes.count(Outcome.REFUSED)) > cases / 10


def test_another_answer_to_a_calm_user_is_noticed() -> None:
    readers = Readers()
    readers.compare()
    changed = [replace(item, available=False) for item in items()[:20]]
    readers.barring.upsert(changed, readers.barring.read(changed))
    with pytest.raises(PoisonedError):
        readers.compare()
