import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_rec.features.drift import ENOUGH, PARTS, Drift, by_popularity, reference, stability

COUNTS = st.lists(st.floats(0, 1e6), min_size=2, max_size=12).filter(lambda counts: sum(counts) > 0)


@given(COUNTS, st.data())
def test_the_index_is_zero_for_equal_shares_positive_otherwise_and_symmetric(
    counts: list[float], data: st.DataObject
) -> None:
    ours = np.array(counts)
    other = np.array(data.draw(st.permutations(counts)))
    assert stability(ours, 7 * ours) == pytest.approx(0, abs=1e-12)
    assert stability(ours, other) >= 0
    assert stability(ours, other) == pytest.approx(stability(other, ours))


def test_the_index_is_that_of_the_textbook() -> None:
    expected, actual = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.3, 0.3])
    by_hand = 0.1 * np.log(0.5 / 0.4) + 0.1 * np.log(0.3 / 0.2)
    assert stability(expected, actual) == pytest.approx(by_hand)


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=200))
def test_bins_of_equal_mass_hold_the_popular_first(counts: list[float]) -> None:
    sums = np.array(counts)
    bins = by_popularity(sums)
    assert (bins[sums == 0] == PARTS).all()
    assert (bins[sums > 0] < PARTS).all()
    order = np.argsort(-sums, kind="stable")
    assert (np.diff(bins[order]) >= 0).all()
    largest = sums.max(initial=0)
    for number in range(PARTS):  # a bin ends with the item that fills it
        assert sums[bins == number].sum() <= sums.sum() / PARTS + largest + 1e-3


class Shop:
    """Events of a fixed distribution, and what a training over them would have kept."""

    def __init__(self) -> None:
        self.draw = np.random.default_rng(0)
        self.popularity = np.array([0.0, *(1 / rank for rank in range(1, 301))])
        self.types = ("cart", "view")

    def events(self, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rows = self.draw.choice(301, count, p=self.popularity / self.popularity.sum())
        return rows, (self.draw.random(count) < 0.9).astype(int), self.draw.beta(2, 8, count)

    def drift(self) -> Drift:
        rows, types, scores = self.events(4_000)
        return Drift(reference(self.popularity, rows, self.types, types, scores), self.popularity)


def observe(shop: Shop, drift: Drift, events: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    rows, types, scores = events
    for begin in range(0, len(rows), 50):
        part = slice(begin, begin + 50)
        drift.observe(rows[part].tolist(), [shop.types[number] for number in types[part]], scores[part])


def test_the_same_events_are_no_drift_and_nothing_is_said_of_a_few() -> None:
    shop = Shop()
    drift = shop.drift()
    observe(shop, drift, shop.events(ENOUGH - 50))
    assert drift.indices() == {}
    observe(shop, drift, shop.events(20_000))
    assert drift.indices().keys() == {"items", "event_types", "scores"}
    assert max(drift.indices().values()) < 0.02


@pytest.mark.parametrize("what", ["items", "event_types", "scores"])
def test_what_has_drifted_is_told_and_the_rest_is_not(what: str) -> None:
    shop = Shop()
    drift = shop.drift()
    rows, types, scores = shop.events(20_000)
    observe(
        shop,
        drift,
        (
            rows[::-1] + 60 if what == "items" else rows,  # into the tail, and beyond what training met
            1 - types if what == "event_types" else types,
            scores / 3 if what == "scores" else scores,
        ),
    )
    found = drift.indices()
    assert found.pop(what) > 0.25
    assert max(found.values()) < 0.02


def test_what_training_never_met_counts_and_breaks_nothing() -> None:
    shop = Shop()
    drift = shop.drift()
    for _ in range(ENOUGH):
        drift.observe([100_000], ["share"], np.array([0.5]))
    assert min(drift.indices().values()) > 0.25
