"""A model folder that is no longer whole, or was made to harm: read, or refused in a line."""

import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stream_rec.model import folder
from stream_rec.model.folder import Model
from tests.damage import damaged, said

NAMES = [
    *("config.json", "items.jsonl", "lexicon.json", "encoder.safetensors", "features.safetensors"),
    *("items.safetensors", "memory.safetensors", "lexicon.safetensors", "likeness.safetensors"),
]


@pytest.fixture(scope="module")
def whole(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("whole")
    folder.save(model, made)
    return made


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_what_is_left_of_a_model_is_read_or_refused_in_a_line(
    name: str, data: st.DataObject, whole: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(whole, broken, dirs_exist_ok=True)
    (broken / name).write_bytes(data.draw(damaged((whole / name).read_bytes())))
    assert "\n" not in said(folder.load, broken)
