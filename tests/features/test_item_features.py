import numpy as np
import pytest

from stream_rec.features.item_features import ItemFeatures

NONE = np.full(50, np.nan, np.float32)


def test_whitened_texts_have_no_direction_of_their_own() -> None:
    draw = np.random.default_rng(0)
    texts = (draw.normal(size=(500, 8)) @ draw.normal(size=(8, 20)) + 3).astype(np.float32)
    prices = np.full(500, np.nan, np.float32)
    read = ItemFeatures.fit(texts, prices).transform(texts, prices)
    assert np.abs(read.mean(0)).max() < 1e-3
    assert np.cov(read, rowvar=False) == pytest.approx(np.eye(read.shape[1]), abs=0.01)


@pytest.mark.parametrize("texts", [np.ones((50, 6)), np.zeros((50, 6)), np.ones((1, 6))], ids=str)
def test_texts_that_are_all_alike_say_nothing(texts) -> None:
    prices = NONE[: len(texts)]
    features = ItemFeatures.fit(texts.astype(np.float32), prices)
    read = features.transform(texts.astype(np.float32), prices)
    assert read.shape == (len(texts), features.dim)
    assert np.abs(read).max() < 0.01


def test_prices_are_near_each_other_where_their_logarithms_are() -> None:
    prices = np.geomspace(1, 1_000, 50).astype(np.float32)
    texts = np.ones((50, 6), np.float32)
    features = ItemFeatures.fit(texts, prices)
    read = features.transform(texts, prices)
    near, far = np.linalg.norm(read[10] - read[11]), np.linalg.norm(read[10] - read[40])
    assert near < far / 2
    unpriced = features.transform(texts[:1], NONE[:1])
    assert np.isfinite(unpriced).all()


def test_a_catalogue_with_few_prices_uses_none() -> None:
    prices = NONE.copy()
    prices[:10] = 5.0
    assert ItemFeatures.fit(np.eye(50, 6, dtype=np.float32), prices).dim <= 6
