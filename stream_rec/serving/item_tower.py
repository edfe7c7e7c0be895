"""What is computed from the catalogue's vectors: what the decoder reads of an item, and what user states meet."""

import numpy as np
import torch
from numpy.typing import NDArray

from stream_rec.features.catalog import Catalog
from stream_rec.models.token_embedding import ItemTokenEmbedding, WordTokenEmbedding
from stream_rec.models.user_encoder import UserEncoder
from stream_rec.ranking.blend import ItemTower


class ItemEmbeddings:
    """The items of a catalogue as an encoder has them, on `device`; only those of `categories` are shown, if any."""

    def __init__(
        self,
        catalog: Catalog,
        encoder: UserEncoder,
        look: ItemTokenEmbedding | WordTokenEmbedding,
        categories: frozenset[str],
        device: torch.device,
    ) -> None:
        self._catalog = catalog
        self._encoder = encoder
        self._look = look
        self._shown = categories
        self._device = device
        self._outputs = torch.zeros(len(catalog), encoder.width, device=device)
        self._usable = torch.ones(len(catalog), dtype=torch.bool, device=device)

    @property
    def unusable(self) -> int:
        """Items that are never recommended, because what the encoder makes of them is not finite."""
        return int((~self._usable).sum())

    def update(self, rows: NDArray[np.int64]) -> ItemTower:
        """Brings it up to date for `rows`, whose vectors are new. An item that came after training has no residual."""
        encoder, count = self._encoder, len(self._catalog)
        if count > len(self._outputs):
            room = self._outputs.new_zeros(max(64, len(self._outputs) // 4, count - len(self._outputs)), encoder.width)
            self._outputs = torch.cat([self._outputs, room])
            self._usable = torch.cat([self._usable, self._usable.new_ones(len(room))])
        if len(rows):
            where = torch.from_numpy(rows).to(self._device)
            vectors = torch.from_numpy(self._catalog.vectors[rows]).to(self._device)
            trained = (where < encoder.residual.num_embeddings)[:, None]
            residual = encoder.residual(where.clamp(max=encoder.residual.num_embeddings - 1)) * trained
            items = encoder.items(vectors, residual)
            outputs = encoder.outputs(items)
            usable = items.square().sum(dim=1).isfinite() & outputs.isfinite().all(dim=1)
            self._look.update(count, where, items.masked_fill(~usable[:, None], 0))
            self._outputs[where] = outputs.masked_fill(~usable[:, None], 0)
            self._usable[where] = usable
        labels, categories = tuple(self._catalog.labels), self._catalog.categories[:count]
        shown = self._shown or frozenset(labels)
        allowed = self._catalog.available[:count] & np.array([label in shown for label in labels])[categories]
        return ItemTower(
            outputs=self._outputs[:count],
            unavailable=torch.from_numpy(~allowed).to(self._device) | ~self._usable[:count],
            categories=torch.from_numpy(categories).to(self._device),
            labels=labels,
        )
