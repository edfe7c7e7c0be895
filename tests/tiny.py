"""A small untrained model and windows for it: no text is encoded, nothing is downloaded."""

import numpy as np
import torch

from stream_rec.features.item_features import ItemFeatures, prices_of, unit
from stream_rec.features.item_similarity import ItemSimilarity, NeighbourTable, by_direction, by_words
from stream_rec.features.online_statistics import HalfLives, OnlineStatistics
from stream_rec.features.text_encoder import text_of
from stream_rec.features.tfidf import Tfidf
from stream_rec.messages import Item, Window, WindowEvent
from stream_rec.models.model_store import FORMAT, Model, ModelConfig
from stream_rec.models.user_encoder import EncoderConfig, UserEncoder, new_body
from stream_rec.ranking.blend import Blend

ITEMS, TEXT_DIM, CAPACITY, STRIDE = 40, 12, 8, 4
PER_USER = 2 * 2 * 2 * CAPACITY * 4 * 4
"""Bytes of a user's keys and values: two layers, two heads of four float32 numbers a token."""
BLEND = Blend(
    decoder=0.9,
    transitions=0.8,
    reverse=-0.1,
    together=0.5,
    text=0.2,
    words=0.3,
    popularity=0.1,
    recency=0.2,
    session=0.4,
    again=0.3,
    category=0.4,
    price=0.3,
    repeat=-1.5,
)
HORIZONS = HalfLives(lasting=3_600.0, recent=600.0)


def items(count: int = ITEMS) -> list[Item]:
    """A catalogue whose items bring vectors of their own, so that no text is encoded."""
    draw = np.random.default_rng(0)
    return [
        Item(
            f"i{number}",
            title=f"item {number}",
            category=f"c{number % 3}",
            price=float(number + 1),
            vector=draw.normal(size=TEXT_DIM).tolist(),
        )
        for number in range(count)
    ]


def tiny_model() -> Model:
    """An untrained model with every weight away from its initial value, so that no term of the token is void."""
    torch.manual_seed(0)
    config = EncoderConfig(width=16, layers=2, heads=4, kv_heads=2, inner=32, dropout=0.1)
    catalogue = items()
    told = [text_of(item) for item in catalogue]
    lexicon = Tfidf.fit(told)
    lexical = lexicon.rows(["", *told])
    meaning = unit(np.array([item.vector for item in catalogue], np.float32))
    texts = np.concatenate([meaning, lexicon.vectors(lexical[1:])], axis=1)
    features = ItemFeatures.fit(texts, prices_of(catalogue))
    vectors = features.transform(texts, prices_of(catalogue))
    directions = np.concatenate([np.zeros((1, features.components), np.float32), vectors[:, : features.components]])
    every = np.arange(1, ITEMS + 1)
    alike = ItemSimilarity(
        lexicon,
        NeighbourTable.empty(ITEMS + 1).updated(ITEMS + 1, every, by_direction(directions)),
        NeighbourTable.empty(ITEMS + 1).updated(ITEMS + 1, every, by_words(lexical)),
    )
    encoder = UserEncoder(config, new_body(config), items=ITEMS + 1, item_dim=features.dim, types=3, goal=True)
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return Model(
        ModelConfig(
            format=FORMAT,
            encoder=config,
            body=encoder.body.config.to_dict(),
            event_types=("cart", "view"),
            capacity=CAPACITY,
            text_encoder="sentence-transformers/all-MiniLM-L6-v2",
            blend=BLEND,
            horizons=HORIZONS,
            trained_until=0.0,
            goal="cart",
        ),
        encoder.eval(),
        features,
        catalogue,
        vectors,
        OnlineStatistics(HORIZONS).state(),
        alike,
        version="test",
    )


def copied(alike: ItemSimilarity) -> ItemSimilarity:
    """For one more catalogue: it changes the arrays that it is given."""
    text, words = (NeighbourTable(one.rows.copy(), one.cosines.copy()) for one in (alike.text, alike.words))
    return ItemSimilarity(alike.lexicon, text, words)


def window(user: str, n: int, names: list[str], *, offset: int | None = None, start: int = 0) -> Window:
    """A window of the items `names`, a minute apart, alternately viewed and carted, which arrived as they happened."""
    events = tuple(
        WindowEvent(name, ("view", "cart")[at % 2], 1_000.0 + 60 * at) for at, name in enumerate(names, start)
    )
    return Window(user, n, start, n - 1 if offset is None else offset, events[-1].timestamp, events)
