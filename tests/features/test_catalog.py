from collections.abc import Callable, Sequence
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from msgspec.structs import replace

from stream_rec.errors import UserError
from stream_rec.features.catalog import NO_CATEGORY, Catalog, text_vectors
from stream_rec.features.item_features import ItemFeatures, prices_of
from stream_rec.features.item_similarity import ItemSimilarity, NeighbourTable, by_direction, by_words
from stream_rec.features.text_encoder import TextEncoder, text_of
from stream_rec.features.tfidf import Tfidf
from stream_rec.messages import Item, Rejected
from stream_rec.models.model_store import Model
from stream_rec.serving.engine import Engine
from tests.tiny import ITEMS, TEXT_DIM, copied, items

SILENT = [Item(f"silent {number}", title=" " * (number % 2)) for number in range(9)]
TOLD = [Item(f"told {number}", title=f"red thing {number % 5}", category="things") for number in range(30)]


class Texts(TextEncoder):
    """A vector for each text, the empty one among them, as real encoders have it."""

    def __init__(self) -> None:
        pass

    def encode(self, texts: Sequence[str], progress: object = None) -> np.ndarray:  # noqa: ARG002
        drawn = [np.random.default_rng(crc32(text.encode())).normal(size=8) for text in texts]
        return np.array(drawn, np.float32)


def catalog_of(items: Sequence[Item]) -> Catalog:
    texts, count = [text_of(item) for item in items], len(items) + 1
    lexicon = Tfidf.fit(texts)
    read = text_vectors(items, Texts(), lexicon)
    features = ItemFeatures.fit(read, prices_of(items))
    vectors = features.transform(read, prices_of(items))
    meaning = np.concatenate([np.zeros((1, features.components), np.float32), vectors[:, : features.components]])
    kinds = (by_direction(meaning), by_words(lexicon.rows(["", *texts])))
    alike = ItemSimilarity(
        lexicon, *(NeighbourTable.empty(count).updated(count, np.arange(1, count), kind) for kind in kinds)
    )
    return Catalog(items, vectors, features, alike, Texts())


def neighbours(catalog: Catalog, item_id: str) -> set[str]:
    """Items that have something in common with one by text or words, whoever holds whom."""
    row, found = catalog.row(item_id), set[int]()
    for likeness in (catalog.text, catalog.words):
        cosines = likeness.cosines[: len(catalog)]
        found |= set(likeness.rows[row][cosines[row] > 0].tolist())
        found |= set(np.flatnonzero(((likeness.rows[: len(catalog)] == row) & (cosines > 0)).any(axis=1)).tolist())
    return set(catalog.ids(sorted(found)))


def test_vectors_of_different_lengths_are_told_by_their_items(tmp_path: Path) -> None:
    items = [Item("tea", vector=[1.0, 2.0]), Item("cup", vector=[1.0, 2.0, 3.0])]
    with pytest.raises(UserError, match="'cup' has a vector of 3 numbers and item 'tea' one of 2"):
        text_vectors(items, TextEncoder("none", tmp_path), Tfidf.fit(["tea", "cup"]))


@pytest.mark.parametrize("vector", [[float("nan"), 1.0], [1e39, 1.0], [0.0, 0.0]])
def test_a_vector_without_a_direction_is_told_by_its_item(tmp_path: Path, vector: list[float]) -> None:
    items = [Item("tea", vector=[1.0, 2.0]), Item("cup", vector=vector)]
    with pytest.raises(UserError, match=r"item 'cup': .*vector has the length"):
        text_vectors(items, TextEncoder("none", tmp_path), Tfidf.fit(["tea", "cup"]))


def test_an_event_finds_the_item_whose_id_a_tool_has_made_a_float(engine_of: Callable[..., Engine]) -> None:
    catalog = engine_of().catalog
    news = [replace(items()[0], item_id=name) for name in ("12", "1", "1.0", "v2")]
    catalog.upsert(news, catalog.read(news))
    assert catalog.ids(catalog.rows(iter(["12.0", "12", "1.0", "1", "v2.0", "13.0", "1.10"]))) == [
        *("12", "12", "1.0", "1"),
        *("?", "?", "?"),
    ]


@pytest.fixture
def catalog(model: Model, tmp_path: Path) -> Catalog:
    """One whose encoder can't be had, and whose items have vectors of their own."""
    texts = TextEncoder(str(tmp_path / "nothing"), tmp_path)
    return Catalog(model.items, model.vectors, model.features, copied(model.alike), texts)


def test_what_the_model_does_not_read_of_an_item_is_not_kept(catalog: Catalog) -> None:
    item = replace(items()[3], title="another", attributes={"deep": [[[{}]]] * 50})
    catalog.upsert([item], catalog.read([item]))
    assert catalog.find("i3") == replace(item, attributes=None, vector=None)
    assert catalog.news([item]) == []
    moved = replace(item, vector=[*items()[3].vector[:-1], 9.0])
    assert catalog.news([moved]) == [moved]


def test_a_new_price_or_a_withdrawal_needs_neither_encoder_nor_vector(catalog: Catalog) -> None:
    cheap = replace(items()[3], price=0.5)
    assert not catalog.needs_encoder(cheap)
    before = catalog.vectors[catalog.row("i3")].copy()
    (after,) = catalog.read([cheap])
    text = slice(catalog._features.components)
    assert np.array_equal(before[text], after[text])
    assert not np.array_equal(before, after)
    assert np.allclose(
        after,
        catalog._features.transform(text_vectors([cheap], catalog.encoder, catalog._lexicon), prices_of([cheap])),
        atol=1e-5,
    )
    catalog.withdraw(["i3", "nobody knows it"])
    assert not catalog.available[catalog.row("i3")]
    assert catalog.count_available() == ITEMS - 1
    assert catalog.find("i3").title == "item 3"


def test_an_item_without_a_vector_is_refused_where_texts_make_other_vectors(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Item("plain", title="a shoe")
    assert catalog.needs_encoder(plain)
    with pytest.raises(UserError, match="cannot load the text encoder"):
        catalog.read([plain])
    monkeypatch.setattr(catalog.encoder, "encode", lambda texts, _: np.ones((len(texts), TEXT_DIM + 1), np.float32))
    with pytest.raises(Rejected, match="vector is missing: the model was trained on vectors of 12 numbers"):
        catalog.read([plain])


class Counting:
    """Stands for a pre-trained model."""

    def encode(self, texts: list[str], **_: object) -> np.ndarray:
        return np.array([[len(text), 1.0] for text in texts])


@pytest.mark.parametrize("spoil", [lambda path: path.write_text("a file"), lambda path: spoilt(path)])
def test_a_cache_that_cannot_be_used_costs_no_vector(
    tmp_path: Path, spoil: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "cache"
    spoil(folder)
    encoder = TextEncoder("none", folder)
    encoder.__dict__["_model"] = Counting()
    for _ in range(2):
        assert encoder.encode(["a", "bb"]).tolist() == [[1, 1], [2, 1]]
    assert encoder.cache.failing
    assert encoder.cache.failures == 4
    assert len(caplog.records) == 1
    before = encoder.cache.failures
    assert encoder.encode([]).shape == (0, 0)
    assert encoder.cache.failures == before


@pytest.mark.parametrize(("sick", "raised"), [("all", UserError), ("poison", ValueError)])
def test_a_failure_of_the_encoder_is_told_from_one_of_a_text(
    tmp_path: Path, sick: str, raised: type[Exception]
) -> None:
    class Failing(Counting):
        def encode(self, texts: list[str], **given: object) -> np.ndarray:
            if sick == "all" or sick in texts:
                raise ValueError(texts)
            return super().encode(texts, **given)

    encoder = TextEncoder("none", tmp_path)
    encoder.__dict__["_model"] = Failing()
    with pytest.raises(raised) as caught:
        encoder.encode(["a", "poison"])
    assert raised is ValueError or "poison" not in str(caught.value)


def spoilt(folder: Path) -> None:
    folder.mkdir()
    (folder / "text-vectors.sqlite").write_bytes(b"no database" * 1_000)


def test_a_cache_that_can_be_used_again_is(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    encoder = TextEncoder("none", tmp_path / "cache")
    encoder.__dict__["_model"] = Counting()
    encoder.encode(["a"])
    (tmp_path / "cache").unlink()
    encoder.encode(["a"])
    assert not encoder.cache.failing
    del encoder.__dict__["_model"]
    assert encoder.encode(["a"]).tolist() == [[1, 1]]


def test_items_without_a_text_are_like_nothing() -> None:
    catalog = catalog_of([*SILENT, *TOLD])
    assert not any(neighbours(catalog, item.item_id) for item in SILENT)
    assert all(neighbours(catalog, item.item_id) for item in TOLD)
    assert not catalog.vectors[: len(SILENT) + 1].any()
    assert np.abs(catalog.vectors[len(SILENT) + 1 :]).max(axis=1).min() > 0.1
    assert catalog.vectors[len(SILENT) + 1 :].mean(axis=0) == pytest.approx(0, abs=1e-4)


def test_an_item_that_gets_a_text_gets_neighbours_and_one_that_loses_it_loses_them() -> None:
    catalog = catalog_of([*SILENT, *TOLD])
    for news in ([Item("new"), Item("told 3"), Item("silent 1")], [Item("new", title="red thing 4")]):
        catalog.upsert(news, catalog.read(news))
    assert "told 4" in neighbours(catalog, "new")
    assert not neighbours(catalog, "told 3")
    assert not neighbours(catalog, "silent 1")
    assert "told 3" not in neighbours(catalog, "told 8")


def test_a_catalogue_without_any_text_says_nothing_of_its_items() -> None:
    catalog = catalog_of(SILENT)
    assert not any(neighbours(catalog, item.item_id) for item in SILENT)
    items = [Item("new", title="red thing")]
    assert np.isfinite(catalog.read(items)).all()


def test_no_category_is_the_category_of_the_unknown_item_and_of_no_label() -> None:
    catalog = catalog_of([*TOLD, *SILENT])
    assert catalog.categories[0] == catalog.categories[len(TOLD) + 1] == NO_CATEGORY
    assert catalog.labels == ["", "things"]
