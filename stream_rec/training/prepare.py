"""A log, a catalogue and a pre-trained body, made ready for training."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from tokenizers import Tokenizer
from torch import Tensor

from stream_rec.data import dataset
from stream_rec.data.dataset import Dataset
from stream_rec.features.catalog import Catalog, text_vectors
from stream_rec.features.event_tokenizer import Reader, reader_of
from stream_rec.features.item_features import ItemFeatures, Vectors, prices_of
from stream_rec.features.item_similarity import ItemSimilarity, NeighbourTable, by_direction, by_words
from stream_rec.features.text_encoder import TextEncoder, text_of
from stream_rec.features.tfidf import Tfidf
from stream_rec.features.tokens import UNKNOWN, event_type_numbers
from stream_rec.messages import Item
from stream_rec.models.model_store import Model
from stream_rec.models.pretrained import PretrainedBackbone, load_backbone, load_tokenizer
from stream_rec.models.user_encoder import UserEncoder
from stream_rec.runtime.progress import Progress
from stream_rec.serving.incremental import refuse_inexact
from stream_rec.training.config import TrainConfig


class Prepared(NamedTuple):
    """A log and a catalogue, as numbers."""

    data: Dataset
    items: Sequence[Item]
    features: ItemFeatures
    alike: ItemSimilarity
    catalog: Catalog
    vectors: Tensor
    """(rows, dim); row 0 is the unknown item."""
    event_types: tuple[str, ...]
    reader: Reader
    tokenizer: Tokenizer | None
    """Of a model that reads words."""
    base: PretrainedBackbone | None
    """The pre-trained body, as it came."""
    start: UserEncoder | None = None
    """What a trained model has learnt, to go on from."""
    device: torch.device = torch.device("cpu")
    """Where the decoder computes; all else is the CPU's."""


def reopen(model: Model, frame: pl.DataFrame, texts: TextEncoder) -> Prepared:
    """A log, made ready for a finished model; items that the model does not know are the unknown one."""
    config = model.config
    catalog = Catalog(model.items, model.vectors, model.features, model.alike, texts)
    row_of = {item.item_id: row for row, item in enumerate(model.items, UNKNOWN + 1)}
    data = dataset.dataset(frame, row_of, event_type_numbers(config.event_types))
    read = reader_of(catalog, config.event_types, config.encoder.words, model.tokenizer, gaps=config.has_time)
    vectors = torch.from_numpy(catalog.vectors)
    return Prepared(
        data,
        model.items,
        model.features,
        model.alike,
        catalog,
        vectors,
        config.event_types,
        read,
        model.tokenizer,
        base=None,
    )


def prepare(
    frame: pl.DataFrame, items: Sequence[Item], config: TrainConfig, texts: TextEncoder, progress: Progress
) -> Prepared:
    """Items that the log names and the catalogue lacks are added without a text."""
    shape = config.encoder
    base = tokenizer = None
    if shape.base is not None:
        progress("loading the language model", 0, 1)
        base = load_backbone(shape.base, shape.layers, config.capacity * shape.event_tokens)
        refuse_inexact(shape.base, base.body)
        tokenizer = load_tokenizer(shape.base) if shape.words else None
        progress("loading the language model", 1, 1)
    known = {item.item_id for item in items}
    catalogue = [
        *items,
        *(Item(name) for name in frame["item"].unique(maintain_order=True).to_list() if name not in known),
    ]
    event_types = tuple(frame["event"].unique().sort().to_list())
    told = [text_of(item) for item in catalogue]
    lexicon = Tfidf.fit(told)
    read = text_vectors(catalogue, texts, lexicon, lambda done, total: progress("reading item texts", done, total))
    features = ItemFeatures.fit(read, prices_of(catalogue))
    vectors: Vectors = features.transform(read, prices_of(catalogue))
    progress("comparing item texts", 0, 2)
    count, every = len(catalogue) + 1, np.arange(1, len(catalogue) + 1)
    meaning = np.concatenate([np.zeros((1, features.components), np.float32), vectors[:, : features.components]])
    text = NeighbourTable.empty(count).updated(count, every, by_direction(meaning))
    progress("comparing item texts", 1, 2)
    words = NeighbourTable.empty(count).updated(count, every, by_words(lexicon.rows(["", *told])))
    progress("comparing item texts", 2, 2)
    alike = ItemSimilarity(lexicon, text, words)
    catalog = Catalog(catalogue, vectors, features, alike, texts)
    row_of = {item.item_id: row for row, item in enumerate(catalogue, UNKNOWN + 1)}
    data = dataset.dataset(frame, row_of, event_type_numbers(event_types))
    return Prepared(
        data,
        catalogue,
        features,
        alike,
        catalog,
        torch.from_numpy(catalog.vectors),
        event_types,
        reader_of(catalog, event_types, shape.words, tokenizer, gaps=config.has_time),
        tokenizer,
        base,
    )
