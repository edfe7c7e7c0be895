"""A case of the fuzzer through Kafka; `make fuzz` is the long run."""

from pathlib import Path

import pytest

from tests.fuzz.broker import RECORDS, ROUNDS, Pipeline
from tests.fuzz.lane import Outcome

pytestmark = pytest.mark.e2e


def test_odd_records_in_kafka_do_no_harm(bootstrap: str, tmp_path: Path) -> None:
    result, written = Pipeline(tmp_path, tmp_path / "kept", bootstrap).run(2, 1)
    assert result.outcome is Outcome.USED, result.detail
    assert written == ROUNDS * RECORDS
