"""Training: a log and its items in, a model folder out.

The recipe: whitened item vectors, tied cosine output, softmax over sampled negatives (the whole catalogue where it is
small), AdamW with a short warm-up and linear decay, the last epoch kept. Validation is by time: the last share of the
log is predicted by a model that hasn't seen it, and fits the blend's weights. Then, by default, the same training runs
once more over the whole log.

Every epoch ends with a checkpoint, and every epoch's random numbers depend on the seed and its own number alone: a run
that was interrupted and goes on gives the very model of one that wasn't.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from msgspec import Struct
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from stream_rec.errors import UserError
from stream_rec.learn import blend, checkpoint, dataset, evaluate
from stream_rec.learn.card import Measured
from stream_rec.learn.convex import minimise
from stream_rec.learn.dataset import Dataset, Slice
from stream_rec.learn.evaluate import Figures
from stream_rec.messages import Item
from stream_rec.model import scorer
from stream_rec.model.catalog import text_vectors
from stream_rec.model.counters import Transitions
from stream_rec.model.encoder import EncoderConfig, UserEncoder, new_body
from stream_rec.model.features import ItemFeatures, Vectors, prices_of
from stream_rec.model.folder import FORMAT, Model, ModelConfig
from stream_rec.model.scorer import Blend
from stream_rec.model.text import TextEncoder
from stream_rec.model.tokens import UNKNOWN, Numbers, event_type_numbers

Progress = Callable[[str, float, float], None]
"""Called with (what is going on, done, total)."""

VALIDATION_PREDICTIONS = 4_000
TYPE_RIDGE = 1e-4
PRETRAINED_RATE = 0.1
"""Learning rate of a pre-trained body, as a share of the rest's: it is to adapt, not to forget."""
FLOATS = 60_000_000
"""Scores held at once while the blend is fitted."""


class TrainConfig(Struct, frozen=True):
    """What a person may choose. The defaults are the recipe's."""

    encoder: EncoderConfig = EncoderConfig()
    capacity: int = 64
    stride: int = 32
    epochs: int = 12
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    batch_tokens: int = 1_000
    negatives: int = 1_024
    """Shared by a batch; a catalogue of at most four times as many items is scored whole."""
    warmup: float = 0.1
    """Share of all steps over which the learning rate rises."""
    validation: float = 0.1
    """Share of the events, the last ones, that fit the blend and give the figures."""
    refit: bool = True
    """Train once more on the whole log, validation included, with the weights found."""
    half_life: float = 14 * 86_400.0
    """Of the online memory, seconds of event time."""
    seed: int = 0


class Prepared(NamedTuple):
    """A log and a catalogue, as numbers."""

    data: Dataset
    items: Sequence[Item]
    features: ItemFeatures
    vectors: Tensor
    """(rows, dim); row 0 is the unknown item."""
    event_types: tuple[str, ...]


class Trained(NamedTuple):
    model: Model
    measured: Measured


def train(
    frame: pl.DataFrame, items: Sequence[Item], config: TrainConfig, texts: TextEncoder, out: Path, progress: Progress
) -> Trained:
    """A model of the events in `frame` (user, item, event, time, in order); checkpoints go to `out`.

    Raises `UserError` when `out` holds an unfinished training of something else.
    """
    checkpoints = checkpoint.Checkpoints(out, checkpoint.fingerprint(config, frame, items))
    prepared = prepare(frame, items, texts, progress)
    data, events = prepared.data, len(prepared.data.rows)
    cut = max(1, int(events * (1 - config.validation)))
    fitted = fit(prepared, config, cut, checkpoints.stage("fit"), progress)
    transitions = Transitions(config.half_life)
    ask = blend.sample([int(p) for p in np.flatnonzero(data.order >= cut)], VALIDATION_PREDICTIONS, config.seed)
    progress("fitting the blend", 0, 2)
    asked = blend.learn(data, transitions, ask)
    progress("fitting the blend", 1, 2)
    weights, measured = validate(fitted, prepared, cut, asked, config)
    progress("fitting the blend", 2, 2)
    encoder = fit(prepared, config, events, checkpoints.stage("refit"), progress) if config.refit else fitted
    model = Model(
        ModelConfig(
            format=FORMAT,
            encoder=config.encoder,
            body=encoder.body.config.to_dict(),
            event_types=prepared.event_types,
            capacity=config.capacity,
            text_encoder=texts.name,
            blend=weights,
            half_life=config.half_life,
            trained_until=float(data.times.max()),
        ),
        encoder.eval(),
        prepared.features,
        prepared.items,
        prepared.vectors[1:].numpy(),
        transitions.state(),
        version="",
    )
    return Trained(model, measured)


def prepare(frame: pl.DataFrame, items: Sequence[Item], texts: TextEncoder, progress: Progress) -> Prepared:
    """Items that the log names and the catalogue lacks are added without a text."""
    known = {item.item_id for item in items}
    catalogue = [
        *items,
        *(Item(name) for name in frame["item"].unique(maintain_order=True).to_list() if name not in known),
    ]
    event_types = tuple(frame["event"].unique().sort().to_list())
    read = text_vectors(catalogue, texts, lambda done, total: progress("reading item texts", done, total))
    features = ItemFeatures.fit(read, prices_of(catalogue))
    vectors: Vectors = features.transform(read, prices_of(catalogue))
    table = np.concatenate([np.zeros((1, features.dim), np.float32), vectors])
    row_of = {item.item_id: row for row, item in enumerate(catalogue, UNKNOWN + 1)}
    data = dataset.dataset(frame, row_of, event_type_numbers(event_types))
    return Prepared(data, catalogue, features, torch.from_numpy(table), event_types)


def fit(
    prepared: Prepared, config: TrainConfig, until: int, stage: checkpoint.Stage, progress: Progress
) -> UserEncoder:
    """An encoder trained on the events before the log's place `until`, for all epochs, going on from a checkpoint."""
    torch.manual_seed(config.seed)
    encoder = UserEncoder(
        config.encoder,
        new_body(config.encoder),
        items=len(prepared.vectors),
        item_dim=prepared.features.dim,
        types=len(prepared.event_types) + 1,
    )
    optimiser = torch.optim.AdamW(groups(encoder, config), betas=(0.9, 0.98))
    windows = dataset.slices(prepared.data, config.capacity, config.stride, 0, until)
    seen = torch.from_numpy(np.unique(prepared.data.rows[prepared.data.order < until]))
    whole = len(seen) <= 4 * config.negatives
    begun = stage.restore(encoder, optimiser)
    for epoch in range(begun, config.epochs):
        torch.manual_seed(config.seed * 10_007 + epoch)
        plan = dataset.batches(windows, config.batch_tokens, np.random.default_rng((config.seed, epoch)))
        steps = config.epochs * len(plan)
        encoder.train()
        for number, chosen in enumerate(plan):
            step = epoch * len(plan) + number
            rate = min(1.0, (step + 1) / max(1.0, config.warmup * steps)) * max(0.05, 1 - step / steps)
            for group in optimiser.param_groups:
                group["lr"] = group["highest"] * rate
            negatives = seen if whole else seen[torch.randint(0, len(seen), (config.negatives,))]
            value = loss(encoder, prepared, chosen, negatives)
            optimiser.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
            optimiser.step()
            progress(f"{stage.title}, epoch {epoch + 1} of {config.epochs}", step + 1, steps)
        if not all(weight.isfinite().all() for weight in encoder.parameters()):
            raise UserError("the training diverged: lower --learning-rate and begin anew with --overwrite")
        stage.keep(encoder, optimiser, epoch + 1)
    fit_types(encoder, prepared, windows, config)
    return encoder


def groups(encoder: UserEncoder, config: TrainConfig) -> list[dict[str, Any]]:
    """Weights with their weight decay (matrices alone) and highest learning rate (of a pre-trained body a tenth)."""
    chosen: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, weight in encoder.named_parameters():
        pretrained = config.encoder.base is not None and name.startswith("body.")
        chosen.setdefault((weight.ndim >= 2, pretrained), []).append(weight)
    return [
        {
            "params": weights,
            "weight_decay": config.weight_decay if matrices else 0.0,
            "highest": config.learning_rate * (PRETRAINED_RATE if pretrained else 1.0),
        }
        for (matrices, pretrained), weights in chosen.items()
    ]


def loss(encoder: UserEncoder, prepared: Prepared, chosen: Sequence[Slice], negatives: Tensor) -> Tensor:
    """Cross-entropy of the next item among `negatives` and the batch's targets."""
    states, places = _states(encoder, prepared, dataset.batch(prepared.data, chosen))
    targets = torch.from_numpy(prepared.data.rows[places])
    candidates, place = torch.unique(torch.cat([targets, negatives]), return_inverse=True)
    logits = encoder.score(states, encoder.items(prepared.vectors[candidates], encoder.residual(candidates)))
    return F.cross_entropy(logits, place[: len(targets)])


def fit_types(encoder: UserEncoder, prepared: Prepared, windows: Sequence[Slice], config: TrainConfig) -> None:
    """Fits the head for the next event's type, a softmax regression on the finished encoder's states."""
    encoder.eval()
    with torch.no_grad():
        read = [
            _states(encoder, prepared, dataset.batch(prepared.data, chosen))
            for chosen in dataset.batches(windows, 4 * config.batch_tokens)
        ]
        states = F.normalize(torch.cat([states for states, _ in read]), dim=-1)
    types = torch.from_numpy(prepared.data.types[np.concatenate([places for _, places in read])])
    inputs = torch.cat([states, torch.ones(len(states), 1)], dim=1)

    def loss_of_types(weights: Tensor) -> Tensor:
        return F.cross_entropy(inputs @ weights.T, types) + TYPE_RIDGE * weights[:, :-1].square().sum()

    found = minimise(loss_of_types, torch.zeros(encoder.next_type.out_features, inputs.shape[1]))
    with torch.no_grad():
        encoder.next_type.weight.copy_(found[:, :-1])
        encoder.next_type.bias.copy_(found[:, -1])


def _states(encoder: UserEncoder, prepared: Prepared, made: dataset.Batch) -> tuple[Tensor, Numbers]:
    """User states (targets, width) before each target of a batch, and the targets' places (targets,)."""
    rows, where = torch.unique(torch.from_numpy(made.rows), return_inverse=True)
    items = encoder.items(prepared.vectors[rows], encoder.residual(rows))
    tokens = encoder.add_event(encoder.norm(items)[where], torch.from_numpy(made.types), torch.from_numpy(made.gaps))
    wanted = made.targets >= 0
    return encoder(tokens)[torch.from_numpy(wanted)], made.targets[wanted]


@torch.inference_mode()
def validate(
    encoder: UserEncoder, prepared: Prepared, held_out_from: int, asked: blend.Asked, config: TrainConfig
) -> tuple[Blend, Measured]:
    """The blend's weights from one half of the asked validation events, and every part's figures on the other."""
    encoder.eval()
    events = len(prepared.data.rows)
    held_out = dataset.slices(prepared.data, config.capacity, config.stride, held_out_from, events)
    state_at = torch.zeros(events, encoder.width)
    for chosen in dataset.batches(held_out, 4 * config.batch_tokens):
        states, places = _states(encoder, prepared, dataset.batch(prepared.data, chosen))
        state_at[torch.from_numpy(places)] = states
    table = encoder.items(prepared.vectors, encoder.residual.weight)
    count = min(len(asked.places), max(2, FLOATS // len(table)))
    halves = (torch.arange(0, count, 2), torch.arange(1, count, 2))
    truth = torch.from_numpy(prepared.data.rows)[asked.places]
    types = torch.from_numpy(prepared.data.types)[asked.places]

    def logits(which: Tensor) -> Tensor:
        scores = encoder.score(state_at[asked.places[which]], table)
        scores[:, UNKNOWN] = -1e9
        return scores

    first, second = halves
    with torch.inference_mode(False), torch.enable_grad():
        weights = blend.fit(logits(first).clone().detach(), asked.memory.pick(first), truth[first].clone())
    scores, memory = logits(second), asked.memory.pick(second)

    def figures(*parts: float) -> Figures:
        return evaluate.figures(
            evaluate.ranks(scorer.add(scores, memory, torch.tensor(parts, dtype=torch.float32)), truth[second])
        )

    trained = prepared.data.types[prepared.data.order < held_out_from]
    frequency = np.bincount(trained, minlength=len(prepared.event_types) + 1) / len(trained)
    type_loss = evaluate.type_log_loss(encoder.type_logits(state_at[asked.places[second]]), types[second], frequency)
    return weights, Measured(
        decoder=figures(1, 0, 0),
        transitions=figures(0, 1, 0),
        blend=figures(weights.decoder, weights.transitions, weights.repeat),
        type_log_loss=type_loss[0],
        type_log_loss_of_frequency=type_loss[1],
    )
