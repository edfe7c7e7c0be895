"""Interest: the probability that a contact with an item is the goal, say a purchase.

    interest = sigmoid(theta . [user; item] + bias)

A logistic regression on a finished encoder's users and items, so that ranking stays what it is. Goals are rare: they
are weighted to count as much as all other events together. That moves the log-odds by a constant, which is taken back
(King and Zeng, "Logistic Regression in Rare Events Data", 2001); what is left a validation scales (Platt,
"Probabilistic Outputs for Support Vector Machines", 1999). Both go into theta and bias: serving knows only the formula.
"""

import math
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from stream_rec.features.tokens import Numbers, event_type_numbers
from stream_rec.models.user_encoder import UserEncoder
from stream_rec.training.lbfgs import minimise
from stream_rec.training.prepare import Prepared

RIDGE = 1e-3
STEEPEST, FARTHEST = 5.0, 20.0
"""Of a scaling, where all goals can be told apart."""

Shares = NDArray[np.float64]


class Contacts(NamedTuple):
    """Users meeting items."""

    users: Tensor
    """Before it, (contacts, width + types)."""
    rows: Tensor
    """The item's, (contacts,)."""
    goals: Tensor
    """Whether it was the goal, (contacts,) bool."""


def contacts(prepared: Prepared, goal: str, users: Tensor, places: Numbers) -> Contacts:
    """The events at `places` (n,), with the `users` (n, width + types) before them."""
    data, number = prepared.data, event_type_numbers(prepared.event_types)[goal]
    rows, goals = torch.from_numpy(data.rows[places]), torch.from_numpy(data.types[places] == number)
    return Contacts(users, rows, goals)


class Scaling(NamedTuple):
    """Of log-odds: times the slope, and the offset more."""

    slope: float
    offset: float


def fit(encoder: UserEncoder, contacts: Contacts, outputs: Tensor) -> None:
    """Fits theta and bias of `encoder`; `outputs` (catalogue rows, width) are its items'."""
    users, units, width = contacts.users, F.normalize(outputs, dim=-1), encoder.width
    goals = contacts.goals.float()
    share = (goals.sum().item() + 0.5) / (len(goals) + 1)
    weights = torch.where(contacts.goals, 0.5 / share, 0.5 / (1 - share))

    def loss(theta: Tensor) -> Tensor:
        of_user, of_item = theta[: users.shape[1]], theta[-1 - width : -1]
        logits = users @ of_user + (units @ of_item)[contacts.rows] + theta[-1]
        size = of_user[:width].square().sum() + of_item.square().sum()
        return F.binary_cross_entropy_with_logits(logits, goals, weights) + RIDGE * size

    found = minimise(loss, torch.zeros(users.shape[1] + width + 1))
    found[-1] -= math.log((1 - share) / share)
    _set(encoder, found)


def scaling(logits: Tensor, goals: Tensor) -> Scaling:
    """What makes probabilities of `logits` (n,), given which were `goals` (n,) bool.

    Platt's targets are a little less than certain, so that few goals do not say too much.
    """
    count = goals.sum().item()
    targets = torch.where(goals, (count + 1) / (count + 2), 1 / (len(goals) - count + 2))
    found = minimise(
        lambda line: F.binary_cross_entropy_with_logits(line[0] * logits + line[1], targets),
        torch.tensor([1.0, 0.0]),
        [(0.0, STEEPEST), (-FARTHEST, FARTHEST)],
    )
    return Scaling(*found.tolist())


def scale(encoder: UserEncoder, by: Scaling) -> None:
    """From now on the log-odds of `encoder` are scaled so."""
    assert encoder.theta is not None  # noqa: S101 - a caller's mistake
    theta = torch.cat([encoder.theta.weight[0].detach(), encoder.theta.bias.detach()]) * by.slope
    theta[-1] += by.offset
    _set(encoder, theta)


def logits(encoder: UserEncoder, contacts: Contacts, outputs: Tensor) -> Tensor:
    """Log-odds of each contact, (contacts,)."""
    with torch.no_grad():
        return encoder.interest_logits(contacts.users, outputs[contacts.rows][:, None])[:, 0]


class Seen(NamedTuple):
    """How often contacts were the goal."""

    goal: int
    """Its number among the event types."""
    share: float
    by_item: Shares
    """Of each catalogue row's contacts, (rows,)."""
    by_last: Shares
    """Of those behind an event of each type, `UNKNOWN` included, (types + 1,)."""

    @classmethod
    def of(cls, prepared: Prepared, known: NDArray[np.bool_], goal: str) -> Self:
        """In the `known` (events,) events.

        A share is smoothed as if one goal more had been there, at the share of all: few contacts say little.
        """
        data, number = prepared.data, event_type_numbers(prepared.event_types)[goal]
        goals = data.types == number
        share = (goals[known].sum() + 0.5) / (known.sum() + 1)
        behind = np.flatnonzero(known & ~data.firsts)

        def shares(of: Numbers, places: Numbers, count: int) -> Shares:
            met, reached = np.bincount(of, minlength=count), np.bincount(of, goals[places], count)
            found: Shares = (reached + 1) / (met + 1 / share)
            return found

        by_item = shares(data.rows[known], np.flatnonzero(known), len(prepared.vectors))
        by_last = shares(data.types[behind - 1], behind, len(prepared.event_types) + 1)
        return cls(number, float(share), by_item, by_last)


def _set(encoder: UserEncoder, theta: Tensor) -> None:
    assert encoder.theta is not None  # noqa: S101
    with torch.no_grad():
        encoder.theta.weight.copy_(theta[None, :-1])
        encoder.theta.bias.copy_(theta[-1:])
