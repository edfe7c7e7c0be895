"""Messages of the wire: as hypothesis makes them, and as version 1 wrote them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from stream_rec.messages import (
    DeadLetterHeaders,
    Event,
    Interest,
    Item,
    RankedItem,
    Recommendation,
    TombstoneHeaders,
    Window,
    WindowEvent,
)

V1 = Path(__file__).parent / "wire_v1"
"""Never changed: messages that version 1 wrote, a line each, and the schemas that its consumers know."""

whole = st.integers(0, 1 << 53)
real = st.floats(-1e12, 1e12)
share = st.floats(0, 1)
text = st.text(max_size=6)
name = st.text(min_size=1, max_size=6)
context = st.dictionaries(text, st.none() | st.booleans() | whole | text | st.lists(real, max_size=2), max_size=2)


def _window(user: str, start: int, offset: int, arrived: float, events: list[WindowEvent]) -> Window:
    return Window(user, start + len(events), start, offset, arrived, tuple(events))


_ranked = st.builds(RankedItem, name, real, share, st.none() | share)
MADE: dict[type, st.SearchStrategy[Any]] = {
    Event: st.builds(Event, name, name, real, *[st.none() | one for one in (name, name, real, real, context)]),
    Window: st.builds(
        _window,
        *(name, whole, whole, real),
        st.lists(st.builds(WindowEvent, name, name, real, st.none() | name), min_size=1, max_size=3),
    ),
    Item: st.builds(
        Item,
        *(name, text, text, text, st.none() | st.floats(0, 1e12), st.none() | context),
        *(st.none() | st.lists(real, max_size=3), st.booleans()),
    ),
    Recommendation: st.builds(
        Recommendation,
        *(name, whole, whole, real, st.lists(_ranked, max_size=3).map(tuple), st.dictionaries(name, share, max_size=3)),
        *(st.lists(st.builds(Interest, text, share), max_size=2).map(tuple), text),
    ),
    TombstoneHeaders: st.builds(TombstoneHeaders, st.sampled_from([None, "nothing", "something"])),
    DeadLetterHeaders: st.builds(
        DeadLetterHeaders, *(text, name, name), *[whole.map(str)] * 2, real.map("{:.3f}".format), st.none() | text
    ),
}


def on_the_wire(message: msgspec.Struct) -> Any:
    """As a consumer that knows nothing of us reads it."""
    return json.loads(msgspec.json.encode(message))


def samples(of: type) -> Iterator[str]:
    yield from (V1 / f"{of.__name__}.jsonl").read_text().splitlines()


def frozen(of: type) -> Draft202012Validator:
    """The schema of version 1."""
    return Draft202012Validator(json.loads((V1 / f"{of.__name__}.json").read_text()))
