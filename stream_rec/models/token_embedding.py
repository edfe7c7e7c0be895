"""What the engine's token numbers stand for: the vectors that the decoder reads."""

import torch
from torch import Tensor

from stream_rec.models.user_encoder import ItemInputs, WordInputs


class ItemTokenEmbedding:
    """Vectors of item tokens, from a table of the catalogue's items that is kept up to date."""

    def __init__(self, inputs: ItemInputs, width: int, device: torch.device) -> None:
        self._inputs = inputs
        self._normed = torch.zeros(0, width, device=device)

    def update(self, count: int, rows: Tensor, items: Tensor) -> None:
        """The catalogue has `count` rows, and the item vectors of `rows` (n,) are now `items` (n, width)."""
        more = self._normed.new_zeros(count - len(self._normed), self._normed.shape[1])
        if len(more):
            self._normed = torch.cat([self._normed, more])
        self._normed[rows] = self._inputs.norm(items)

    def __call__(self, numbers: Tensor) -> Tensor:
        rows, types, gaps = numbers
        vectors: Tensor = self._inputs(self._normed[rows], types, gaps)
        return vectors


class WordTokenEmbedding:
    """Vectors of words, which no catalogue changes."""

    def __init__(self, inputs: WordInputs) -> None:
        self._inputs = inputs

    def update(self, count: int, rows: Tensor, items: Tensor) -> None:
        """Nothing to do."""

    def __call__(self, numbers: Tensor) -> Tensor:
        vectors: Tensor = self._inputs(numbers)
        return vectors


def token_embedding_of(
    inputs: ItemInputs | WordInputs, width: int, device: torch.device
) -> ItemTokenEmbedding | WordTokenEmbedding:
    """For the inputs of an encoder that is on `device`."""
    return WordTokenEmbedding(inputs) if isinstance(inputs, WordInputs) else ItemTokenEmbedding(inputs, width, device)
