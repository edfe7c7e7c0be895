"""What a user did and wants, in words: facts from the window and the answer, then sentences from a template."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from statistics import median

from msgspec import Struct

from stream_rec.messages import Item, Recommendation, Window

PAUSE_S = 1_800.0
"""A longer time between two events ends a session."""
MOST = 3
"""Of categories, items and the like that are named."""


class Share(Struct, frozen=True):
    name: str
    weight: float


class Facts(Struct, frozen=True):
    """What sentences are made of. Times are seconds."""

    events: int
    """In the window."""
    in_all: int
    """Of the user, since the first one or an erasure."""
    first: float
    last: float
    sessions: int
    """In the window."""
    session_events: tuple[tuple[str, int], ...]
    """Of the last session, by type, the most frequent first."""
    session_s: float
    categories: tuple[tuple[str, int], ...]
    """Events of the window by the item's category."""
    returned_to: tuple[tuple[str, int], ...]
    """Items that come more than once, by title."""
    prices: tuple[float, float, float] | None
    """Lowest, median and highest of the items with a price."""
    next_event: tuple[Share, ...]
    interests: tuple[Share, ...]


def user_facts(window: Window, answer: Recommendation | None, items: Mapping[str, Item]) -> Facts:
    """`items` holds what is known of the window's items."""
    events = window.events
    breaks = [at for at, (a, b) in enumerate(pairwise(events), 1) if b.timestamp - a.timestamp > PAUSE_S]
    session = events[breaks[-1] if breaks else 0 :]
    known = [items[event.item_id] for event in events if event.item_id in items]
    prices = sorted(item.price for item in known if item.price is not None)
    again = Counter(event.item_id for event in events)
    likely = sorted(answer.next_event.items(), key=lambda pair: -pair[1]) if answer else []
    return Facts(
        events=len(events),
        in_all=window.n,
        first=events[0].timestamp,
        last=events[-1].timestamp,
        sessions=len(breaks) + 1,
        session_events=_counted(event.event_type for event in session),
        session_s=max(0.0, session[-1].timestamp - session[0].timestamp),
        categories=_counted(item.category for item in known if item.category),
        returned_to=tuple((title(one, items), n) for one, n in again.most_common(MOST) if n > 1),
        prices=(prices[0], median(prices), prices[-1]) if prices else None,
        next_event=tuple(Share(name, p) for name, p in likely[:MOST]),
        interests=tuple(Share(one.label, one.weight) for one in answer.interests[:MOST]) if answer else (),
    )


def title(item_id: str, items: Mapping[str, Item]) -> str:
    """The item's title, or its id where it has none."""
    return (items[item_id].title if item_id in items else "") or item_id


def user_summary(known: Facts) -> list[str]:
    """The facts in sentences."""
    window = f"{_count(known.events, 'event')} in the window"
    if known.in_all > known.events:
        window += f", the newest of {known.in_all:,}"
    said = [f"{window}, in {_count(known.sessions, 'session')}."]
    doing = _listed([_count(n, name) for name, n in known.session_events])
    lasted = f" within {_lasting(known.session_s)}" if known.session_s else ""
    said.append(f"The last session: {doing}{lasted}.")
    if known.categories:
        said.append(f"Mostly {_listed([f'{name} ({n})' for name, n in known.categories])}.")
    if known.returned_to:
        said.append(f"Came back to {_listed([f'{name} ({n} times)' for name, n in known.returned_to])}.")
    if known.prices:
        low, middle, high = known.prices
        said.append(f"Prices from {low:,.2f} to {high:,.2f}, half of them up to {middle:,.2f}.")
    if known.next_event:
        said.append(
            f"Next will probably be: {_listed([f'{one.name} ({one.weight:.0%})' for one in known.next_event])}."
        )
    if known.interests:
        said.append(f"Wants, by the model: {_listed([f'{one.name} ({one.weight:.0%})' for one in known.interests])}.")
    return said


def _counted(names: Iterable[str]) -> tuple[tuple[str, int], ...]:
    return tuple(Counter(names).most_common(MOST))


def _count(n: int, name: str) -> str:
    return f"{n:,} {name}" if n == 1 or name.endswith("s") else f"{n:,} {name}s"


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _lasting(seconds: float) -> str:
    for size, name in ((86_400, "day"), (3_600, "hour"), (60, "minute")):
        if seconds >= size:
            return _count(round(seconds / size), name)
    return _count(max(1, round(seconds)), "second")
