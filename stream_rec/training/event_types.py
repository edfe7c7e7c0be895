"""What a person wants of event types: which one is the goal, and how much each counts."""

from collections.abc import Collection, Mapping
from math import isfinite

from stream_rec.errors import UserError

GOAL = "purchase"
"""Where a log has it and nobody says another."""


def goal_of(given: str | None, event_types: Collection[str]) -> str | None:
    """The goal among a log's `event_types`; None for none. Raises `UserError` for one that the log can't teach."""
    if given is None:
        return GOAL if GOAL in event_types and len(event_types) > 1 else None
    if given not in event_types:
        raise UserError(f"--goal {given}: the log's event types are {', '.join(sorted(event_types))}")
    if len(event_types) == 1:
        raise UserError(f"--goal {given}: every event of the log is one, which tells nothing")
    return given


def parse_weights(text: str) -> dict[str, float]:
    """The value of `--weights`, type by type; of nothing, nothing. Raises `UserError`.

    >>> parse_weights("view=1, purchase=4")
    {'view': 1.0, 'purchase': 4.0}
    """
    weights: dict[str, float] = {}
    for part in text.split(",") if text.strip() else ():
        name, _, number = (word.strip() for word in part.rpartition("="))
        try:
            weight = float(number)
        except ValueError:
            weight = -1.0
        if not (name and isfinite(weight) and weight >= 0):
            raise UserError(f"--weights: {part.strip()!r} is not of the form type=number, as in view=1,purchase=4")
        if name in weights:
            raise UserError(f"--weights: {name} is given twice")
        weights[name] = weight
    return weights


def weights_of(given: Mapping[str, float], event_types: Collection[str]) -> list[float]:
    """The weight of each of a log's `event_types`, 1 where none is `given`. Raises `UserError`."""
    for name in given:
        if name not in event_types:
            raise UserError(f"--weights {name}: the log's event types are {', '.join(sorted(event_types))}")
    weights = [given.get(name, 1.0) for name in event_types]
    if not any(weights):
        raise UserError("--weights: nothing counts; give some event type more than 0")
    return weights
