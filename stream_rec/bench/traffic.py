"""The events that the pipeline's benchmark feeds, and those that lie before: of a simulated shop, or of a log."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stream_rec.data import event_log
from stream_rec.data.simulator.storefront import Storefront
from stream_rec.errors import UserError
from stream_rec.messages import Event, Item


class Traffic(NamedTuple):
    """A log, cut in two, and its catalogue."""

    past: Sequence[Event]
    live: Sequence[Event]
    items: Sequence[Item]
    event_types: tuple[str, ...]


def simulated(items: int, users: int, history: int, fed: int) -> Traffic:
    """A simulated shop at rush hour: everybody is there, so that a step holds many users and few events of each."""
    shop = Storefront(products=items, shoppers=users)
    events = _interleaved(list(islice(shop.events(), history + fed)))
    return Traffic(events[:history], events[history:], shop.items, ("cart", "purchase", "view"))


def _interleaved(events: Sequence[Event]) -> list[Event]:
    """Each user's events in their order, the users in a random one."""
    queues: dict[str, list[Event]] = {}
    for event in reversed(events):
        queues.setdefault(event.user_id, []).append(event)
    turns = np.random.default_rng(0).permutation([event.user_id for event in events]).tolist()
    return [queues[user].pop() for user in turns]


def logged(path: Path, columns: str, count: int, fed: int) -> Traffic:
    """A log as it stands; its items, filled up with some that nobody meets."""
    log = event_log.read_events(path, event_log.parse_columns(columns))
    if len(log.frame) < fed:
        raise UserError(f"{path} has {len(log.frame)} events and {fed} are fed: lower --count or --runs")
    events = list(event_log.to_events(log))
    names = log.frame["item"].unique(maintain_order=True).to_list()
    names += [f"unmet {number}" for number in range(count - len(names))]
    items = [Item(name, category=f"category {number % 20}") for number, name in enumerate(names)]
    types = tuple(log.frame["event"].unique().sort().to_list())
    return Traffic(events[:-fed], events[-fed:], items, types)
