"""Old and new versions read each other: the rules of docs/downstream.md, against what version 1 wrote and knows."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_rec.cli.schemas import STRUCTS
from stream_rec.messages import Recommendation, Window
from tests.wire import MADE, frozen, on_the_wire, samples

FREE = ("context", "attributes", "next_event")
"""Objects whose names are data, and not fields."""
of_each = pytest.mark.parametrize("of", STRUCTS, ids=lambda of: of.__name__)


def holds(new: Any, old: Any) -> bool:
    """Whether all that `old` says is said in `new`, which may have fields more, and elements more at the end."""
    match old:
        case dict():
            return all(name in new and holds(new[name], value) for name, value in old.items())
        case list():
            return len(new) >= len(old) and all(map(holds, new, old))
    return new == old


def grown(old: Any) -> Any:
    """The message with a field more in every object, as a later version may write it."""
    match old:
        case dict():
            return {name: value if name in FREE else grown(value) for name, value in old.items()} | {"added later": [1]}
        case list():
            return [grown(one) for one in old]
    return old


@of_each
def test_what_version_1_wrote_is_read_and_nothing_of_it_is_lost(of: type) -> None:
    for sample in samples(of):
        read = msgspec.json.decode(sample, type=of)
        assert holds(on_the_wire(read), json.loads(sample))


@of_each
def test_the_samples_have_every_field_of_version_1(of: type) -> None:
    schema = frozen(of).schema["$defs"][of.__name__]
    written = set().union(*(json.loads(sample) for sample in samples(of)))
    assert written == set(schema["properties"])


@of_each
@given(data=st.data())
def test_what_is_written_now_is_what_a_consumer_of_version_1_expects(of: type, data: st.DataObject) -> None:
    frozen(of).validate(on_the_wire(data.draw(MADE[of])))


@of_each
def test_a_field_that_a_later_version_adds_is_passed_over(of: type) -> None:
    for sample in samples(of):
        later = grown(json.loads(sample))
        assert msgspec.json.decode(json.dumps(later), type=of) == msgspec.json.decode(sample, type=of)
        frozen(of).validate(later)


def test_a_window_event_may_grow_at_its_end() -> None:
    (sample, *_) = samples(Window)
    later = json.loads(sample)
    later["events"] = [[*event, None, "added later"] for event in later["events"]]
    assert msgspec.json.decode(json.dumps(later), type=Window) == msgspec.json.decode(sample, type=Window)
    frozen(Window).validate(later)


def test_it_would_be_seen_if_a_field_changed_its_type_or_went() -> None:
    (*_, sample) = samples(Recommendation)
    assert holds({"a": [1], "b": 2}, {"a": [1]})
    assert not holds(json.loads(sample) | {"seq": "70"}, json.loads(sample))
    assert not frozen(Recommendation).is_valid(json.loads(sample) | {"seq": "70"})
    without = {name: value for name, value in json.loads(sample).items() if name != "model"}
    assert not frozen(Recommendation).is_valid(without)
