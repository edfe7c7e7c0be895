import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from stream_rec.runtime.process import limit_openmp_spinning

if TYPE_CHECKING:
    from stream_rec.models.model_store import Model
    from stream_rec.serving.engine import Engine

limit_openmp_spinning()  # before any test imports torch
if not Path("/dev/nvidia0").exists():
    os.environ["TRITON_INTERPRET"] = "1"  # a kernel runs on the CPU; read when triton is imported

settings.register_profile("any machine", deadline=None)  # how long an example takes says nothing where others work
settings.load_profile("any machine")


@pytest.fixture(scope="session")
def model() -> "Model":
    from tests.tiny import tiny_model

    return tiny_model()


@pytest.fixture
def engine_of(model: "Model", tmp_path: Path) -> Callable[..., "Engine"]:
    """Makes an engine with room for `users` users; other limits by name."""
    import torch

    from stream_rec.features.catalog import Catalog
    from stream_rec.features.text_encoder import TextEncoder
    from stream_rec.serving.engine import Engine, Limits
    from tests.tiny import PER_USER, STRIDE, copied

    def make(users: int = 100, **limits: object) -> Engine:
        texts = TextEncoder(model.config.text_encoder, tmp_path)
        catalog = Catalog(model.items, model.vectors, model.features, copied(model.alike), texts)
        chosen = Limits(stride=STRIDE, kv_cache_bytes=users * PER_USER)._replace(**limits)
        return Engine(model, catalog, chosen, torch.device("cpu"))

    return make
