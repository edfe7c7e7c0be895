from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stream_rec.model.catalog import Catalog
from stream_rec.model.engine import Engine, Limits
from stream_rec.model.folder import Model
from stream_rec.model.text import TextEncoder
from tests.tiny import PER_USER, STRIDE, copied, tiny_model


@pytest.fixture(scope="session")
def model() -> Model:
    return tiny_model()


@pytest.fixture
def engine_of(model: Model, tmp_path: Path) -> Callable[..., Engine]:
    """Makes an engine with room for `users` users; other limits by name."""

    def make(users: int = 100, **limits: object) -> Engine:
        texts = TextEncoder(model.config.text_encoder, tmp_path)
        catalog = Catalog(model.items, model.vectors, model.features, copied(model.alike), texts)
        chosen = Limits(stride=STRIDE, kv_cache_bytes=users * PER_USER)._replace(**limits)
        return Engine(model, catalog, chosen, torch.device("cpu"))

    return make
