import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import msgspec
import pytest
from asyncapi3 import AsyncAPI3
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from stream_rec import config
from stream_rec.cli.schemas import STRUCTS, asyncapi, schema, write
from stream_rec.messages import Window, as_headers
from tests.wire import MADE, on_the_wire

KEPT = Path(__file__).parents[2] / "docs" / "schemas"

of_each = pytest.mark.parametrize("of", STRUCTS, ids=lambda of: of.__name__)
SCHEMAS = {of: Draft202012Validator(schema(of)) for of in STRUCTS}
DOCUMENT = asyncapi(config.load_settings())

anything = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 1 << 53) | st.floats(-1e6, 1e6) | st.text(max_size=3)
    | st.sampled_from(["nothing", "7", "x" * 257, "x" * 2_001]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each container in a JSON value with each of its keys or indices."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from places(value[key])


def test_the_kept_documents_are_those_of_the_code(tmp_path: Path) -> None:
    written = {path.name: path.read_text() for path in write(tmp_path, config.load_settings())}
    kept = {path.name: path.read_text() for path in KEPT.iterdir()}
    assert written == kept, "run 'make reference'"


@of_each
def test_each_schema_is_one(of: type) -> None:
    Draft202012Validator.check_schema(schema(of))


@of_each
@given(data=st.data())
def test_a_schema_accepts_what_is_read_and_nothing_else(of: type, data: st.DataObject) -> None:
    message = on_the_wire(data.draw(MADE[of]))
    change = data.draw(st.sampled_from(["none", "replace", "remove"]))
    if change != "none" and (found := list(places(message))):
        container, key = data.draw(st.sampled_from(found))
        if change == "replace":
            container[key] = data.draw(anything)
        else:
            del container[key]
    try:
        msgspec.json.decode(json.dumps(message), type=of)
        read = True
    except msgspec.ValidationError as error:
        if "can't hold" in str(error):  # a rule between fields, which no schema can tell
            return
        read = False
    assert SCHEMAS[of].is_valid(message) == read


def test_what_the_code_says_of_a_field_is_in_its_schema() -> None:
    defined = schema(Window)["$defs"]
    assert defined["Window"]["properties"]["n"]["description"].startswith("Events of this user so far")
    assert [one["title"] for one in defined["WindowEvent"]["prefixItems"]][:2] == ["item_id", "event_type"]


@given(st.data())
def test_headers_are_texts(data: st.DataObject) -> None:
    for of in STRUCTS[-2:]:
        told = data.draw(MADE[of])
        assert {name: text.decode() for name, text in as_headers(told)} == on_the_wire(told)


def spoiled(*path: str, value: Any) -> dict[str, Any]:
    document = deepcopy(DOCUMENT)
    *outer, last = path
    inner = document
    for key in outer:
        inner = inner[key]
    inner[last] = value
    return document


def test_the_document_is_one_of_asyncapi_3() -> None:
    AsyncAPI3.model_validate(DOCUMENT)


@pytest.mark.parametrize(
    "document",
    [
        spoiled("asyncapi", value="2.6.0"),
        spoiled("operations", "events", "action", value="emit"),
        spoiled("channels", "events", "topic", value="events"),
        spoiled("channels", "events", "bindings", "kafka", "partitions", value=0),
    ],
)
def test_what_is_none_of_asyncapi_3_would_be_seen(document: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AsyncAPI3.model_validate(document)


def test_every_reference_leads_somewhere() -> None:
    targets = [container["$ref"] for container, key in places(DOCUMENT) if key == "$ref"]
    assert targets
    for target in targets:
        inner: Any = DOCUMENT
        for key in target.removeprefix("#/").split("/"):
            inner = inner[key]


def test_the_document_names_the_topics_of_the_settings() -> None:
    channels = asyncapi(config.load_settings(recommendations_topic="shop.answers"))["channels"]
    assert channels["recommendations"]["address"] == "shop.answers"
