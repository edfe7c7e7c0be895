import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from stream_rec.cli.main import cli
from stream_rec.errors import UserError
from stream_rec.scaling import Costs, Load, plan

loads = st.builds(
    Load,
    events_per_second=st.floats(1, 1e6),
    users=st.integers(1, 10**9),
    active_users=st.integers(1, 10**8),
    items=st.integers(1, 10**7),
    retention_hours=st.floats(1, 1_000),
)


@given(loads, st.floats(0.1, 0.95))
def test_no_process_has_more_to_do_than_it_may_and_each_can_have_a_partition(load: Load, busy: float) -> None:
    costs = Costs()
    found = plan(load, costs, busy, 3)
    for count, cost in ((found["agents"], costs.agents_s), (found["workers"], costs.worker_s)):
        assert load.events_per_second * cost / 1_000 / count <= busy * (1 + 1e-9)
        assert count <= found["partitions"]
    assert found["partitions"] & (found["partitions"] - 1) == 0


@given(loads)
def test_more_of_anything_asks_for_no_less(load: Load) -> None:
    small = plan(load, Costs(), 0.6, 1)
    for name in ("events_per_second", "items", "retention_hours"):
        large = plan(load._replace(**{name: 2 * getattr(load, name)}), Costs(), 0.6, 1)
        spread = {"agent_memory_gb", "worker_memory_gb", "kv_cache_gb_each"}  # over more processes
        assert all(large[key] >= small[key] for key in small.keys() - spread)


def test_the_command_takes_what_the_benchmark_printed(tmp_path: Path) -> None:
    said = {
        "cpu_s_per_1000_events": {"broker": 0.2, "agents": 0.5, "worker": 1.0, "load": 0.1},
        "window_bytes": 1_000,
        "capacity": 64,
        "width": 128,
        "layers": 2,
    }
    path = tmp_path / "bench.txt"
    path.write_text("a table\n" + json.dumps(said) + "\n")
    given = ["--events-per-second", "6000", "--users", "1000000", "--busy", "0.5", "--measured", str(path), "--json"]
    done = CliRunner().invoke(cli, ["plan", *given])
    assert done.exit_code == 0, done.output
    found = json.loads(done.output.splitlines()[-1])
    assert (found["agents"], found["workers"], found["partitions"]) == (6, 12, 32)
    assert found["kv_cache_gb_each"] == pytest.approx(100_000 * 2 * 2 * 128 * 64 * 4 / 12 / 1e9, abs=0.01)


def test_what_is_no_output_of_the_benchmark_is_named(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("{}")
    with pytest.raises(UserError, match="is no output"):
        Costs.read(tmp_path / "x")
