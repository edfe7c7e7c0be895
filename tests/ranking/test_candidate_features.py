import hashlib
from collections import defaultdict
from math import exp, isfinite, log, log1p, sqrt
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_rec.features import online_statistics
from stream_rec.features.catalog import NO_CATEGORY
from stream_rec.features.item_similarity import NeighbourTable, by_direction
from stream_rec.features.online_statistics import HalfLives, OnlineStatistics
from stream_rec.features.tokens import UNKNOWN
from stream_rec.ranking import candidate_features
from stream_rec.ranking.candidate_features import DECODER, PARTS, CandidateFeatures, FeatureExtractor, Items

ROWS = 16
HORIZONS = HalfLives(lasting=50.0, recent=5.0)
LOGS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(UNKNOWN, ROWS - 1), st.integers(0, 9)), min_size=1, max_size=50
)


class World(NamedTuple):
    evidence: FeatureExtractor
    text: np.ndarray
    words: np.ndarray
    """Vectors."""


def world() -> World:
    draw = np.random.default_rng(0)
    text, words = draw.normal(size=(2, ROWS, 4)).astype(np.float32)
    text[UNKNOWN] = words[UNKNOWN] = words[5] = 0
    every = np.arange(1, ROWS)
    alike = [NeighbourTable.empty(ROWS).updated(ROWS, every, by_direction(vectors)) for vectors in (text, words)]
    prices = draw.normal(size=ROWS).astype(np.float32)
    prices[[UNKNOWN, 3, 4]] = np.nan
    items = Items(*alike, draw.integers(0, 3, ROWS), prices)
    evidence = FeatureExtractor(OnlineStatistics(HORIZONS), items, np.zeros(ROWS, np.int32))
    return World(evidence, text, words)


class Naive:
    """The parts as their description has them, of a log of (user, row, time)."""

    def __init__(self, log: list[tuple[int, int, float]], now: float, world: World) -> None:
        self.world = world
        self.follow: dict[tuple[int, int], float] = defaultdict(float)
        self.often: dict[int, float] = defaultdict(float)
        self.lately: dict[int, float] = defaultdict(float)
        self.held: dict[int, list[int]] = defaultdict(list)
        for user, row, time in log:
            known = self.held[user]
            known.append(row)
            if row == UNKNOWN:
                continue
            self.often[row] += 2 ** ((time - now) / HORIZONS.lasting)
            self.lately[row] += 2 ** ((time - now) / HORIZONS.recent)
            for distance, before in enumerate(known[-2:-7:-1], 1):
                if before != UNKNOWN:
                    self.follow[before, row] += 2 ** ((time - now) / HORIZONS.lasting) / distance

    def part(self, name: str, window: list[int], j: int) -> float:
        last, items = window[-1], self.world.evidence.items
        recent = list(enumerate(window[:-6:-1], 1))
        match name:
            case "transitions":
                return log1p(5 * sum(self.follow[h, j] / d for d, h in recent))
            case "reverse":
                return log1p(5 * sum(self.follow[j, h] / d for d, h in recent))
            case "together":
                both = {h: self.follow[h, j] + self.follow[j, h] for _, h in recent}
                return log1p(20 * sum(both[h] / sqrt((self.often[h] + 1) * (self.often[j] + 1)) / d for d, h in recent))
            case "text":
                return log1p(10 * sum(0.7 ** (d - 1) * cosine(self.world.text, h, j) ** 3 for d, h in recent[:3]))
            case "words":
                return log1p(10 * sum(0.85 ** (d - 1) * cosine(self.world.words, h, j) for d, h in recent))
            case "popularity":
                return log1p(self.often[j])
            case "recency":
                return log(self.lately[j] + 0.05)
            case "session":
                return sum(0.8**d for d, h in recent if h == j) * (j != last)
            case "again":
                return log1p(window.count(j)) * (j != last)
            case "category":
                return float(items.categories[j] == items.categories[last] != NO_CATEGORY and j not in window)
            case "price":
                apart = abs(float(items.prices[j]) - float(items.prices[last]))
                return exp(-3 * apart) if isfinite(apart) else 0.0
            case "repeat":
                return float(j == last)
            case _:
                return 0.0


def cosine(vectors: np.ndarray, h: int, j: int) -> float:
    norms = np.linalg.norm(vectors[h]) * np.linalg.norm(vectors[j])
    return max(0.0, float(vectors[h] @ vectors[j] / norms)) if norms and h != j else 0.0


def ask(
    world: World, log: list[tuple[int, int, float]], user: int, near: list[int]
) -> tuple[Naive, list[int], CandidateFeatures]:
    naive = Naive(log, log[-1][2], world)
    held: dict[int, list[int]] = defaultdict(list)
    for whose, row, time in log:
        held[whose].append(row)
        world.evidence.memory.learn_last(held[whose][-online_statistics.REACH - 1 :], time)
    window = naive.held[user]
    return naive, window, world.evidence.extract(window, np.array(near, np.int64))


def timed(log: list[tuple[int, int, int]]) -> list[tuple[int, int, float]]:
    times = np.cumsum([wait for _, _, wait in log])
    return [(user, row, float(time)) for (user, row, _), time in zip(log, times, strict=True)]


@settings(max_examples=60, deadline=None)
@given(LOGS, st.lists(st.integers(UNKNOWN, ROWS - 1), max_size=8))
def test_every_column_is_what_its_description_says(log, near) -> None:
    naive, window, found = ask(world(), timed(log), log[-1][0], near)
    for at, row in enumerate(found.rows.tolist()):
        for column, name in enumerate(PARTS):
            if column != DECODER:
                want = naive.part(name, window, row)
                assert found.columns[at, column] == pytest.approx(want, rel=1e-4, abs=1e-4), (name, row)


@settings(max_examples=60, deadline=None)
@given(LOGS, st.lists(st.integers(UNKNOWN, ROWS - 1), max_size=8))
def test_the_candidates_are_all_that_has_something_to_do_with_the_user_and_none_twice(log, near) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(online_statistics, "POPULAR", 2)
        naive, window, found = ask(world(), timed(log), log[-1][0], near)
        recent = window[:-6:-1]
        followers = {pair[1 - way] for pair in naive.follow for way in (0, 1) if pair[way] in recent}
        alike = {
            j
            for vectors, reach in ((naive.world.text, 3), (naive.world.words, 5))
            for h in recent[:reach]
            for j in range(ROWS)
            if cosine(vectors, h, j) > 0
        }
        popular = set(naive.world.evidence.memory.recency.highest.tolist())
        rows = found.rows.tolist()
        assert len(set(rows)) == len(rows)
        assert set(rows) == {*near, *window, *followers, *alike, *popular}
        assert found.columns.shape == (len(rows), len(PARTS))


def test_an_event_from_long_ago_or_far_ahead_has_finite_parts() -> None:
    draw = np.random.default_rng(0)
    log = [(0, int(row), float(time)) for time, row in enumerate(draw.integers(1, ROWS, 100), 10**9)]
    for time in (0.0, 1.0, 1e9 - 200 * HORIZONS.lasting, 1e11):
        evidence = world().evidence
        for at in range(len(log)):
            evidence.memory.learn_last([row for _, row, _ in log[max(0, at - 5) : at + 1]], log[at][2])
        evidence.memory.learn_last([1, 2, 3], time)
        with np.errstate(over="raise", divide="raise", invalid="raise"):
            found = evidence.extract([1, 2, 3], np.arange(1, 5)).columns
        assert np.isfinite(found).all()


@settings(max_examples=60, deadline=None)
@given(LOGS, st.floats(0, 1e9), st.integers(1, ROWS - 1))
def test_an_event_that_comes_late_moves_no_column_of_what_it_is_not_about(log, late, row) -> None:
    """As of now, an event from long ago is next to nothing, and all others are as recent as before."""
    log = [(user, item, wait + 1e9) for user, item, wait in timed(log)]
    _, window, before = ask(made := world(), log, log[-1][0], list(range(1, ROWS)))
    made.evidence.memory.learn_last([row], 1e9 - 60 * HORIZONS.lasting - late)
    after = made.evidence.extract(window, np.arange(1, ROWS))
    columns = dict(zip(before.rows.tolist(), before.columns, strict=True))
    assert all(columns[at] == pytest.approx(after.columns[place], abs=1e-6) for place, at in enumerate(after.rows))


def test_asking_again_gives_the_same() -> None:
    log = [(0, row, float(row)) for row in range(1, ROWS)]
    made = world()
    _, window, first = ask(made, log, 0, [3, 4])
    again = made.evidence.extract(window, np.array([3, 4]))
    assert np.array_equal(first.rows, again.rows)
    assert np.array_equal(first.columns, again.columns)


def test_there_is_room_for_every_candidate_where_no_two_items_have_a_neighbour_in_common() -> None:
    near, window = 50, [1, 2, 3, 4, 5]
    rows = 6 + 2 * near * len(window)
    text, words = (
        NeighbourTable(np.zeros((rows, near), np.int32), np.zeros((rows, near), np.float32)) for _ in range(2)
    )
    for number, row in enumerate(window):
        for likeness, begin in ((text, 6), (words, 6 + near * len(window))):
            likeness.rows[row] = begin + number * near + np.arange(near)
            likeness.cosines[row] = 1.0
    items = Items(text, words, np.zeros(rows, np.int64), np.zeros(rows, np.float32))
    evidence = FeatureExtractor(OnlineStatistics(HORIZONS), items, np.zeros(rows, np.int32))
    found = evidence.extract(window, np.zeros(0, np.int64))
    of_text = {int(row) for last in window[-3:] for row in text.rows[last]}
    of_words = {int(row) for last in window for row in words.rows[last]}
    assert set(found.rows.tolist()) == {*window, *of_text, *of_words}
    assert len(found.rows) == len(window) + 8 * near


def test_what_another_version_compiled_is_removed_and_what_this_one_compiled_stays(tmp_path: Path) -> None:
    stale = tmp_path / "candidate_features._enter-192.py311.nbi"
    other = tmp_path / "another_module._enter-192.py311.nbi"
    for path in (stale, other):
        path.write_bytes(b"names a class that is no more")
    candidate_features._remove_stale.__wrapped__(tmp_path)
    assert (stale.exists(), other.exists()) == (False, True)
    stale.write_bytes(b"of this version")
    candidate_features._remove_stale.__wrapped__(tmp_path)
    assert stale.exists()


def test_compiled_code_stands_beside_the_digest_of_its_source() -> None:
    folder = Path(candidate_features._enter.stats.cache_path)
    source = Path(candidate_features.__file__).read_bytes()
    assert (folder / "candidate_features.sha256").read_text() == hashlib.sha256(source).hexdigest()
