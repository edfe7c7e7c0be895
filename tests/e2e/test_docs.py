"""The pages whose commands need a Kafka, run as they stand."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.blocks import PAGES, run, to_run
from tests.docs.forks import forks

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(0)]  # each block has a limit of its own

LIVE = [page for page in PAGES if any(one.says for one in to_run(page))]


@pytest.fixture
def stream_rec() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder, forks(Path(folder) / "calls") as command:  # a socket's path is short
        yield command


@pytest.mark.parametrize("page", LIVE, ids=lambda page: page.name)
def test_the_blocks_of_a_page_run(page: Path, tmp_path: Path, stream_rec: str) -> None:
    done = run(to_run(page), tmp_path, stream_rec)
    assert done.returncode == 0, done.stdout
