from stream_rec.bench.engine import Plan, run, simulated

PLAN = Plan(capacity=16, width=32, layers=2, heads=2, items=700, events=400, sample=60, batch=32, runs=1)


def test_the_benchmark_answers_exactly_and_counts_what_it_computed() -> None:
    heard: list[int] = []
    figures = run(simulated(2_000), PLAN, heard.append)
    assert heard == [1, 2]
    assert figures["events"] == 400
    assert figures["max_abs_diff"] <= 1e-4
    assert figures["top20_changed"] == 0
    tokens = figures["tokens_per_event"]
    assert 1 <= tokens["stream"] < tokens["full"] <= PLAN.capacity
    assert 0 <= figures["padding_share"] < 0.5
    for rate in ("stream_events_per_s", "full_events_per_s", "append_events_per_s", "ratio", "step_ratio"):
        assert figures[rate] > 0
    assert figures["bytes_per_user"] == 2 * PLAN.layers * PLAN.kv_heads * PLAN.capacity * 16 * 4
