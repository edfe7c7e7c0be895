"""Two models that differ, over the log's items: untrained, because a guarantee does not depend on what was learnt."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch

from stream_rec.bench.random_model import random_model
from stream_rec.features.online_statistics import OnlineStatistics
from stream_rec.messages import Item
from stream_rec.models import model_store
from stream_rec.models.user_encoder import EncoderConfig
from tests.tiny import BLEND, HORIZONS

CAPACITY, STRIDE = 12, 5
"""Small, and no power of two: windows move often, and by another step than half of them."""
WIDTH = 32


class Models(NamedTuple):
    link: Path
    """What the workers read."""
    folders: tuple[Path, Path]
    versions: tuple[str, str]

    def point_to(self, number: int) -> None:
        """In one move."""
        aside = self.link.with_name("aside")
        aside.symlink_to(self.folders[number])
        aside.replace(self.link)


def make(items: Sequence[Item], event_types: Sequence[str], home: Path) -> Models:
    """Both with the blend and the online memory of a trained one; they differ in weights and in when training ended."""
    shape = EncoderConfig(width=WIDTH, layers=2, heads=4, kv_heads=2, inner=64, dropout=0.0)
    made = [
        random_model(shape, items, tuple(event_types), CAPACITY, blend=BLEND, memory=OnlineStatistics(HORIZONS))
        for _ in range(2)
    ]
    with torch.no_grad():
        for weight in made[1].encoder.parameters():
            weight.mul_(0.8)
    made[1] = made[1]._replace(config=msgspec.structs.replace(made[1].config, trained_until=1.0))
    folders = home / "model-0", home / "model-1"
    versions = model_store.save(made[0], folders[0]), model_store.save(made[1], folders[1])
    models = Models(home / "model", folders, versions)
    models.point_to(0)
    return models
