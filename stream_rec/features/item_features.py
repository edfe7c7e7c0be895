"""Item vectors: what the encoder sees of an item. Fitted on the training catalogue, applied to every later item."""

from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from stream_rec.messages import Item

Vectors = NDArray[np.float32]
MAX_TEXT = 256
"""Principal components kept of a text vector."""
PRICE_BUMPS = 16
NOISE = 1e-6
"""Variance of unit text vectors that tells nothing: where all texts are alike, or there are none."""


class ItemFeatures(NamedTuple):
    """Unit text vectors, centred and PCA-whitened, then radial bumps of the log price where the catalogue has prices.

    Whitening spreads the narrow cone in which sentence encoders put texts of one shop. Arrays: `mean` (text_dim,),
    `whiten` (text_dim, components), `centres` (bumps,), `bump_mean` (bumps,), `bump_scale` ().
    """

    mean: Vectors
    whiten: Vectors
    centres: Vectors
    bump_mean: Vectors
    bump_scale: Vectors

    @classmethod
    def fit(cls, texts: Vectors, prices: Vectors) -> Self:
        """`texts` (items, text_dim), zero for an item without one; `prices` (items,), NaN where there is none."""
        texts = unit(texts)
        if (told := texts.any(axis=1)).any():
            texts = texts[told]
        mean = texts.mean(0)
        variance, axes = np.linalg.eigh(np.cov(texts - mean, rowvar=False, bias=True).astype(np.float64))
        telling = variance > max(NOISE, 1e-5 * variance.max())  # the rest is noise: whitening would amplify it
        kept = max(1, min(MAX_TEXT, int(telling.sum())))
        whiten = axes[:, -kept:] * telling[-kept:] / np.sqrt(np.maximum(variance[-kept:], NOISE))
        known = np.log1p(prices[~np.isnan(prices)])
        if len(known) < len(prices) / 2 or np.ptp(known) == 0:
            empty = np.zeros(0, np.float32)
            return cls(mean, whiten.astype(np.float32), empty, empty, np.ones((), np.float32))
        centres = np.linspace(known.min(), known.max(), PRICE_BUMPS).astype(np.float32)
        bumps = _bumps(known, centres)
        return cls(
            mean, whiten.astype(np.float32), centres, bumps.mean(0), np.float32(bumps.std()) * np.ones((), np.float32)
        )

    def transform(self, texts: Vectors, prices: Vectors) -> Vectors:
        """Item vectors (items, components + bumps). What an item lacks is zero, as what is the mean of all items."""
        return self.priced(self.text(texts), prices)

    def text(self, texts: Vectors) -> Vectors:
        """What texts make of items, (items, components); zero for an item without one."""
        text = (unit(texts) - self.mean) @ self.whiten * texts.any(axis=1, keepdims=True)
        return text.astype(np.float32)

    def priced(self, text: Vectors, prices: Vectors) -> Vectors:
        """Item vectors (items, components + bumps) from what their texts make of them, `text` (items, components)."""
        if not len(self.centres):
            return text
        bumps = (_bumps(np.log1p(prices), self.centres) - self.bump_mean) / self.bump_scale
        return np.concatenate([text, np.nan_to_num(bumps)], axis=1).astype(np.float32)

    @property
    def text_dim(self) -> int:
        return len(self.mean)

    @property
    def components(self) -> int:
        """Of an item vector, the leading numbers that its text makes."""
        return int(self.whiten.shape[1])

    @property
    def dim(self) -> int:
        return self.components + len(self.centres)


def prices_of(items: Sequence[Item]) -> Vectors:
    """Prices (items,), NaN where an item has none."""
    return np.array([np.nan if item.price is None else item.price for item in items], np.float32)


def unit(vectors: Vectors) -> Vectors:
    """Rows of unit length; zeros stay zeros."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    found: Vectors = (vectors / np.maximum(norms, 1e-12)).astype(np.float32)
    return found


def _bumps(log_price: Vectors, centres: Vectors) -> Vectors:
    width = centres[1] - centres[0]
    bumps: Vectors = np.exp(-(((log_price[:, None] - centres) / width) ** 2) / 2).astype(np.float32)
    return bumps
