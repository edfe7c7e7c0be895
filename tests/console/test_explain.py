"""`stream-rec explain` of a window from a file, with a language model's summary; that model is tiny and random."""

import json
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from transformers import LlamaForCausalLM

from stream_rec.config import Settings
from stream_rec.console.explain import command
from stream_rec.messages import encode
from stream_rec.models import model_store
from tests.language import tiny_language_model
from tests.tiny import CAPACITY, STRIDE, tiny_model, window


def test_a_summary_stands_below_the_facts_and_says_whose_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model_store.save(tiny_model(), tmp_path / "model")
    language = tiny_language_model(tmp_path / "language")
    torch.manual_seed(0)
    LlamaForCausalLM.from_pretrained(language).save_pretrained(language)
    asked = tmp_path / "window.json"
    asked.write_bytes(encode(window("u", 3, ["i1", "i2", "i1"])))
    settings = Settings(model=tmp_path / "model", capacity=CAPACITY, stride=STRIDE, cache_dir=tmp_path, device="cpu")
    plan = command.ExplainOptions(None, asked, as_json=True, llm=str(language))
    assert command.run(settings, plan) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["words"][0] == "3 events in the window, in 1 session."
    note = f"written by {language} from the facts above; it may be wrong"
    assert (told["summary"]["by"], told["summary"]["note"]) == (str(language), note)
    assert told["summary"]["text"]
    assert command.run(settings, plan._replace(as_json=False)) == 0
    shown = capsys.readouterr().out.replace("\n", "")
    assert shown.index("3 events in the window") < shown.index("it may be wrong") < shown.index("Why these items")
    assert command.run(settings, plan._replace(llm=None)) == 0
    assert json.loads(capsys.readouterr().out)["summary"] is None


HOSTILE = (
    "sale [/b] now",
    "[link=file:///etc]here[/link]",
    "\x1b]0;owned\x07\x9b2J",
    "a\u202eb",
    "two\nlines",
    ":bomb:",
)


@pytest.mark.parametrize("as_json", [False, True])
def test_titles_are_text_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    model = tiny_model()
    items = [
        replace(item, title=HOSTILE[at % len(HOSTILE)], category=HOSTILE[at % len(HOSTILE)])
        for at, item in enumerate(model.items)
    ]
    model_store.save(model._replace(items=items), tmp_path / "model")
    asked = tmp_path / "window.json"
    asked.write_bytes(encode(window("u", 6, [f"i{at}" for at in range(6)])))
    settings = Settings(model=tmp_path / "model", capacity=CAPACITY, stride=STRIDE, cache_dir=tmp_path, device="cpu")
    assert command.run(settings, command.ExplainOptions(None, asked, as_json)) == 0
    shown = capsys.readouterr().out
    assert all(character.isprintable() for character in shown.replace("\n", ""))
    if as_json:
        assert shown.isascii()
        assert set(HOSTILE) >= {name for name, _ in json.loads(shown)["facts"]["categories"]}
    else:
        assert "[/b]" in shown
        assert "[link=" in shown
