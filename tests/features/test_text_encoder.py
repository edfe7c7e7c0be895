from pathlib import Path

import pytest
import torch

from stream_rec.errors import UserError
from stream_rec.features.text_encoder import TextEncoder


@pytest.mark.parametrize("module", ["", "2_Dense"])
def test_a_text_encoder_whose_weights_are_a_pickle_is_refused(tmp_path: Path, module: str) -> None:
    folder = tmp_path / "encoder" / module
    folder.mkdir(parents=True)
    torch.save({}, folder / "pytorch_model.bin")
    encoder = TextEncoder(str(tmp_path / "encoder"), tmp_path / "cache")
    with pytest.raises(UserError, match=r"pytorch_model\.bin is a pickle"):
        encoder.encode(["tea"])
