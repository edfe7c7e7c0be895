"""The same training with several seeds: how much of a figure is chance."""

import statistics

import msgspec
from rich.table import Table

from stream_rec.errors import UserError
from stream_rec.runtime.terminal import Terminal
from stream_rec.training import checkpoint
from stream_rec.training import run as single
from stream_rec.training.model_card import Measured
from stream_rec.training.options import Plan
from stream_rec.training.run import Given

FIGURES = {"hr_at_10": "HR@10", "ndcg_at_10": "NDCG@10", "mrr": "MRR"}


def run(given: Given, plan: Plan, count: int) -> None:
    """Trains `count` models into folders of `plan.out`, and prints their figures, mean and spread.

    Nothing else is written there, so that `stream-rec evaluate OUT/*` measures them all. What an interrupted command
    has finished stays as it is. Raises `UserError` for a finished model of other settings or data.
    """
    found: dict[int, Measured] = {}
    for seed in range(plan.seed, plan.seed + count):
        own = plan._replace(seed=seed, out=plan.out / f"seed-{seed}")
        given.console.print(f"seed {seed}", highlight=False)
        found[seed] = _finished(given, own) or single.train_one(given, own, single.config_of(given, own)).measured
    Terminal().print(table(found))
    Terminal().print(f"{len(found)} models in {plan.out}", highlight=False)


def _finished(given: Given, plan: Plan) -> Measured | None:
    """What was measured of the model that is there already; None where there is none, or it is to be overwritten."""
    if plan.overwrite or not (plan.out / "config.json").exists():
        return None
    wanted = checkpoint.fingerprint(single.config_of(given, plan), given.source.log.frame, given.source.items)
    try:
        measured = msgspec.json.decode((plan.out / "metrics.json").read_bytes(), type=Measured)
    except (OSError, msgspec.MsgspecError):
        measured = None
    if measured is None or measured.fingerprint != wanted:
        raise UserError(f"{plan.out} holds a model of other settings or data: choose another --out, or say --overwrite")
    return measured


def table(found: dict[int, Measured]) -> Table:
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
