"""Training: a log and its items in, a model folder out.

The recipe: whitened item vectors, tied cosine output, softmax over sampled negatives (the whole catalogue where it is
small). Validation is by time: the last share of the log is predicted by a model that hasn't seen it, and fits the
blend's weights. Then, by default, the same training runs once more over the whole log.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from torch import Tensor

from stream_rec.learn import blend, checkpoint, dataset, evaluate, fit
from stream_rec.learn.card import Measured
from stream_rec.learn.evaluate import Figures
from stream_rec.learn.prepare import Prepared, Progress, prepare
from stream_rec.learn.recipe import TrainConfig
from stream_rec.learn.tune import Tune
from stream_rec.messages import Item
from stream_rec.model import scorer
from stream_rec.model.counters import Transitions
from stream_rec.model.encoder import UserEncoder
from stream_rec.model.folder import FORMAT, Model, ModelConfig
from stream_rec.model.scorer import Blend
from stream_rec.model.text import TextEncoder
from stream_rec.model.tokens import UNKNOWN

VALIDATION_PREDICTIONS = 4_000
FLOATS = 60_000_000
"""Scores held at once while the blend is fitted."""


class Trained(NamedTuple):
    model: Model
    measured: Measured
    tune: Tune


def train(
    frame: pl.DataFrame, items: Sequence[Item], config: TrainConfig, texts: TextEncoder, out: Path, progress: Progress
) -> Trained:
    """A model of the events in `frame` (user, item, event, time, in order); checkpoints go to `out`.

    Raises `UserError` when `out` holds an unfinished training of something else.
    """
    checkpoints = checkpoint.Checkpoints(out, checkpoint.fingerprint(config, frame, items))
    prepared = prepare(frame, items, config, texts, progress)
    data, events = prepared.data, len(prepared.data.rows)
    cut = max(1, int(events * (1 - config.validation)))
    fitted = fit.fit(prepared, config, cut, checkpoints.stage("fit"), progress)
    transitions = Transitions(config.half_life)
    ask = blend.sample([int(p) for p in np.flatnonzero(data.order >= cut)], VALIDATION_PREDICTIONS, config.seed)
    progress("fitting the blend", 0, 2)
    asked = blend.learn(data, transitions, ask)
    progress("fitting the blend", 1, 2)
    weights, measured = validate(fitted, prepared, cut, asked, config)
    progress("fitting the blend", 2, 2)
    encoder = fit.fit(prepared, config, events, checkpoints.stage("refit"), progress) if config.refit else fitted
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
        tokenizer=prepared.tokenizer,
    )
    return Trained(model, measured, config.tune)


@torch.inference_mode()
def validate(
    encoder: UserEncoder, prepared: Prepared, held_out_from: int, asked: blend.Asked, config: TrainConfig
) -> tuple[Blend, Measured]:
    """The blend's weights from one half of the asked validation events, and every part's figures on the other."""
    encoder.eval()
    events = len(prepared.data.rows)
    held_out = dataset.slices(prepared.data, config.capacity, config.stride, held_out_from, events)
    state_at = torch.zeros(events, encoder.width)
    for chosen in fit.plan(prepared, held_out, config):
        states, places = fit.states_of(encoder, prepared, chosen)
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
