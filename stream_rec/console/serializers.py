"""What the page is told, as plain data: ids with titles beside them."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from stream_rec.console.explain import user_summary
from stream_rec.console.explain.contributions import difference, group_contributions
from stream_rec.console.live import Row
from stream_rec.console.lookup import UserState
from stream_rec.console.titles import Titles
from stream_rec.messages import Item

if TYPE_CHECKING:
    from stream_rec.ranking.explanation import Explanation, Neighbours

Data = dict[str, Any]

EVENTS = 50
"""Of a window, the newest ones that are shown."""


def rows(shown: Iterable[Row], titles: Titles) -> list[Data]:
    return [_row(row, titles.of((row.item, *row.predicted))) for row in shown]


def _row(row: Row, items: Mapping[str, Item]) -> Data:
    return {
        "number": row.number,
        "user": row.user,
        "item": _named(row.item, items),
        "type": row.event_type,
        "arrived": row.arrived,
        "evaluated": row.evaluated,
        "too_late": row.too_late,
        "rank": row.rank,
        "listed": row.listed,
        "predicted": [_named(item, items) for item in row.predicted],
        "latency_ms": None if row.latency_s is None else round(1_000 * row.latency_s),
        "refused": row.refused,
    }


def user(name: str, held: UserState, titles: Titles) -> Data:
    """A user's window and answer."""
    window, answer = held.window, held.answer
    ids = {event.item_id for event in window.events} if window else set()
    items = titles.of(ids | ({ranked.item_id for ranked in answer.items} if answer else set()))
    told: Data = {"user": name, "window": None, "answer": None, "words": []}
    if window is not None:
        told["window"] = {
            "n": window.n,
            "held": len(window.events),
            "events": [_event(event, items) for event in window.events[: -EVENTS - 1 : -1]],
        }
        told["words"] = user_summary.user_summary(user_summary.user_facts(window, answer, items))
    if answer is not None:
        told["answer"] = msgspec.to_builtins(answer) | {
            "items": [msgspec.to_builtins(ranked) | _named(ranked.item_id, items) for ranked in answer.items]
        }
    return told


def why(explanation: "Explanation", held: UserState, items: Mapping[str, Item]) -> Data:
    """Events come in the order of their influence."""
    best = [max(range(len(event.gains)), key=event.gains.__getitem__, default=None) for event in explanation.events]
    events = [
        _event(event, items)
        | {"moved": event.moved, "place": place}
        | ({} if at is None else {"gains": _named(explanation.items[at].item_id, items), "gained": event.gains[at]})
        for place, (event, at) in enumerate(zip(explanation.events, best, strict=True))
    ]
    return {
        "items": [
            _named(one.item_id, items) | {"score": one.score, "parts": group_contributions(one.parts)}
            for one in explanation.items
        ],
        "events": sorted(events, key=lambda event: -event["moved"]),
        "published": difference(explanation, held.answer),
        "model": explanation.model,
    }


def neighbours(near: "Neighbours", titles: Titles) -> Data:
    told: Data = {}
    for kind in ("followed_by", "follows", "similar", "same_words"):
        found = getattr(near, kind)
        items = titles.of([one.item_id for one in found])
        told[kind] = [_named(one.item_id, items) | {"weight": one.weight} for one in found]
    return told


def item(found: Item | None) -> Data | None:
    return None if found is None else msgspec.to_builtins(found)


def _event(event: Any, items: Mapping[str, Item]) -> Data:
    return _named(event.item_id, items) | {"type": event.event_type, "at": event.timestamp}


def _named(item_id: str, items: Mapping[str, Item]) -> Data:
    known = items.get(item_id)
    named = {"id": item_id, "title": known.title if known else ""}
    return named | {"category": known.category, "price": known.price} if known else named
