"""The words of item texts: TF-IDF, for what shares rare words such as a brand or a model's number."""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import svds

TERMS = 50_000
"""Words and pairs of words that are known, the most frequent ones."""
DIRECTIONS = 128
"""Of the singular value decomposition, in item vectors."""
_WORD = re.compile(r"[^\W_]+")


class Tfidf(NamedTuple):
    """Terms that at least two of the texts have that it was fitted on, and what they weigh.

    Terms are words, pairs of neighbours, and the first word once more, for it is often the brand.
    """

    terms: tuple[str, ...]
    weights: NDArray[np.float32]
    """log(texts / texts with the term), (terms,)."""
    directions: NDArray[np.float32]
    """Right singular vectors of the fitted rows, (terms, directions): what a row says in few numbers."""

    @classmethod
    def fit(cls, texts: Sequence[str]) -> Self:
        from sklearn.feature_extraction.text import CountVectorizer  # takes a second, and serving does without

        counter = CountVectorizer(analyzer=terms_of, binary=True, min_df=2, max_features=TERMS, dtype=np.float32)
        try:
            found = counter.fit_transform(texts)
        except ValueError:  # no term twice
            return cls((), np.zeros(0, np.float32), np.zeros((0, 0), np.float32))
        weights = np.log(len(texts) / np.asarray(found.sum(0)).ravel()).astype(np.float32)
        lexicon = cls(tuple(counter.get_feature_names_out().tolist()), weights, np.zeros((len(weights), 0), np.float32))
        rows = lexicon.rows(texts)
        count = min(DIRECTIONS, min(rows.shape) - 1)
        if count < 1 or not rows.data.any():  # all texts are alike
            return lexicon
        directions = svds(rows, count, random_state=0, return_singular_vectors="vh")[2].T
        return lexicon._replace(directions=np.ascontiguousarray(directions, np.float32))

    @property
    def dim(self) -> int:
        """Of `vectors`."""
        return int(self.directions.shape[1])

    def rows(self, texts: Sequence[str]) -> csr_matrix:
        """TF-IDF rows of unit length (zero for a text without a known term), (len(texts), terms)."""
        number_of = {term: number for number, term in enumerate(self.terms)}
        found = [sorted({number_of[term] for term in terms_of(text) if term in number_of}) for text in texts]
        columns = np.array([number for numbers in found for number in numbers], np.int32)
        ends = np.cumsum([0, *map(len, found)])
        values = self.weights[columns]
        norms = np.sqrt(np.add.reduceat(np.append(values, 0) ** 2, ends[:-1])) if len(found) else np.zeros(0)
        lengths = np.diff(ends)
        values = values / np.repeat(np.maximum(norms, 1e-9), lengths)
        return csr_matrix((values.astype(np.float32), columns, ends), (len(texts), len(self.terms)))

    def vectors(self, rows: csr_matrix) -> NDArray[np.float32]:
        """`rows` in few numbers, of unit length or zero, (len(rows), directions)."""
        found = np.asarray(rows @ self.directions, np.float32)
        unit: NDArray[np.float32] = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)
        return unit


def terms_of(text: str) -> Iterator[str]:
    """The terms of a text.

    >>> list(terms_of("Trail shoe"))
    ['trail', 'shoe', 'trail shoe', '^trail']
    """
    words = _WORD.findall(text.lower())
    yield from words
    yield from (f"{one} {other}" for one, other in pairwise(words))
    yield from (f"^{word}" for word in words[:1])
