"""What the blend costs: a trained model's whole score on a log that it has not seen, beside the share that it keeps.

Scoring only candidates loses something if an item that would be among the best is no candidate. So some answers are
also made from the whole catalogue, with all parts of every item.
"""

import statistics
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from stream_rec.bench.figures import listed
from stream_rec.bench.figures import show as show_figures
from stream_rec.errors import UserError
from stream_rec.learn import dataset, logs
from stream_rec.learn.evaluation import split_of
from stream_rec.learn.predict import everything, shop_of, states_at, teach
from stream_rec.learn.prepare import reopen
from stream_rec.learn.recipe import TrainConfig
from stream_rec.model import folder
from stream_rec.model.counters import Memory
from stream_rec.model.nearest import NEAREST, Near
from stream_rec.model.parts import Asked, Found
from stream_rec.model.scorer import BARRED, ItemSide, Table, score
from stream_rec.model.text import TextEncoder
from stream_rec.model.tokens import Numbers

TOP = 20


class Plan(NamedTuple):
    """What is measured."""

    model: Path
    events: Path
    columns: str = ""
    answers: int = 4_096
    """Answers in a run."""
    batch: int = 256
    sample: int = 256
    """Answers that are also made from the whole catalogue."""
    runs: int = 3
    threads: int = 1


def show(plan: Plan, stride: int, cache: Path, as_json: bool) -> None:
    """Measures, with a progress bar on stderr, and prints the figures. Raises `UserError` for a bad model or log."""
    torch.set_num_threads(plan.threads)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("answers", total=plan.runs + 1)
        model = folder.load(plan.model)
        log = logs.read_events(plan.events, logs.parse_columns(plan.columns))
        prepared = reopen(model, log.frame, TextEncoder(model.config.text_encoder, cache))
        split, _ = split_of(prepared.data, model, "prequential")
        targets = split.targets[: plan.answers]
        if len(targets) < plan.batch:
            raise UserError(f"the log holds {len(targets)} events that the model has not seen: give at least --batch")
        config = TrainConfig(encoder=model.config.encoder, capacity=model.config.capacity, stride=stride)
        states = states_at(model.encoder, prepared, targets, config)
        nearest = everything(model.encoder, prepared)
        categories = torch.from_numpy(prepared.catalog.categories)
        items = ItemSide(nearest.outputs, nearest.barred, categories, tuple(prepared.catalog.labels))
        memory = Memory(model.config.horizons)
        shop = shop_of(prepared, memory)

        def asked(place: int) -> Asked:
            window = dataset.served(prepared.data, place, config.capacity, config.stride)
            return Asked(prepared.data.rows[window].tolist(), float(prepared.data.times[place - 1]))

        def answer(places: Numbers, near: Near) -> list[Found]:
            found = []
            for place, rows in zip(places.tolist(), near.rows.numpy(), strict=True):
                teach(prepared, memory, np.array([place - 1]))
                found.append(shop.ask(asked(place), rows))
            return found

        times, counts = [], []
        with torch.inference_mode():
            for _ in range(plan.runs):
                memory.load(model.memory)
                began = time.perf_counter()
                for begin in range(0, len(targets), plan.batch):
                    near = nearest(states[begin : begin + plan.batch], NEAREST)
                    table = Table.of(near, answer(targets[begin : begin + plan.batch], near))
                    score(table, items, model.config.blend, TOP, exclude_seen=False)
                    counts.append(len(table.rows) / len(near.rows))
                times.append((time.perf_counter() - began) / len(targets))
                bar.advance(task)
            kept = []
            for at in np.linspace(0, len(targets) - 1, plan.sample).astype(int).tolist():
                best = []
                for count in (NEAREST, len(prepared.catalog)):
                    near = nearest(states[at : at + 1], count)
                    table = Table.of(near, [shop.ask(asked(int(targets[at])), near.rows[0].numpy())])
                    best.append(score(table, items, model.config.blend, TOP, exclude_seen=False))
                real = best[1].scores[0] > BARRED
                last = best[1].scores[0][real].min()
                kept.append(((best[0].scores[0] >= last).sum() / real.sum()).clamp(max=1).item())
            bar.advance(task)
    figures = {
        "items": len(prepared.catalog) - 1,
        "answers": len(targets),
        "batch": plan.batch,
        "threads": plan.threads,
        "score_ms": round(1_000 * statistics.median(times), 3),
        "candidates": round(statistics.mean(counts), 1),
        "top_20_kept": round(statistics.mean(kept), 4),
    }
    show_figures(listed(figures), figures, as_json)
