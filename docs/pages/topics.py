"""Every topic and its messages, from the AsyncAPI document and the layouts of the topics."""

from collections.abc import Iterator
from typing import Any

from docs.pages import markdown
from docs.pages.markdown import code
from stream_rec import config
from stream_rec.cli.schemas import asyncapi
from stream_rec.kafka.topics import layouts

WHO = {"receive": "Clients write it, stream_rec reads it.", "send": "stream_rec writes it."}
PARTS = {"payload": "Value", "headers": "Headers"}


INTRO = """\
# Topics

Their names are settings, and these are the defaults; so are partitions, copies, retention and sizes. Values are JSON.
[schemas/](../schemas) has the same as JSON Schema and AsyncAPI, [downstream.md](../downstream.md) what a consumer must
know, [bad-input.md](../bad-input.md) what is refused.

"""


def page() -> str:
    return markdown.text(_lines())


def _lines() -> Iterator[str]:
    settings = config.load_settings()
    document = asyncapi(settings)
    yield from INTRO.splitlines()
    for name, channel in document["channels"].items():
        yield f"## {channel['address']}"
        yield ""
        action = document["operations"][name]["action"]
        yield f"{channel['description']} {WHO[action]} Setting `{name.replace('-', '_')}_topic`."
        yield ""
        for message in channel["messages"]:
            yield _message(message, document["components"])
        yield ""
        yield f"Kafka: {code(*(f'{key}={value}' for key, value in layouts(settings)[channel['address']].items()))}."
        yield ""
    yield "# Messages"
    yield ""
    for name, schema in document["components"]["schemas"].items():
        yield from _struct(name, schema)


def _message(name: str, components: dict[str, Any]) -> str:
    told = components["messages"][name]
    key = told.get("bindings", {}).get("kafka", {}).get("key", {}).get("description")
    parts = [
        f"- **{name}**:",
        told.get("summary"),
        key and f"Key: {key}",
        *(f"{title}: {_type(told[part])}." for part, title in PARTS.items() if "$ref" in told.get(part, {})),
    ]
    return " ".join(part for part in parts if part)


def _struct(name: str, schema: dict[str, Any]) -> Iterator[str]:
    yield f"## {name}"
    yield ""
    if "description" in schema:
        yield schema["description"]
        yield ""
    if "prefixItems" in schema:
        fields = {one["title"]: one for one in schema["prefixItems"]}
        required = list(fields)[: schema["minItems"]]
    else:
        fields, required = schema["properties"], schema.get("required", [])
    rows = [
        [code(field), _type(one), "yes" if field in required else "", one.get("description", "")]
        for field, one in fields.items()
    ]
    yield from markdown.table(["field", "type", "required", "meaning"], rows)


def _type(told: dict[str, Any]) -> str:
    if "$ref" in told:
        name = told["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    kinds = [_type(one) for one in told.get("anyOf", ()) if one.get("type") != "null"]
    if kinds:
        return " or ".join(kinds)
    if "enum" in told:
        return code(*told["enum"])
    if told.get("type") == "array" and "items" in told:
        return f"array of {_type(told['items'])}"
    if told.get("type") == "object" and "additionalProperties" in told:
        return f"object of {_type(told['additionalProperties'])}"
    return " ".join([told.get("type", "anything"), *_limits(told)])


def _limits(told: dict[str, Any]) -> Iterator[str]:
    if "maxLength" in told:
        yield f"of {told.get('minLength', 0):,} to {told['maxLength']:,} characters"
    if "minimum" in told:
        yield f"of at least {told['minimum']:,}"
