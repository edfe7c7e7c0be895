"""A training as a person sees it: reads files, shows how far it is, writes the model folder, says how good it is."""

import logging
import os
import time
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from stream_rec.config import Settings
from stream_rec.errors import UserError
from stream_rec.learn import checkpoint, logs, train
from stream_rec.learn.card import Measured, card
from stream_rec.learn.train import TrainConfig
from stream_rec.model import folder
from stream_rec.model.encoder import EncoderConfig
from stream_rec.model.text import TextEncoder


class Plan(NamedTuple):
    """The options of `stream-rec train`."""

    events: Path
    items: Path | None
    out: Path
    columns: str = ""
    first: float = 1.0
    epochs: int = 12
    width: int = 128
    layers: int | None = None
    base: str | None = None
    learning_rate: float = 2e-3
    validation: float = 0.1
    refit: bool = True
    half_life_days: float = 14.0
    seed: int = 0
    threads: int | None = None
    overwrite: bool = False


def run(settings: Settings, plan: Plan) -> int:
    """Trains; returns the exit code, 130 after Ctrl-C. Raises `UserError` for what a person can put right."""
    logging.basicConfig(level=settings.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
    for name in ("transformers", "sentence_transformers", "httpx", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    config = _config(settings, plan)
    _clear(plan)
    torch.set_num_threads(plan.threads or os.cpu_count() or 1)
    console = Console(stderr=True)
    try:
        trained, events, users = _train(settings, plan, config, console)
    except KeyboardInterrupt:
        console.print("interrupted: the same command goes on from the last whole epoch")
        return 130
    version = folder.save(trained.model, plan.out)
    model = trained.model._replace(version=version)
    (plan.out / "metrics.json").write_bytes(
        msgspec.json.format(msgspec.json.encode(trained.measured), indent=2) + b"\n"
    )
    (plan.out / "README.md").write_text(card(model, trained.measured, events, users))
    checkpoint.Checkpoints(plan.out, "").remove()
    Console().print(_table(trained.measured))
    Console().print(f"model {version} in {plan.out}", highlight=False)
    return 0


def _train(settings: Settings, plan: Plan, config: TrainConfig, console: Console) -> tuple[train.Trained, int, int]:
    """What was trained, on how many events of how many users."""
    log = logs.read_events(plan.events, logs.parse_columns(plan.columns))
    if log.dropped:
        console.print(f"{log.dropped:,} rows of {plan.events} can't be used and are left out")
    if plan.first < 1:
        log, _ = logs.split(log, plan.first)
    items = logs.read_items(plan.items, like=log.columns.item) if plan.items else []
    began = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        tasks: dict[str, TaskID] = {}

        def progress(what: str, done: float, total: float) -> None:
            stage = what.split(",")[0]
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], description=what, completed=done, total=total)

        texts = TextEncoder(settings.text_encoder, settings.cache_dir)
        trained = train.train(log.frame, items, config, texts, plan.out, progress)
    console.print(f"trained in {time.monotonic() - began:.0f} s")
    return trained, len(log.frame), log.frame["user"].n_unique()


def _config(settings: Settings, plan: Plan) -> TrainConfig:
    for name, value, low, high in (
        ("--first", plan.first, 0.01, 1.0),
        ("--validation", plan.validation, 0.01, 0.5),
        ("--epochs", plan.epochs, 1, 10_000),
        ("--width", plan.width, 16, 8_192),
        ("--learning-rate", plan.learning_rate, 1e-6, 1.0),
        ("--half-life-days", plan.half_life_days, 1e-3, 1e6),
    ):
        if not low <= value <= high:
            raise UserError(f"{name} is {value}: give {low:g} to {high:g}")
    if plan.width % 32:
        raise UserError(f"--width is {plan.width}: give a multiple of 32")
    encoder = EncoderConfig(
        width=plan.width,
        heads=plan.width // 32,
        kv_heads=plan.width // 32,
        inner=2 * plan.width,
        layers=plan.layers,
        base=plan.base,
    )
    return TrainConfig(
        encoder=encoder,
        capacity=settings.capacity,
        stride=settings.move,
        epochs=plan.epochs,
        learning_rate=plan.learning_rate,
        validation=plan.validation,
        refit=plan.refit,
        half_life=plan.half_life_days * 86_400,
        seed=plan.seed,
    )


def _clear(plan: Plan) -> None:
    """Makes room in the folder, if the person said so."""
    if plan.out.exists() and not plan.out.is_dir():
        raise UserError(f"--out {plan.out} is a file: name a folder")
    if plan.overwrite:
        checkpoint.Checkpoints(plan.out, "").remove()
    elif (plan.out / "config.json").exists():
        raise UserError(f"{plan.out} holds a model already: choose another --out, or say --overwrite")


def _table(measured: Measured) -> Table:
    view = Table(title="Held-out time, the whole catalogue ranked")
    for heading in ("score", "HR@10", "NDCG@10", "MRR", "predictions"):
        view.add_column(heading, justify="left" if heading == "score" else "right")
    for name in ("decoder", "transitions", "blend"):
        found = getattr(measured, name)
        figures = (found.hit_rate_at_10, found.ndcg_at_10, found.mrr)
        view.add_row(name, *(f"{value:.4f}" for value in figures), f"{found.predictions:,}")
    return view
