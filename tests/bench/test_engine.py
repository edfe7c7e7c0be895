import json
from pathlib import Path

import pytest

from stream_rec.bench.engine import EngineBenchOptions, read_decoder, run, simulated
from stream_rec.errors import UserError

PLAN = EngineBenchOptions(capacity=16, width=32, layers=2, heads=2, items=700, events=400, sample=60, batch=32, runs=1)


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
    assert figures["device"] == "cpu"
    assert figures["fill_share"] == 0
    ceilings = figures["of_ceilings"]
    assert ceilings["tflops"] > 0
    assert ceilings["gigabytes_per_s"] > 0
    assert ceilings["full"] > ceilings["stream"] >= 0  # of so small a model, a call's own cost is most of the stream's
    assert figures["bytes_per_user"] == 2 * PLAN.layers * PLAN.kv_heads * PLAN.capacity * 16 * 4


def test_a_decoder_has_the_shape_of_its_configuration(tmp_path: Path) -> None:
    told = json.loads(Path("examples/decoders/qwen3-0.6b.json").read_text())
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(told | small | {"num_key_value_heads": 2, "head_dim": 16}))
    figures = run(simulated(1_000), PLAN._replace(events=100, decoder=path), lambda _: None)
    layer = 32 * 16 * (4 + 2 + 2 + 4) + 3 * 32 * 48
    assert figures["weights"] == 2 * layer
    assert figures["max_abs_diff"] <= 1e-4


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model_type": "no such"}'])
def test_what_is_no_configuration_is_a_persons_mistake(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(UserError, match="is no configuration"):
        read_decoder(path)
