"""How good the probabilities are, each beside what frequencies alone would have said."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn import metrics as sklearn
from torch import Tensor

from stream_rec.data.dataset import Dataset
from stream_rec.evaluation.metrics import calibration
from stream_rec.features.tokens import UNKNOWN, Numbers
from stream_rec.models.user_encoder import UserEncoder
from stream_rec.training import goal_head
from stream_rec.training.prepare import Prepared

Shares = NDArray[np.float64]
Figures = dict[str, float]
MODEL, CONSTANT, UNIFORM, FREQUENCY = "model", "constant", "uniform", "frequency"
LEAST = 1e-6
"""What is said to be less likely counts as this likely: no digits behind it are published."""


class Said(NamedTuple):
    """What was said of one of several outcomes, (predictions,) each."""

    truth: Shares
    """The probability of what happened."""
    top: Shares
    """That of what was likeliest."""
    hit: NDArray[np.bool_]
    """Whether that happened."""

    @classmethod
    def of(cls, shares: Shares, truth: Numbers) -> "Said":
        """`shares` (predictions, outcomes); `truth` (predictions,) are the outcomes' numbers."""
        best = shares.argmax(axis=1)
        every = np.arange(len(truth))
        return cls(shares[every, truth], shares[every, best], best == truth)

    @classmethod
    def always(cls, shares: Shares, truth: Numbers) -> "Said":
        """The same `shares` (outcomes,) each time."""
        best = int(shares.argmax())
        return cls(shares[truth], np.full(len(truth), shares[best]), truth == best)

    @classmethod
    def joined(cls, parts: Sequence["Said"]) -> "Said":
        return cls(*map(np.concatenate, zip(*parts, strict=True)))

    def pick(self, which: NDArray[np.bool_]) -> "Said":
        return Said(self.truth[which], self.top[which], self.hit[which])

    def figures(self) -> Figures:
        """Log loss, and the calibration error of the likeliest outcome."""
        loss = -np.log(np.maximum(self.truth, LEAST)).mean()
        return {"log_loss": float(loss), "calibration_error": calibration(self.top, self.hit).error}


class Mass(NamedTuple):
    """What the blend said of the next item and its category."""

    item: Said
    category: Said

    @classmethod
    def of(cls, shares: Tensor, rows: Tensor, truth: Numbers, categories: Numbers) -> "Mass":
        """`shares` (batch, candidates) are the probabilities of `rows`; `truth` (batch,) the rows that came next.

        `categories` (catalogue rows,) are numbers. Items that were no candidates share the rest evenly.
        """
        labels, catalogue = torch.from_numpy(categories), len(categories)
        held = torch.from_numpy(np.bincount(categories, minlength=int(categories.max()) + 1)).double()
        held[categories[UNKNOWN]] -= 1
        sure = shares.double()
        asked = (sure > 0).double()
        rest = (1 - sure.sum(1)) / (catalogue - 1 - asked.sum(1)).clamp(min=1)
        own = (sure * (rows == torch.from_numpy(truth)[:, None])).sum(1)
        mass = rest[:, None] * held + torch.zeros(len(rows), len(held)).double().scatter_add_(
            1, labels[rows], sure - rest[:, None] * asked
        )
        best = sure.max(dim=1)
        item = torch.where(own > 0, own, rest)
        right = rows.gather(1, best.indices[:, None])[:, 0].numpy() == truth
        return cls(Said(item.numpy(), best.values.numpy(), right), Said.of(mass.numpy(), categories[truth]))

    @classmethod
    def joined(cls, parts: Sequence["Mass"]) -> "Mass":
        return cls(*map(Said.joined, zip(*parts, strict=True)))


def binary(said: Shares, happened: NDArray[np.bool_]) -> Figures:
    """Of the probabilities `said` (n,) that something `happened` (n,). No AUC where all is one."""
    found = {"log_loss": float(sklearn.log_loss(happened, said.clip(LEAST, 1 - LEAST), labels=[False, True]))}
    if 0 < happened.sum() < len(happened):
        found["auc"] = float(sklearn.roc_auc_score(happened, said))
    return found | {"calibration_error": calibration(said, happened).error}


def of_types(
    prepared: Prepared, encoder: UserEncoder, users: Tensor, places: Numbers, known: NDArray[np.bool_]
) -> dict[str, Figures]:
    """Of the type of the next events, at `places` (n,) behind the `users` (n, width + types)."""
    data, count = prepared.data, len(prepared.event_types)
    kept = data.types[places] != UNKNOWN
    users, places = users[torch.from_numpy(kept)], places[kept]
    truth = data.types[places] - 1
    with torch.no_grad():
        ours = torch.softmax(encoder.type_logits(users)[:, UNKNOWN + 1 :].double(), dim=1).numpy()
    frequency = smoothed(data.types[known & (data.types != UNKNOWN)] - 1, count)
    return {
        MODEL: Said.of(ours, truth).figures(),
        UNIFORM: Said.always(np.full(count, 1 / count), truth).figures(),
        FREQUENCY: Said.always(frequency, truth).figures(),
        "frequency after the last type": Said.of(
            after(data, known, frequency)[data.types[places - 1]], truth
        ).figures(),
    }


def of_interest(data: Dataset, places: Numbers, said: Shares, seen: goal_head.Seen) -> dict[str, Figures]:
    """Of the interest `said` (n,) of users in the items that came next, at `places` (n,)."""
    goals = data.types[places] == seen.goal
    return {
        MODEL: binary(said, goals),
        CONSTANT: binary(np.full(len(goals), seen.share), goals),
        "frequency of the item": binary(seen.by_item[data.rows[places]], goals),
        "frequency after the last type": binary(seen.by_last[data.types[places - 1]], goals),
    }


def of_categories(said: Said, truth: Numbers, categories: Numbers, met: Numbers) -> dict[str, Figures]:
    """Of what was `said` of the category of the next items `truth` (n,); `met` (events,) are the items in training.

    `categories` (catalogue rows,) are numbers.
    """
    held = np.bincount(categories[UNKNOWN + 1 :]) > 0
    frequency = smoothed(categories[met], len(held)) * held
    return {
        MODEL: said.figures(),
        UNIFORM: Said.always(held / held.sum(), categories[truth]).figures(),
        FREQUENCY: Said.always(frequency / frequency.sum(), categories[truth]).figures(),
    }


def of_items(said: Said, truth: Numbers, met: Numbers, items: int) -> dict[str, Figures]:
    """Of the next item itself, likewise; there are so many `items`."""
    return {
        MODEL: said.figures(),
        UNIFORM: Said.always(np.full(items, 1 / items), truth - 1).figures(),
        FREQUENCY: Said.always(smoothed(met - 1, items), truth - 1).figures(),
    }


def smoothed(numbers: Numbers, count: int) -> Shares:
    """How often each number below `count` is among `numbers` (n,), as if each had been there once more, (count,)."""
    found: Shares = (np.bincount(numbers, minlength=count) + 1) / (len(numbers) + count)
    return found


def after(data: Dataset, known: NDArray[np.bool_], frequency: Shares) -> Shares:
    """The frequency of each type behind an event of each type, `UNKNOWN` included, (types + 1, types)."""
    count = len(frequency)
    places = np.flatnonzero(known & ~data.firsts)
    places = places[known[places - 1] & (data.types[places] != UNKNOWN)]
    pairs = data.types[places - 1] * count + data.types[places] - 1
    found = np.bincount(pairs, minlength=(count + 1) * count).reshape(-1, count) + count * frequency
    shares: Shares = found / found.sum(axis=1, keepdims=True)
    return shares
