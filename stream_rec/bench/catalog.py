"""The index of a big catalogue against scoring all of it: the same answers to the same user states, by one process.

Item vectors are drawn to lie as those of trained models do (`catalogue`), because neighbours are easy to find in some
spaces and not to be found in uniform noise. docs/benchmarks.md compares them with real ones.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from stream_rec.bench.report import show as show_figures
from stream_rec.features.tokens import Numbers
from stream_rec.ranking.blend import Blend, ItemTower
from stream_rec.ranking.candidate_features import PARTS, TRANSITIONS, CandidateFeatures
from stream_rec.ranking.ranker import Ask, Ranker, RankingConfig
from stream_rec.ranking.retrieval import Retrieved
from stream_rec.runtime.terminal import Terminal

SCALE = 14.0
"""What a trained model multiplies its cosines with: that of the README's is 13.8."""
BLEND = Blend(decoder=0.9, transitions=0.8)
REMEMBERED = 50
"""Rows that the online memory names for each answer, beside the decoder's."""
STEPS = 5
"""Of the progress bar, for each size."""


class CatalogBenchOptions(NamedTuple):
    """What is measured."""

    items: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    width: int = 128
    batch: int = 256
    """Answers in a step."""
    runs: int = 3
    recalled: int = 512
    """Answers whose top 20 are compared."""
    threads: int = 1


class World(NamedTuple):
    """A catalogue, and user states (any, width) to answer."""

    items: ItemTower
    states: Tensor


def show(plan: CatalogBenchOptions, as_json: bool) -> None:
    """Measures, with a progress bar on stderr, and prints the figures."""
    torch.set_num_threads(plan.threads)
    with Progress(console=Terminal(stderr=True), transient=True) as bar:
        task = bar.add_task("catalogues", total=STEPS * len(plan.items))
        sizes = [measure(count, plan, lambda: bar.advance(task)) for count in plan.items]
    view = Table(box=None, show_header=False)
    for name in sizes[0]:
        view.add_row(name, *(f"{figures[name]:,}" for figures in sizes))
    show_figures(view, {"threads": plan.threads, "batch": plan.batch, "sizes": sizes}, as_json)


@torch.inference_mode()
def measure(count: int, plan: CatalogBenchOptions, progress: Callable[[], None]) -> dict[str, Any]:
    """The figures of a catalogue of `count` items; rates are answers a second, medians over the runs."""
    world = catalogue(count, plan.width, max(plan.batch * plan.runs, plan.recalled))
    asks = [remembering(count, plan.batch, seed) for seed in range(plan.runs)]
    progress()
    exact, indexed = Ranker(BLEND, RankingConfig(scoring="exact")), Ranker(BLEND, RankingConfig(scoring="ann"))
    exact.update(world.items, np.arange(count))
    build_s = _seconds(lambda: indexed.update(world.items, np.arange(count)))
    progress()
    rates: dict[str, list[float]] = {"exact": [], "indexed": []}
    for states, ask in zip(torch.split(world.states, plan.batch), asks, strict=False):
        for name, ranker in (("exact", exact), ("indexed", indexed)):
            ranker.rank(states, ask)
            rates[name].append(len(states) / _seconds(partial(ranker.rank, states, ask)))
    progress()
    found = indexed.recall(world.states[: plan.recalled], remembering(count, plan.recalled, 0, rows=0))
    progress()
    changed = np.arange(1, 1 + min(256, count // 10))
    upsert_s = _seconds(lambda: indexed.update(world.items, changed))
    progress()
    median = {name: statistics.median(found) for name, found in rates.items()}
    return {
        "items": count,
        "exact_per_s": round(median["exact"], 1),
        "indexed_per_s": round(median["indexed"], 1),
        "ratio": round(median["indexed"] / median["exact"], 2),
        "recall_at_20": round(found.recalled / found.sampled, 4),
        "build_s": round(build_s, 3),
        "upsert_ms": round(1_000 * upsert_s, 3),
        "index_mb": round(indexed.index_bytes / 1e6, 2),
        "vectors_mb": round(world.items.outputs.nbytes / 1e6, 1),
    }


def catalogue(count: int, width: int, states: int) -> World:
    """`count` rows, the first of them the unknown item, and user states.

    An item is its category's centre, plus what its family has of its own, plus what it has of its own: 55%, 40% and 0.1
    to 30% of the energy. All three are Gaussian, with energies that fall by a factor e every 24 directions of 128, as
    those of item vectors trained over whitened sentence embeddings do. Categories (three times the root of the items)
    have sizes by a power law, families have 8 items on average and some of them many. The vectors are centred, of unit
    length, times `SCALE`. A state is an item and as much noise of the same kind: as far from its nearest items as those
    of trained models are.
    """
    draw = np.random.default_rng(0)
    categories, families = max(2, int(3 * count**0.5)), max(2, count // 8)
    spread = np.exp(-np.arange(width) / (width * 24 / 128))
    spread = np.sqrt(spread / spread.sum()).astype(np.float32)

    def noise(rows: int, energy: float | np.ndarray[Any, Any]) -> Tensor:
        sizes = np.sqrt(np.broadcast_to(energy, rows)).astype(np.float32)[:, None]
        return torch.from_numpy(draw.standard_normal((rows, width), np.float32) * spread * sizes)

    popularity = 1 / (8 + np.arange(categories))
    category = draw.choice(categories, families, p=popularity / popularity.sum())
    centres = noise(categories, 0.55)[category] + noise(families, 0.4)
    sizes = 0.3 + draw.pareto(2.0, families)
    family = draw.choice(families, count, p=sizes / sizes.sum())
    vectors = centres[family]
    alike = np.exp(draw.uniform(np.log(0.001), np.log(0.3), families))
    for rows in np.array_split(np.arange(count), max(1, count // 100_000)):
        vectors[rows] += noise(len(rows), alike[family[rows]])
    vectors -= vectors.mean(dim=0)
    vectors = torch.nn.functional.normalize(vectors, dim=1)
    meant = vectors[torch.from_numpy(draw.integers(1, count, states))]
    barred = torch.zeros(count, dtype=torch.bool)
    barred[0] = True
    labels = tuple(map(str, range(categories)))
    items = ItemTower(vectors.mul_(SCALE), barred, torch.from_numpy(category[family]), labels)
    return World(items, torch.nn.functional.normalize(meant, dim=1) + noise(states, 1.0))


def remembering(count: int, answers: int, seed: int, rows: int = REMEMBERED) -> Ask:
    """Adds some `rows` of `count` to the decoder's candidates of each answer, as an online memory would.

    With 0 of them nothing but the decoder's is there: the memory can't help to recall anything.
    """
    draw = np.random.default_rng(seed)
    known = draw.integers(1, count, (answers, rows))
    weights = draw.random((answers, rows), np.float32)

    def ask(near: Retrieved) -> list[CandidateFeatures]:
        return [_found(*one) for one in zip(near.rows.numpy(), known, weights, strict=False)]

    return ask


def _found(near: Numbers, known: Numbers, weights: NDArray[np.float32]) -> CandidateFeatures:
    rows, place = np.unique(np.concatenate([known, near]), return_inverse=True)
    columns = np.zeros((len(rows), len(PARTS)), np.float32)
    columns[place[: len(known)], TRANSITIONS] = weights
    return CandidateFeatures(rows, columns)


def _seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
