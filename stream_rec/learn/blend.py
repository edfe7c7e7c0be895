"""Fits the weights of the blend: a softmax regression on validation predictions, through the scorer's own formula."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stream_rec.learn.convex import minimise
from stream_rec.learn.dataset import Dataset, history
from stream_rec.model import scorer
from stream_rec.model.counters import REACH, Heard, Transitions
from stream_rec.model.scorer import Blend, Memory

RIDGE = 1e-4
BOUNDS = ((0.0, 5.0), (0.0, 5.0), (-10.0, 10.0))
"""Of the weights, in the order of `Blend`."""


class Asked(NamedTuple):
    """What was known before each of some events: `places` in the dataset, (n,), and the memory then."""

    places: Tensor
    memory: Memory


def learn(data: Dataset, transitions: Transitions, ask: frozenset[int] = frozenset()) -> Asked:
    """Teaches `transitions` the whole log, one event after the other; before each event in `ask` it is asked first."""
    places: list[int] = []
    after: list[Heard] = []
    last: list[int] = []
    for place, rows in history(data, REACH + 1):
        known = rows.tolist()
        if place in ask and len(known) > 1:
            places.append(place)
            after.append(transitions.after(known[:-1][-REACH:], float(data.times[place - 1])))
            last.append(known[-2])
        transitions.learn_last(known, float(data.times[place]))
    return Asked(torch.tensor(places, dtype=torch.int64), Memory.of(after, last, torch.device("cpu")))


def fit(logits: Tensor, memory: Memory, truth: Tensor) -> Blend:
    """Weights that make `truth` (n,) likeliest, given the decoder's `logits` (n, rows) and the memory."""

    def loss(weights: Tensor) -> Tensor:
        scores = scorer.add(logits, memory, weights)
        return torch.nn.functional.cross_entropy(scores, truth) + RIDGE * weights.square().sum()

    return Blend(*(round(weight, 4) for weight in minimise(loss, torch.tensor([0.5, 0.5, 0.0]), BOUNDS).tolist()))


def sample(places: Sequence[int], count: int, seed: int) -> frozenset[int]:
    """At most `count` of `places`, without replacement."""
    if len(places) <= count:
        return frozenset(places)
    return frozenset(np.random.default_rng(seed).choice(places, count, replace=False).tolist())
