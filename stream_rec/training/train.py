"""Training: a log and its items in, a model folder out.

The recipe: whitened item vectors, tied cosine output, softmax over sampled negatives (the whole catalogue where it is
small). Validation is what the protocol says: by default the last share of the log is predicted by a model that hasn't
seen it, and fits the blend's weights. Then, by default, the same training runs once more over the whole log.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from msgspec import structs
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from stream_rec.data.dataset import Dataset
from stream_rec.data.times import span
from stream_rec.errors import UserError
from stream_rec.evaluation import proper_scores
from stream_rec.evaluation.evaluate import TopPredictions
from stream_rec.evaluation.metrics import Ranks, calibration, figures
from stream_rec.evaluation.predict import (
    Predicted,
    exact_retriever,
    find,
    joined,
    predict,
    probable,
    ranks,
    states_at,
    teach,
    without_unknown,
)
from stream_rec.evaluation.splits import BASKETS, Split, first_of_basket, same_time
from stream_rec.features.drift import Reference, reference
from stream_rec.features.online_statistics import FOREVER, HalfLives, OnlineStatistics
from stream_rec.features.text_encoder import TextEncoder
from stream_rec.features.tokens import UNKNOWN, Numbers
from stream_rec.messages import Item
from stream_rec.models.model_store import FORMAT, Model, ModelConfig
from stream_rec.models.user_encoder import EncoderConfig, UserEncoder
from stream_rec.ranking.blend import Blend, CandidateTable
from stream_rec.ranking.candidate_features import PARTS
from stream_rec.ranking.retrieval import NEAREST
from stream_rec.runtime.progress import Progress
from stream_rec.serving.device import upload
from stream_rec.training import blend_fit, checkpoint, goal_head, trainer, warm_start
from stream_rec.training.config import TrainConfig, Tune, goal_of, weights_of
from stream_rec.training.model_card import Measured, MeasuredInterest
from stream_rec.training.prepare import Prepared, prepare
from stream_rec.training.trainer import Watch, placed

PREDICTIONS = 500
AT_ONCE = 64
"""Predictions that are scored in one go, against the whole catalogue."""


CPU = torch.device("cpu")
VALIDATION_PREDICTIONS = 4_000
LEAST_NEW = 20
"""Events that a model is trained further with."""
LEAST_COMPARED = 200
"""Predictions: of fewer, the distributions that live events are compared with would be chance."""
MOST_LEFT_OUT = 0.3
"""Of items' residuals."""
RECENT = 0.055
"""Share of the events within which what is recent loses half its weight."""
Predicting = tuple[Tensor, Numbers]
"""Users, (n, width + types), and the places of the events behind them, (n,)."""


def watcher(prepared: Prepared, validation: Split, config: TrainConfig) -> Watch:
    """Measures an encoder on the same `PREDICTIONS` of the held-out ones each time."""
    targets = validation.sample(PREDICTIONS, config.seed).targets
    truth = upload(prepared.data.rows[targets], prepared.device)
    count = len(targets)

    @torch.no_grad()
    def watch(encoder: UserEncoder) -> dict[str, float]:
        with placed(encoder, prepared) as there:
            states = states_at(encoder, prepared, targets, config).to(prepared.device)
            items = encoder.items(there.vectors, encoder.residual.weight)
            loss, ranks = torch.zeros((), device=prepared.device), []
            for some, right in zip(torch.split(states, AT_ONCE), torch.split(truth, AT_ONCE), strict=True):
                scores = encoder.score(some, items)
                scores[:, UNKNOWN] = -torch.inf
                loss += F.cross_entropy(scores, right, reduction="sum")
                ranks.append((scores >= scores.gather(1, right[:, None])).sum(dim=1) - 1)
        found = figures(Ranks(np.arange(count), torch.cat(ranks).cpu().numpy(), count))
        return {"loss": loss.item() / count, **{name: found[name] for name in ("hr_at_10", "ndcg_at_10")}}

    return watch


class Trained(NamedTuple):
    model: Model
    measured: Measured
    tune: Tune


def train(
    frame: pl.DataFrame,
    items: Sequence[Item],
    config: TrainConfig,
    texts: TextEncoder,
    out: Path,
    progress: Progress,
    before: Model | None = None,
    device: torch.device = CPU,
) -> Trained:
    """A model of the events in `frame` (user, item, event, time, in order); checkpoints go to `out`.

    With a model `before` it is that one trained further: encoder and online memory go on, and what the blend's weights
    are fitted on is newer than it. Raises `UserError` when `out` holds an unfinished training of something else, for
    event types that are none, or when too little is newer than `before`.
    """
    fingerprint = checkpoint.fingerprint(config, frame, items)
    checkpoints = checkpoint.Checkpoints(out, fingerprint)
    learn = trainer.fit
    if config.private is not None:
        from stream_rec.training import dp_sgd  # takes a second: only where it is used

        learn, frame, config = dp_sgd.fit_privately, dp_sgd.catalogued(frame, items), dp_sgd.adapted(config)
    config = for_event_types(config, frame["event"].unique().to_list(), before)
    since = -np.inf if before is None else before.config.trained_until
    if before is not None and (new := (frame["time"] > since).sum()) < LEAST_NEW:
        raise UserError(f"{new} events of the log are newer than the model: to train it further takes {LEAST_NEW}")
    if before is None:
        prepared = prepare(frame, items, config, texts, progress)
    else:
        prepared = warm_start.prepare(before, frame, items, config, texts, progress)
    prepared = prepared._replace(device=device)
    data = prepared.data
    validation, whole = splits(data, config, since)
    if len(validation.targets) < 2 or not (validation.known & ~data.firsts).any():
        raise UserError("the log is too short: it needs users who do more than one thing, also in the part held out")
    if before is not None:
        horizons = before.config.horizons
    else:
        horizons = horizons_of(data.times[whole]) if config.has_time else HalfLives(lasting=FOREVER, recent=FOREVER)
    config = structs.replace(config, encoder=for_new_items(config.encoder, data, validation))

    def remembered(known: NDArray[np.bool_]) -> OnlineStatistics:
        """The online memory once it has learned the `known` (events,) events."""
        until = -np.inf if before is None else before.config.remembers_until
        memory = OnlineStatistics(horizons, until)
        if before is not None:
            memory.load(before.memory)
        teach(prepared, memory, data.in_log_order(known & (data.times > until)))
        return memory

    watch = watcher(prepared, validation, config)
    fitted, epochs, privacy = learn(prepared, config, validation.known, checkpoints.stage("fit"), progress, watch)
    validated = validate(fitted, prepared, validation, remembered(validation.known), config, progress)
    measured = validated.measured
    encoder, again = fitted, list[checkpoint.Epoch]()
    if config.refit:
        encoder, again, _ = trainer.fit(prepared, config, whole, checkpoints.stage("refit"), progress)
    if measured.interest is not None:
        goal_head.scale(encoder, measured.interest.scaling)
    measured = structs.replace(
        measured, epochs=epochs, refit_losses=[epoch.loss for epoch in again], fingerprint=fingerprint
    )
    model = Model(
        ModelConfig(
            format=FORMAT,
            encoder=config.encoder,
            body=encoder.body.config.to_dict(),
            event_types=prepared.event_types,
            capacity=config.capacity,
            text_encoder=texts.name,
            blend=validated.weights,
            horizons=horizons,
            trained_until=float(data.times[whole].max()),
            goal=config.goal,
            reference=validated.reference if privacy is None else None,
            privacy=privacy,
            has_time=config.has_time,
        ),
        encoder.eval(),
        prepared.features,
        prepared.items,
        prepared.vectors[1:].numpy(),
        (remembered(whole) if privacy is None else OnlineStatistics(horizons)).state(),
        prepared.alike,
        version="",
        tokenizer=prepared.tokenizer,
    )
    return Trained(model, measured, config.tune)


def for_event_types(config: TrainConfig, found: Sequence[str], before: Model | None) -> TrainConfig:
    """With the goal among the event types `found` in a log, and those of the model that is trained further.

    Where nobody says another, that model's goal stays; a private model has none. Raises `UserError`.
    """
    event_types, goal = set(found), config.goal
    if before is not None:
        event_types |= set(before.config.event_types)
        goal = goal or before.config.goal
    weights_of(config.weights, event_types)
    return structs.replace(config, goal=None if config.private else goal_of(goal, event_types))


def splits(data: Dataset, config: TrainConfig, since: float = -np.inf) -> tuple[Split, NDArray[np.bool_]]:
    """What is validated, and what the finished model knows, (events,).

    Only what came after `since` is validated, and half of it is left to train on.
    """
    if config.protocol == "leave-one-out":
        return Split.leave_last_n(data, 2), Split.leave_last_n(data, 1).known
    events = len(data.rows)
    cut = max(1, int(events * (1 - config.validation)), events - int((data.times > since).sum()) // 2)
    split = Split.at_time(data, cut, events, online=config.protocol == "prequential")
    if same_time(data) > BASKETS:  # what else is in a basket is another question than what the next one begins with
        split = split._replace(targets=first_of_basket(data, split.targets))
    return split, np.ones(events, np.bool_)


def for_new_items(encoder: EncoderConfig, data: Dataset, validation: Split) -> EncoderConfig:
    """Where many items will be new, their texts must do: the share of residuals that training leaves out follows."""
    if encoder.item_dropout is not None:
        return encoder
    new = np.isin(data.rows[validation.targets], data.rows[validation.known], invert=True).mean()
    return structs.replace(encoder, item_dropout=min(MOST_LEFT_OUT, 1.5 * float(new)))


def horizons_of(times: NDArray[np.float64]) -> HalfLives:
    """Half-lives by the log's own pace: its whole span, and the span of its last `RECENT` events."""
    times = np.sort(times)
    return HalfLives(lasting=max(1.0, span(times)), recent=max(1.0, span(times, 1 - RECENT)))


class Validated(NamedTuple):
    weights: Blend
    measured: Measured
    reference: Reference | None
    """What live events are compared with; None where validation was too short to say."""


def validate(
    encoder: UserEncoder,
    prepared: Prepared,
    validation: Split,
    memory: OnlineStatistics,
    config: TrainConfig,
    progress: Progress,
) -> Validated:
    """The blend's weights from one half of some validation predictions, and what the other half says of it.

    `memory` has learned what is known.
    """
    popularity = memory.popularity.sums.copy()  # before what is predicted is learned
    split = validation.sample(VALIDATION_PREDICTIONS, config.seed)
    data, count = prepared.data, len(split.targets)
    states = states_at(encoder, prepared, split.targets, config)
    nearest = exact_retriever(encoder, prepared)
    asked = predict(
        *(prepared, split, memory, lambda which: nearest(states[which], NEAREST), config),
        lambda done: progress("predicting", done, count),
    )
    predicted = without_unknown(joined(list(asked)))
    truth = find(predicted.table, np.arange(count), data.rows[predicted.places])
    order = np.random.default_rng(config.seed).permutation(count)
    first, second = (Half.of(predicted, truth, np.sort(half)) for half in np.array_split(order, 2))
    parts = PARTS if config.has_time else tuple(part for part in PARTS if part != "recency")
    weights = blend_fit.fit(first.table, first.truth, parts)
    users = trainer.users_of(encoder, prepared, states, split.targets)
    halves = [(users[half.which], half.places.numpy()) for half in (first, second)]
    left_out = {}
    for at, part in enumerate(parts):
        progress("leaving out each part", at + 1, len(parts))
        left_out[part] = second.figures(blend_fit.fit(first.table, first.truth, set(parts) - {part}, weights))
    types = torch.from_numpy(data.types)[second.places]
    frequency = np.bincount(data.types[validation.known], minlength=len(prepared.event_types) + 1)
    type_loss = type_log_loss(
        encoder.type_logits(users[second.which]).detach(), types, frequency / validation.known.sum()
    )
    shares, candidates = probable(second.table, second.table.columns @ weights.weights, weights.covered)
    shown = TopPredictions.of(shares, candidates, np.arange(len(second.places)), data.rows[second.places.numpy()])
    chance = calibration(shown.probabilities.ravel(), shown.happened.ravel())
    measured = Measured(
        predictions=len(second.places),
        blend=second.figures(weights),
        alone={part: second.figures(blend_fit.alone(part)) for part in parts},
        left_out=left_out,
        type_log_loss=type_loss[0],
        type_log_loss_of_frequency=type_loss[1],
        calibration_error=chance.error,
        reliability=chance.bins,
        interest=None if config.goal is None else validate_interest(encoder, prepared, validation, config.goal, halves),
    )
    if len(second.places) < LEAST_COMPARED:
        return Validated(weights, measured, None)
    every = validation.targets[data.types[validation.targets] != UNKNOWN]
    firsts = shares.max(dim=1).values.double().numpy()
    looked = reference(popularity, data.rows[every], prepared.event_types, data.types[every] - 1, firsts)
    return Validated(weights, measured, looked)


def validate_interest(
    encoder: UserEncoder, prepared: Prepared, validation: Split, goal: str, halves: Sequence[Predicting]
) -> MeasuredInterest:
    """How the first of two halves of the predictions scales the interest, and the figures on the other."""
    outputs = trainer.outputs_of(encoder, prepared.vectors).detach()
    ours, others = (goal_head.contacts(prepared, goal, *half) for half in halves)
    scaling = goal_head.scaling(goal_head.logits(encoder, ours, outputs), ours.goals)
    said = torch.sigmoid(scaling.slope * goal_head.logits(encoder, others, outputs) + scaling.offset)
    goals, seen = int(others.goals.sum()), goal_head.Seen.of(prepared, validation.known, goal)
    figures = proper_scores.of_interest(prepared.data, halves[1][1], said.double().numpy(), seen)
    return MeasuredInterest(goal, goals, scaling, figures)


class Half(NamedTuple):
    """Some predictions."""

    which: Tensor
    places: Tensor
    table: CandidateTable
    truth: Tensor

    @classmethod
    def of(cls, predicted: Predicted, truth: Tensor, which: Numbers) -> "Half":
        """Those numbered `which` (n,), ascending."""
        chosen = torch.from_numpy(which)
        number = torch.full((len(predicted.places),), -1)
        number[chosen] = torch.arange(len(which))
        table = predicted.table
        kept = number[table.answers] >= 0
        place = kept.cumsum(0) - 1
        wanted = truth[chosen]
        return cls(
            chosen,
            torch.from_numpy(predicted.places)[chosen],
            CandidateTable(number[table.answers[kept]], table.rows[kept], table.columns[kept]),
            torch.where(wanted >= 0, place[wanted.clamp(min=0)], -1),
        )

    def figures(self, weights: Blend) -> dict[str, float]:
        values, every = self.table.columns @ weights.weights, torch.arange(len(self.truth))
        found = ranks(self.table, values, every, self.truth)
        return figures(Ranks(every.numpy(), found.numpy(), len(every)))


def type_log_loss(logits: Tensor, truth: Tensor, frequency: NDArray[np.float64]) -> tuple[float, float]:
    """Log loss of the next event's type: of `logits` (n, types), and of the `frequency` (types,) alone."""
    ours = torch.nn.functional.cross_entropy(logits, truth).item()
    floor = -np.log(np.maximum(frequency, 1e-12))[truth.numpy()].mean()
    return ours, float(floor)
