"""A search for settings: trials on the held-out part alone, by a tree-structured Parzen estimator (optuna's TPE).

The first trial is the recipe. What an option says is not searched. The trials stand in `trials.log` in the model's
folder, as JSON: a search that was interrupted goes on with the very trial that it would have made. Trials are not cut
short: under a rate that decays to the last epoch, an early figure tells little of the last one.
"""

import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from msgspec import structs
from optuna import Study, Trial
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from rich.table import Table

from stream_rec.errors import UserError
from stream_rec.runtime.terminal import Terminal
from stream_rec.training import checkpoint
from stream_rec.training import run as single
from stream_rec.training.config import TrainConfig
from stream_rec.training.options import TrainOptions, sized
from stream_rec.training.run import Given
from stream_rec.training.trainer import Diverged

FILE = "trials.log"
FIGURE = "ndcg_at_10"
"""Of the blend, on the held-out predictions that fitted no weight."""
RATES = (0.25, 3.0)
"""The learning rates searched, as shares of the recipe's."""
DECAYS = (1e-3, 0.1)
DROPOUTS = (0.0, 0.5)
EPOCHS = (0.5, 1.5)
"""As shares of the recipe's."""
WIDTHS = (64, 128, 192, 256)
LAYERS = (1, 2, 3)


def run(given: Given, plan: TrainOptions, count: int) -> None:
    """Makes `count` trials in all, shows them, and trains with the best of them.

    Raises `UserError` where the folder holds the trials of other settings or data.
    """
    recipe = single.config_of(given, plan)
    study = _study(given, plan, recipe)
    while (number := len(finished(study))) < count:
        _try(study, given, plan, recipe, number, count)
    Terminal().print(table(finished(study)))
    if all(one.value is None for one in finished(study)):
        raise UserError("every trial diverged: give a lower --learning-rate, and begin anew with --overwrite")
    best = applied(recipe, study.best_params)
    single.show(single.train_one(given, plan, best), plan)


def suggest(trial: Trial, recipe: TrainConfig, plan: TrainOptions) -> dict[str, Any]:
    """The settings of a trial, of those that no option fixes; the shape of the decoder if it is a new one."""
    found: dict[str, Any] = {}
    if plan.learning_rate is None:
        low, high = (share * recipe.learning_rate for share in RATES)
        found["learning_rate"] = trial.suggest_float("learning_rate", low, high, log=True)
    if plan.epochs is None:
        low, high = (max(1, round(share * recipe.epochs)) for share in EPOCHS)
        found["epochs"] = trial.suggest_int("epochs", low, high)
    found["weight_decay"] = trial.suggest_float("weight_decay", *DECAYS, log=True)
    if not recipe.continues:
        found["dropout"] = trial.suggest_float("dropout", *DROPOUTS)
        found["residual_dropout"] = trial.suggest_float("residual_dropout", *DROPOUTS)
        if plan.base is None and plan.width is None:
            found["width"] = trial.suggest_categorical("width", WIDTHS)
        if plan.base is None and plan.layers is None:
            found["layers"] = trial.suggest_categorical("layers", LAYERS)
    return found


def applied(recipe: TrainConfig, found: dict[str, Any]) -> TrainConfig:
    """The recipe with the settings of a trial."""
    own = {name: value for name, value in found.items() if name in ("learning_rate", "epochs", "weight_decay")}
    shape = {name: value for name, value in found.items() if name not in own}
    encoder = sized(recipe.encoder, shape.pop("width")) if "width" in shape else recipe.encoder
    return structs.replace(recipe, **own, encoder=structs.replace(encoder, **shape))


def recipe_of(recipe: TrainConfig) -> dict[str, Any]:
    """The recipe as the settings of a trial."""
    shape = recipe.encoder
    own = {name: getattr(recipe, name) for name in ("learning_rate", "epochs", "weight_decay")}
    inner = {name: getattr(shape, name) for name in ("dropout", "residual_dropout", "width")}
    return {**own, **inner, "layers": shape.layers or 2}


def finished(study: Study) -> list[FrozenTrial]:
    """The trials that nobody interrupted; one that diverged has no value."""
    return [one for one in study.get_trials(deepcopy=False) if one.state.is_finished()]


def table(trials: Sequence[FrozenTrial]) -> Table:
    """All trials, the best first."""
    trials = sorted(trials, key=lambda one: math.inf if one.value is None else -one.value)
    names = list(dict.fromkeys(name for one in trials for name in one.params))
    view = Table(title=f"{len(trials)} trials, the blend on held-out predictions")
    for heading in ("trial", "NDCG@10", "HR@10", "minutes", *(name.replace("_", " ") for name in names)):
        view.add_column(heading, justify="right")
    for one in trials:
        told = one.user_attrs
        measured = ["diverged", "", ""]
        if one.value is not None:
            measured = [f"{one.value:.4f}", f"{told['hr_at_10']:.4f}", f"{told['minutes']:.1f}"]
        shown = (f"{one.params[name]:.3g}" if name in one.params else "" for name in names)
        view.add_row(str(told["trial"]), *measured, *shown)
    return view


def _try(study: Study, given: Given, plan: TrainOptions, recipe: TrainConfig, number: int, count: int) -> None:
    """The trial `number`, from 0, of `count`.

    An interrupted one is made again: what is drawn depends on the seed and on the trials before alone.
    """
    study.sampler = TPESampler(seed=plan.seed * 10_007 + number, n_startup_trials=min(10, max(3, count // 3)))
    if number == 0:
        study.enqueue_trial(recipe_of(recipe))
    trial = study.ask()
    trial.set_user_attr("trial", number + 1)
    config = structs.replace(applied(recipe, suggest(trial, recipe, plan)), refit=False)
    out = plan.out / f"trial-{number + 1}"
    began = time.monotonic()
    try:
        measured = single.fit(given, config, out, before=f"trial {number + 1} of {count}: ").measured
    except Diverged:
        study.tell(trial, state=TrialState.FAIL)
        given.console.print(f"trial {number + 1}: diverged", highlight=False)
    else:
        trial.set_user_attr("hr_at_10", measured.blend["hr_at_10"])
        trial.set_user_attr("minutes", (time.monotonic() - began) / 60)
        study.tell(trial, measured.blend[FIGURE])
        given.console.print(f"trial {number + 1}: NDCG@10 {measured.blend[FIGURE]:.4f}", highlight=False)
    shutil.rmtree(out, ignore_errors=True)


def _study(given: Given, plan: TrainOptions, recipe: TrainConfig) -> Study:
    """The trials in the folder, of the same settings and data."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = plan.out / FILE
    plan.out.mkdir(parents=True, exist_ok=True)
    if plan.overwrite:
        _forget(plan.out)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(path))),
        study_name="trials",
        direction="maximize",
        load_if_exists=True,
    )
    mark = checkpoint.fingerprint(recipe, given.source.log.frame, given.source.items)
    if study.user_attrs.setdefault("of", mark) != mark:
        raise UserError(f"{path} holds trials of other settings or data: choose another --out, or say --overwrite")
    study.set_user_attr("of", mark)
    return study


def _forget(out: Path) -> None:
    """Deletes what an earlier search left."""
    (out / FILE).unlink(missing_ok=True)
    for folder in out.glob("trial-*"):
        shutil.rmtree(folder)
