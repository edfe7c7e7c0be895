"""A model of any shape with random weights: speed does not depend on them, and a trained one would say nothing more."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from stream_rec.features.item_features import ItemFeatures, Vectors
from stream_rec.features.item_similarity import ItemSimilarity, NeighbourTable, by_direction
from stream_rec.features.online_statistics import HalfLives, OnlineStatistics
from stream_rec.features.tfidf import Tfidf
from stream_rec.messages import Item
from stream_rec.models.model_store import FORMAT, Model, ModelConfig
from stream_rec.models.user_encoder import EncoderConfig, UserEncoder, new_body
from stream_rec.ranking.blend import Blend


def random_model(
    config: EncoderConfig,
    items: Sequence[Item],
    event_types: tuple[str, ...],
    capacity: int,
    *,
    body: Any = None,
    blend: Blend = Blend(),  # noqa: B008 - frozen
    memory: OnlineStatistics | None = None,
) -> Model:
    """A model over `items`, whose vectors are noise and whose texts have no words.

    `body` is its decoder, by default one of the shape of `config`; `memory` what it has learnt online, by default
    nothing.
    """
    torch.manual_seed(0)
    memory = memory or OnlineStatistics(HalfLives(1.0, 1.0))
    body = body or new_body(config)
    encoder = UserEncoder(config, body, items=len(items) + 1, item_dim=config.width, types=len(event_types) + 1)
    none: Vectors = np.zeros(0, np.float32)
    vectors: Vectors = np.random.default_rng(0).normal(size=(len(items), config.width)).astype(np.float32)
    every = np.concatenate([np.zeros((1, config.width), np.float32), vectors])
    likeness = NeighbourTable.empty(len(every)).updated(len(every), np.arange(1, len(every)), by_direction(every))
    lexicon = Tfidf((), none, np.zeros((0, 0), np.float32))
    one: Vectors = np.ones((), np.float32)
    features = ItemFeatures(np.zeros(config.width, np.float32), np.eye(config.width, dtype=np.float32), none, none, one)
    return Model(
        ModelConfig(
            format=FORMAT,
            encoder=config,
            body=encoder.body.config.to_dict(),
            event_types=event_types,
            capacity=capacity,
            text_encoder="none",
            blend=blend,
            horizons=memory.horizons,
            trained_until=0.0,
        ),
        encoder.eval(),
        features,
        items,
        vectors,
        memory.state(),
        ItemSimilarity(lexicon, likeness, NeighbourTable.empty(len(items) + 1)),
        version="benchmark",
    )
