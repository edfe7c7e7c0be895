"""A training as a person sees it: reads files, shows how far it is, writes the model folder, says how good it is.

torch takes seconds to import: that happens once what the person typed has been found to be right.
"""

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import msgspec
from rich.console import Console
from rich.table import Table

from stream_rec.config import Settings
from stream_rec.errors import UserError
from stream_rec.learn import logs
from stream_rec.learn.event_types import parse_weights
from stream_rec.learn.logs import Log
from stream_rec.learn.metrics import QUALITIES, qualities
from stream_rec.learn.progress import bars
from stream_rec.learn.protocol import Protocol
from stream_rec.messages import Item
from stream_rec.model.words import Words

if TYPE_CHECKING:
    from stream_rec.learn.card import Measured, MeasuredInterest
    from stream_rec.learn.recipe import Size, TrainConfig
    from stream_rec.learn.train import Trained
    from stream_rec.learn.tune import Tune
    from stream_rec.model.encoder import EncoderConfig


HEAD = 32
"""Width of an attention head of a decoder from scratch."""
PRETRAINED_DROPOUT = 0.1
"""On item tokens."""


class Plan(NamedTuple):
    """The options of `stream-rec train`."""

    events: Path
    items: Path | None
    out: Path
    columns: str = ""
    first: float = 1.0
    epochs: int | None = None
    width: int = 128
    layers: int | None = None
    base: str | None = None
    tune: str | None = None
    read: str = "items"
    template: str = Words().template
    event_tokens: int = Words().limit
    learning_rate: float = 2e-3
    validation: float = 0.1
    refit: bool = True
    goal: str | None = None
    weights: str = ""
    protocol: Protocol = "prequential"
    seed: int = 0
    threads: int | None = None
    overwrite: bool = False


def run(settings: Settings, plan: Plan) -> int:
    """Trains; returns the exit code, 130 after Ctrl-C. Raises `UserError` for what a person can put right."""
    logging.basicConfig(level=settings.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
    for name in ("transformers", "sentence_transformers", "httpx", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    _check(plan)
    console = Console(stderr=True)
    log, items = _read(plan, console)
    with console.status("loading torch"):
        from stream_rec.learn import checkpoint, train  # noqa: F401 - the slow import, under the status line
    checkpoints = checkpoint.Checkpoints(plan.out, "")
    if plan.overwrite:
        checkpoints.remove()
    try:
        trained = _train(settings, plan, log, items, console)
    except KeyboardInterrupt:
        console.print("interrupted: the same command goes on from the last whole epoch")
        return 130
    version = _save(trained, plan.out, plan.protocol, log)
    checkpoints.remove()
    Console().print(_table(trained.measured))
    if trained.measured.interest is not None:
        Console().print(_interest(trained.measured.interest))
    Console().print(f"model {version} in {plan.out}", highlight=False)
    return 0


def _check(plan: Plan) -> None:
    """Raises `UserError` for a number out of range and for a folder that is in use."""
    for name, value, low, high in (
        ("--first", plan.first, 0.01, 1.0),
        ("--validation", plan.validation, 0.01, 0.5),
        ("--epochs", 1 if plan.epochs is None else plan.epochs, 1, 10_000),
        ("--width", plan.width, 16, 8_192),
        ("--learning-rate", plan.learning_rate, 1e-6, 1.0),
    ):
        if not low <= value <= high:
            raise UserError(f"{name} is {value}: give {low:g} to {high:g}")
    if plan.base is None and (plan.tune or plan.read != "items"):
        raise UserError("--tune and --read words are for a pre-trained language model: name one with --base")
    _words(plan)
    if plan.width % HEAD:
        raise UserError(f"--width is {plan.width}: give a multiple of {HEAD}")
    if plan.out.exists() and not plan.out.is_dir():
        raise UserError(f"--out {plan.out} is a file: name a folder")
    if not plan.overwrite and (plan.out / "config.json").exists():
        raise UserError(f"{plan.out} holds a model already: choose another --out, or say --overwrite")


def _read(plan: Plan, console: Console) -> tuple[Log, Sequence[Item]]:
    log = logs.read_events(plan.events, logs.parse_columns(plan.columns))
    if log.dropped:
        console.print(f"{log.dropped:,} rows of {plan.events} can't be used and are left out")
    if plan.first < 1:
        log, _ = logs.split(log, plan.first)
    return log, logs.read_items(plan.items, like=log.columns.item) if plan.items else []


def _train(settings: Settings, plan: Plan, log: Log, items: Sequence[Item], console: Console) -> "Trained":
    import torch

    from stream_rec.learn import train
    from stream_rec.learn.recipe import Size
    from stream_rec.model.text import TextEncoder

    torch.set_num_threads(plan.threads or os.cpu_count() or 1)
    began = time.monotonic()
    texts = TextEncoder(settings.text_encoder, settings.cache_dir)
    config = _config(settings, plan, Size.of(len(log.frame)))
    with bars(console, stay=True) as progress:
        trained = train.train(log.frame, items, config, texts, plan.out, progress)
    console.print(f"trained in {time.monotonic() - began:.0f} s")
    return trained


def _config(settings: Settings, plan: Plan, size: "Size") -> "TrainConfig":
    from stream_rec.learn.recipe import TrainConfig

    return TrainConfig(
        encoder=_scratch(plan, size) if plan.base is None else _pretrained(plan, plan.base),
        tune=cast("Tune", plan.tune or ("full" if plan.base is None else "lora")),
        capacity=settings.capacity,
        stride=settings.move,
        epochs=plan.epochs or size.epochs,
        batch_tokens=size.batch_tokens,
        learning_rate=plan.learning_rate,
        validation=plan.validation,
        refit=plan.refit,
        goal=plan.goal,
        weights=parse_weights(plan.weights),
        protocol=plan.protocol,
        seed=plan.seed,
    )


def _scratch(plan: Plan, size: "Size") -> "EncoderConfig":
    from stream_rec.model.encoder import EncoderConfig

    heads = plan.width // HEAD
    return EncoderConfig(
        width=plan.width, layers=plan.layers, heads=heads, kv_heads=heads, inner=2 * plan.width, dropout=size.dropout
    )


def _pretrained(plan: Plan, base: str) -> "EncoderConfig":
    """Little dropout: the body has learnt without any, and from far more than a log."""
    from stream_rec.model.encoder import EncoderConfig

    return EncoderConfig(
        base=base,
        layers=plan.layers,
        dropout=0.0 if plan.read == "words" else PRETRAINED_DROPOUT,
        residual_dropout=0.0,
        words=_words(plan) if plan.read == "words" else None,
    )


def _words(plan: Plan) -> Words:
    try:
        return Words(plan.template, plan.event_tokens)
    except ValueError as error:
        raise UserError(f"--template, --event-tokens: {error}") from None


def _save(trained: "Trained", out: Path, protocol: Protocol, log: Log) -> str:
    """Writes the whole folder; returns the model's version."""
    from stream_rec.learn.card import card
    from stream_rec.model import folder

    version = folder.save(trained.model, out)
    model = trained.model._replace(version=version)
    measured = msgspec.json.encode(trained.measured)
    (out / "metrics.json").write_bytes(msgspec.json.format(measured, indent=2) + b"\n")
    (out / "README.md").write_text(
        card(model, trained.measured, trained.tune, protocol, len(log.frame), log.frame["user"].n_unique())
    )
    return version


def _table(measured: "Measured") -> Table:
    view = Table(title=f"Held out, {measured.predictions:,} predictions, the whole catalogue ranked")
    for heading in ("score", "HR@10", "NDCG@10", "MRR"):
        view.add_column(heading, justify="left" if heading == "score" else "right")
    for name, found in measured.rows().items():
        view.add_row(name, *(f"{found[figure]:.4f}" for figure in ("hr_at_10", "ndcg_at_10", "mrr")))
    return view


def _interest(measured: "MeasuredInterest") -> Table:
    view = Table(title=f"Interest: the probability of a {measured.goal}, given the next item; {measured.goals} of them")
    for heading in ("", *QUALITIES):
        view.add_column(heading, justify="right" if heading else "left")
    for name, found in measured.figures.items():
        view.add_row(name, *qualities(found))
    return view
