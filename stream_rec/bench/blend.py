"""What the blend costs: a trained model's whole score on a log that it has not seen, beside the share that it keeps.

Scoring only candidates loses something if an item that would be among the best is no candidate. So some answers are
also made from the whole catalogue, with all parts of every item.
"""

import statistics
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from rich.progress import Progress
from torch import Tensor

from stream_rec.bench.report import listed
from stream_rec.bench.report import show as show_figures
from stream_rec.data import event_log
from stream_rec.errors import UserError
from stream_rec.evaluation.evaluate import split_of
from stream_rec.evaluation.predict import AT_ONCE, exact_retriever, predict, states_at
from stream_rec.evaluation.splits import Split
from stream_rec.features.online_statistics import OnlineStatistics
from stream_rec.features.text_encoder import TextEncoder
from stream_rec.models import model_store
from stream_rec.models.model_store import Model
from stream_rec.ranking.blend import BARRED, CandidateTable, ItemTower, Scored, score
from stream_rec.ranking.retrieval import NEAREST, ExactRetriever, Retrieved
from stream_rec.runtime.terminal import Terminal
from stream_rec.training.config import TrainConfig
from stream_rec.training.prepare import Prepared, reopen
from stream_rec.window import stride_of

TOP = 20


class BlendBenchOptions(NamedTuple):
    """What is measured."""

    model: Path
    events: Path
    columns: str = ""
    answers: int = 4_096
    """Answers in a run."""
    sample: int = 256
    """Answers that are also made from the whole catalogue."""
    runs: int = 3
    threads: int = 1


class World(NamedTuple):
    """A model, and what it has not seen of a log."""

    model: Model
    prepared: Prepared
    split: Split
    config: TrainConfig
    states: Tensor
    """Of the split's targets, (targets, width)."""
    items: ItemTower


def show(plan: BlendBenchOptions, stride: int | None, cache: Path, as_json: bool) -> None:
    """Measures, with a progress bar on stderr, and prints the figures. Raises `UserError` for a bad model or log."""
    torch.set_num_threads(plan.threads)
    with Progress(console=Terminal(stderr=True), transient=True) as bar:
        task = bar.add_task("answers", total=plan.runs + 1)
        world = open_world(plan, stride, cache)
        times, counts = [], []
        for _ in range(plan.runs):
            memory = remembered(world)
            began = time.perf_counter()
            counts = [len(table.rows) for _, table in scored(world, world.split, world.states, memory, NEAREST)]
            times.append((time.perf_counter() - began) / len(world.split.targets))
            bar.advance(task)
        kept = kept_share(world, plan.sample)
        bar.advance(task)
    figures = {
        "items": len(world.prepared.items),
        "answers": len(world.split.targets),
        "batch": AT_ONCE,
        "threads": plan.threads,
        "score_ms": round(1_000 * statistics.median(times), 3),
        "candidates": round(sum(counts) / len(world.split.targets), 1),
        "top_20_kept": round(kept, 4),
    }
    show_figures(listed(figures), figures, as_json)


def open_world(plan: BlendBenchOptions, stride: int | None, cache: Path) -> World:
    model = model_store.load(plan.model)
    log = event_log.read_events(plan.events, event_log.parse_columns(plan.columns))
    prepared = reopen(model, log.frame, TextEncoder(model.config.text_encoder, cache))
    split, _ = split_of(prepared.data, model, "prequential")
    split = split._replace(targets=split.targets[: plan.answers])
    if not len(split.targets):
        raise UserError("the log holds nothing that the model has not seen: train it with --first 0.8")
    capacity = model.config.capacity
    config = TrainConfig(encoder=model.config.encoder, capacity=capacity, stride=stride_of(capacity, stride))
    outputs, barred = exact_retriever(model.encoder, prepared)
    catalog = prepared.catalog
    items = ItemTower(outputs, barred, torch.from_numpy(catalog.categories), tuple(catalog.labels))
    return World(model, prepared, split, config, states_at(model.encoder, prepared, split.targets, config), items)


def remembered(world: World) -> OnlineStatistics:
    """The online memory as it was when the training ended."""
    memory = OnlineStatistics(world.model.config.horizons)
    memory.load(world.model.memory)
    return memory


@torch.inference_mode()
def scored(
    world: World, split: Split, states: Tensor, memory: OnlineStatistics, count: int
) -> Iterator[tuple[Scored, CandidateTable]]:
    """Answers the targets of `split` from the decoder's nearest `count` items and all other candidates, a step each.

    `states` (targets, width) are the users' before them.
    """
    nearest = ExactRetriever(world.items.outputs, world.items.unavailable)
    near = partial(_near, nearest, states, count)
    for _, table in predict(world.prepared, split, memory, near, world.config, lambda _: None):
        yield score(table, world.items, world.model.config.blend, TOP, exclude_seen=False), table


def _near(nearest: ExactRetriever, states: Tensor, count: int, which: slice) -> Retrieved:
    return nearest(states[which], count)


def kept_share(world: World, sample: int) -> float:
    """Mean share of the whole catalogue's best that are as good among the candidates."""
    split = world.split._replace(online=False).sample(sample, seed=0)
    states = states_at(world.model.encoder, world.prepared, split.targets, world.config)
    answers = (scored(world, split, states, remembered(world), count) for count in (NEAREST, len(world.items.outputs)))
    shares = []
    for (ours, _), (best, _) in zip(*answers, strict=True):
        real = best.scores > BARRED
        last = best.scores.where(real, torch.inf).amin(dim=1, keepdim=True)
        shares.append((ours.scores >= last).sum(dim=1).minimum(real.sum(dim=1)) / real.sum(dim=1))
    return float(torch.cat(shares).mean())
