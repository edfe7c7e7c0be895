"""Trains one model, or the same model with several seeds: progress, the model folder, and what was measured."""

import statistics
import time
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec import structs
from rich.table import Table

from stream_rec.config import Settings
from stream_rec.data.source import Source
from stream_rec.errors import UserError
from stream_rec.evaluation.metrics import QUALITIES, qualities
from stream_rec.features.text_encoder import TextEncoder
from stream_rec.models import model_store
from stream_rec.models.model_store import Model
from stream_rec.runtime.progress import bars
from stream_rec.runtime.terminal import Terminal
from stream_rec.serving import device as devices
from stream_rec.training import checkpoint, model_card, options, train
from stream_rec.training.config import TrainConfig
from stream_rec.training.model_card import Measured, MeasuredInterest, Origin, card
from stream_rec.training.options import TrainOptions
from stream_rec.training.train import Trained

FIGURES = {"hr_at_10": "HR@10", "ndcg_at_10": "NDCG@10", "mrr": "MRR"}


class Given(NamedTuple):
    """What a command trains on, whichever models it makes of it."""

    settings: Settings
    source: Source
    before: Model | None
    """The model that is trained further."""
    console: Terminal
    """For what is not the result: stderr."""


def config_of(given: Given, chosen: TrainOptions) -> TrainConfig:
    """The settings of a training."""
    log = given.source.log
    return structs.replace(
        options.config_of(given.settings, chosen, len(log.frame), given.before), has_time=log.has_time
    )


def train_one(given: Given, chosen: TrainOptions, config: TrainConfig) -> Trained:
    """Trains one model and writes its whole folder."""
    out, frame = chosen.out, given.source.log.frame
    checkpoints = checkpoint.Checkpoints(out, "")
    if chosen.overwrite:
        checkpoints.remove()
    trained = fit(given, config, out)
    model = trained.model._replace(version=model_store.save(trained.model, out))
    measured = trained.measured
    (out / "metrics.json").write_bytes(msgspec.json.format(msgspec.json.encode(measured), indent=2) + b"\n")
    origin = Origin(
        log=given.source.about,
        events=len(frame),
        users=frame["user"].n_unique(),
        continues=f"model `{given.before.version}`" if given.before is not None else "",
        plot=model_card.draw_picture(measured, out),
    )
    (out / "README.md").write_text(card(model, measured, trained.tune, chosen.protocol, origin), encoding="utf-8")
    checkpoints.remove()
    return trained._replace(model=model)


def fit(given: Given, config: TrainConfig, out: Path, before: str = "") -> Trained:
    """Trains with progress bars; with `before` in front of them, they vanish at the end."""
    began = time.monotonic()
    name = given.settings.text_encoder if given.before is None else given.before.config.text_encoder
    device = devices.find(given.settings.device)
    texts = TextEncoder(name, given.settings.cache_dir, str(device))
    with bars(given.console, stay=not before, before=before) as progress:
        trained = train.train(
            given.source.log.frame, given.source.items, config, texts, out, progress, given.before, device
        )
    if not before:
        given.console.print(f"trained in {time.monotonic() - began:.0f} s")
    return trained


def show(trained: Trained, chosen: TrainOptions) -> None:
    """Prints what training measured, and where the model is."""
    Terminal().print(_table(trained.measured))
    if trained.measured.interest is not None:
        Terminal().print(_interest(trained.measured.interest))
    if (spent := trained.model.config.privacy) is not None:
        Terminal().print(
            f"private: epsilon {spent.epsilon:.2f}, delta {spent.delta:.1e} for each of {spent.users:,} users; of the "
            "encoder's weights, see README.md in the model's folder",
            highlight=False,
        )
    Terminal().print(f"model {trained.model.version} in {chosen.out}", highlight=False)


def _table(measured: Measured) -> Table:
    view = Table(title=f"Held out, {measured.predictions:,} predictions, the whole catalogue ranked")
    for heading in ("score", "HR@10", "NDCG@10", "MRR"):
        view.add_column(heading, justify="left" if heading == "score" else "right")
    for name, found in measured.rows().items():
        view.add_row(name, *(f"{found[figure]:.4f}" for figure in ("hr_at_10", "ndcg_at_10", "mrr")))
    return view


def _interest(measured: MeasuredInterest) -> Table:
    view = Table(title=f"Interest: the probability of a {measured.goal}, given the next item; {measured.goals} of them")
    for heading in ("", *QUALITIES):
        view.add_column(heading, justify="right" if heading else "left")
    for name, found in measured.figures.items():
        view.add_row(name, *qualities(found))
    return view


def train_seeds(given: Given, plan: TrainOptions, count: int) -> None:
    """Trains `count` models into folders of `plan.out`, and prints their figures, mean and spread.

    Nothing else is written there, so that `stream-rec evaluate OUT/*` measures them all. What an interrupted command
    has finished stays as it is. Raises `UserError` for a finished model of other settings or data.
    """
    found: dict[int, Measured] = {}
    for seed in range(plan.seed, plan.seed + count):
        own = plan._replace(seed=seed, out=plan.out / f"seed-{seed}")
        given.console.print(f"seed {seed}", highlight=False)
        found[seed] = _finished_seed(given, own) or train_one(given, own, config_of(given, own)).measured
    Terminal().print(seeds_table(found))
    Terminal().print(f"{len(found)} models in {plan.out}", highlight=False)


def _finished_seed(given: Given, plan: TrainOptions) -> Measured | None:
    """What was measured of the model that is there already; None where there is none, or it is to be overwritten."""
    if plan.overwrite or not (plan.out / "config.json").exists():
        return None
    wanted = checkpoint.fingerprint(config_of(given, plan), given.source.log.frame, given.source.items)
    try:
        measured = msgspec.json.decode((plan.out / "metrics.json").read_bytes(), type=Measured)
    except (OSError, msgspec.MsgspecError):
        measured = None
    if measured is None or measured.fingerprint != wanted:
        raise UserError(f"{plan.out} holds a model of other settings or data: choose another --out, or say --overwrite")
    return measured


def seeds_table(found: dict[int, Measured]) -> Table:
    """Of the blend, on the held-out predictions that fitted no weight."""
    view = Table(title="Held out, the blend by seed; spread is the standard deviation")
    view.add_column("seed", justify="right")
    for heading in FIGURES.values():
        view.add_column(heading, justify="right")
    for seed, measured in found.items():
        view.add_row(str(seed), *(f"{measured.blend[name]:.4f}" for name in FIGURES))
    columns = [[measured.blend[name] for measured in found.values()] for name in FIGURES]
    view.add_section()
    view.add_row("mean", *(f"{statistics.mean(column):.4f}" for column in columns))
    if len(found) > 1:
        view.add_row("spread", *(f"{statistics.stdev(column):.4f}" for column in columns))
    return view
