"""The log that is fed: a real one or a simulated shop's, with what spoils a log mixed in."""

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from stream_rec.data import event_log
from stream_rec.data.simulator.storefront import Storefront
from stream_rec.messages import ERASE, Event, Item, encode
from tests.e2e.kafka import Sent

SHOPPERS = 300
OPENING = 5_000
"""Events of the simulated shop that are passed over: in the first hours few shoppers are there."""
SPOILED = 0.03
"""Of the records, those after which comes one that can't be read or was sent before."""
ERASED = 0.004
"""Of the records, those after which their user is erased."""
LARGE = 70_000
"""Bytes; the agents read events of up to 65,536."""


class Log(NamedTuple):
    events: Callable[[], Iterator[Event]]
    """From the beginning, at each call."""
    items: Sequence[Item]
    event_types: tuple[str, ...]


def simulated(seed: int) -> Log:
    shop = Storefront(seed, shoppers=SHOPPERS)
    return Log(lambda: islice(shop.events(), OPENING, None), shop.items, ("cart", "purchase", "view"))


def logged(path: Path, columns: str = "") -> Log:
    """Raises `UserError` for a log that can't be read."""
    log = event_log.read_events(path, event_log.parse_columns(columns))
    items = [Item(name, category=f"category {at % 20}") for at, name in enumerate(log.frame["item"].unique().sort())]
    return Log(lambda: event_log.to_events(log), items, tuple(log.frame["event"].unique().sort()))


def endless(log: Log) -> Iterator[Event]:
    """The events again and again, each time by other users."""
    for turn in count():
        for event in log.events():
            user = event.user_id if turn == 0 else f"{event.user_id} in turn {turn}"
            yield replace(event, user_id=user, event_id=None)


def spoiled(events: Iterator[Event], draw: random.Random) -> Iterator[Sent]:
    """The events as records, every tenth with an id, and among them what a careless client or a foe would send."""
    for number, event in enumerate(events):
        named = replace(event, event_id=f"e{number}") if number % 10 == 0 else event
        good = Sent(event.user_id.encode(), encode(named))
        yield good
        if draw.random() < SPOILED:
            yield _spoil(event, good, draw)
            if event.event_id != named.event_id:
                yield good  # a client that was not sure whether its event had arrived
        if draw.random() < ERASED:
            yield Sent(good.key, encode(Event(event.user_id, ERASE, event.timestamp)))


def _spoil(event: Event, good: Sent, draw: random.Random) -> Sent:
    def changed(**fields: object) -> bytes:
        return encode(replace(event, **fields))

    return draw.choice(
        (
            Sent(good.key, b"{"),
            Sent(good.key, b'{"user_id":"\xff"}'),
            Sent(good.key, b'{"context":{"x":' + b"[" * 30_000),
            Sent(good.key, b'{"user_id":"u","event_type":7,"timestamp":1}'),
            Sent(good.key, b""),
            Sent(good.key, changed(item_id=None)),
            Sent(good.key, changed(event_type="share")),
            Sent(good.key, changed(timestamp=-1.0)),
            Sent(good.key, changed(timestamp=event.timestamp * 1_000)),
            Sent(good.key, changed(timestamp=9e10)),
            Sent(good.key, changed(context={"x": "x" * LARGE})),
            Sent(b"somebody else", good.value),
            Sent(None, good.value),
        )
    )
