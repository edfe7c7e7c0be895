"""Going on from a trained model: its catalogue and encoder with room for what a newer log and catalogue bring."""

import copy
from collections.abc import Sequence

import polars as pl
import torch
from torch import nn

from stream_rec.data import dataset
from stream_rec.errors import UserError
from stream_rec.features.catalog import Catalog, text_vectors
from stream_rec.features.event_tokenizer import reader_of
from stream_rec.features.item_features import prices_of
from stream_rec.features.item_similarity import ItemSimilarity, NeighbourTable
from stream_rec.features.text_encoder import TextEncoder
from stream_rec.features.tokens import UNKNOWN, event_type_numbers
from stream_rec.messages import Item, Rejected, check_vector
from stream_rec.models.model_store import Model
from stream_rec.models.user_encoder import ItemInputs, UserEncoder
from stream_rec.runtime.progress import Progress
from stream_rec.training.config import TrainConfig
from stream_rec.training.prepare import Prepared


def prepare(
    model: Model,
    frame: pl.DataFrame,
    items: Sequence[Item],
    chosen: TrainConfig,
    texts: TextEncoder,
    progress: Progress,
) -> Prepared:
    """A log and a catalogue, made ready to train `model` further: rows and event types are only added.

    Items that are gone keep their rows, new ones start from their text. How a text becomes a vector stays as the model
    has it, because its weights were learned on that. Raises `UserError` for an item that the model can't take.
    """
    model = copy.deepcopy(model)  # its likeness and its encoder are changed in place
    config, lexicon = model.config, model.alike.lexicon
    catalog = Catalog(model.items, model.vectors, model.features, model.alike, texts)
    named = frame["item"].unique(maintain_order=True).to_list()
    known = {item.item_id for item in (*model.items, *items)}
    news = catalog.news([*items, *(Item(name) for name in named if name not in known)])
    newest = {item.item_id: item for item in (*model.items, *items, *news)}  # the catalogue keeps less of them
    for item in news:
        try:
            catalog.admit(item)
            if item.vector is not None:
                check_vector(item.vector)
        except Rejected as rejected:
            raise UserError(f"item {item.item_id!r}: {rejected}") from None
    if news:
        read = text_vectors(news, texts, lexicon, lambda done, total: progress("reading item texts", done, total))
        try:
            catalog.check(read)
        except Rejected as rejected:
            raise UserError(str(rejected)) from None
        progress("comparing item texts", 0, 1)
        catalog.upsert(news, model.features.transform(read, prices_of(news)))
        progress("comparing item texts", 1, 1)
    count = len(catalog)  # its arrays may be longer
    rows = range(UNKNOWN + 1, count)
    event_types = (*config.event_types, *sorted(set(frame["event"].unique()) - set(config.event_types)))
    row_of = {catalog.item(row).item_id: row for row in rows}
    return Prepared(
        dataset.dataset(frame, row_of, event_type_numbers(event_types)),
        [newest[catalog.item(row).item_id] for row in rows],
        model.features,
        ItemSimilarity(
            lexicon, *(NeighbourTable(one.rows[:count], one.cosines[:count]) for one in (catalog.text, catalog.words))
        ),
        catalog,
        torch.from_numpy(catalog.vectors[:count].copy()),
        event_types,
        reader_of(catalog, event_types, config.encoder.words, model.tokenizer),
        model.tokenizer,
        base=None,
        start=grow(model.encoder, count, len(event_types) + 1, chosen),
    )


def grow(encoder: UserEncoder, items: int, types: int, chosen: TrainConfig) -> UserEncoder:
    """The encoder with room for `items` rows and `types` event types, `UNKNOWN` included in both.

    A new item has no residual yet: it is what its text says. A new type starts as types do. The heads for the next
    event's type and the interest are fitted at the end of every training: they are new.
    """
    torch.manual_seed(chosen.seed)
    encoder.types = types
    encoder.residual = _longer(encoder.residual, items, std=0.0)
    if isinstance(encoder.inputs, ItemInputs):
        encoder.inputs.event_type = _longer(encoder.inputs.event_type, types, std=0.02)
    encoder.next_type = nn.Linear(encoder.width + types, types)
    encoder.theta = nn.Linear(2 * encoder.width + types, 1) if chosen.goal is not None else None
    return encoder


def _longer(table: nn.Embedding, rows: int, std: float) -> nn.Embedding:
    new = std * torch.randn(rows - table.num_embeddings, table.embedding_dim)
    return nn.Embedding(rows, table.embedding_dim, _weight=torch.cat([table.weight.detach(), new]))
