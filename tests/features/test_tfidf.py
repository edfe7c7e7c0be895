import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_rec.features.tfidf import DIRECTIONS, Tfidf, terms_of

WORDS = ["red", "blue", "hat", "shoe", "Northpeak", "2000", "x"]
TEXTS = st.lists(st.lists(st.sampled_from(WORDS), max_size=5).map(" ".join))


def test_terms_are_words_their_neighbours_and_the_first_word_once_more() -> None:
    assert list(terms_of("Northpeak trail-shoe_X2")) == [
        *("northpeak", "trail", "shoe", "x2"),
        *("northpeak trail", "trail shoe", "shoe x2"),
        "^northpeak",
    ]
    assert list(terms_of(" ,;")) == []


def test_only_terms_that_two_texts_have_are_known_and_rare_ones_weigh_more() -> None:
    lexicon = Tfidf.fit(["a red hat", "a red shoe", "a blue shoe", "a"])
    assert set(lexicon.terms) == {"a", "^a", "red", "shoe", "a red"}
    weight_of = dict(zip(lexicon.terms, lexicon.weights.tolist(), strict=True))
    assert weight_of == pytest.approx({"a": 0, "^a": 0, "red": np.log(2), "shoe": np.log(2), "a red": np.log(2)})


@settings(max_examples=60, deadline=None)
@given(TEXTS, TEXTS)
def test_rows_and_vectors_have_unit_length_or_say_nothing(texts: list[str], more: list[str]) -> None:
    lexicon = Tfidf.fit(texts)
    asked = [*texts, *more, "unheard of", ""]
    rows = lexicon.rows(asked)
    vectors = lexicon.vectors(rows)
    assert rows.shape == (len(asked), len(lexicon.terms))
    assert vectors.shape == (len(asked), lexicon.dim)
    assert lexicon.dim <= DIRECTIONS
    weight_of = dict(zip(lexicon.terms, lexicon.weights.tolist(), strict=True))
    lengths = np.linalg.norm(vectors, axis=1)
    assert ((lengths < 1e-5) | (np.abs(lengths - 1) < 1e-5)).all()
    for text, row in zip(asked, rows.toarray(), strict=True):
        told = {term: weight_of[term] for term in terms_of(text) if weight_of.get(term)}
        length = np.sqrt(sum(weight**2 for weight in told.values()))
        want = [told.get(term, 0) / max(length, 1e-9) for term in lexicon.terms]
        assert row.tolist() == pytest.approx(want, abs=1e-6)
    assert not rows[-2:].toarray().any()
    assert not vectors[-2:].any()


@pytest.mark.parametrize("texts", [[], [""], ["one", "two"], ["same text"] * 3, ["same"] * 200], ids=len)
def test_texts_that_cannot_be_told_apart_say_nothing(texts: list[str]) -> None:
    lexicon = Tfidf.fit(texts)
    assert not lexicon.vectors(lexicon.rows(["same text", "one"])).any()


def test_texts_with_rare_words_in_common_are_near() -> None:
    draw = np.random.default_rng(0)
    brands, things = [f"brand{n}" for n in range(40)], [f"thing{n}" for n in range(5)]
    texts = [f"{brand} {draw.choice(things)} number {n}" for n, brand in enumerate(brands * 5)]
    lexicon = Tfidf.fit(texts)
    one, other, foreign = lexicon.vectors(lexicon.rows(["brand7 thing1", "brand7 thing3", "brand8 thing1"]))
    assert one @ other > one @ foreign > -1e-3
