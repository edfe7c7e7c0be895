"""What stands in the topics, for programs in any language: JSON Schemas, and an AsyncAPI 3 document of the topics.

Both are made from `messages.py`: types, limits, defaults, and what is said there about a field.
"""

import ast
import inspect
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from stream_rec import __version__, messages
from stream_rec.config import Settings
from stream_rec.errors import UserError
from stream_rec.kafka import topics
from stream_rec.messages import DeadLetterHeaders, Event, Item, Recommendation, TombstoneHeaders, Window

Json = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
STRUCTS = (Event, Window, Item, Recommendation, TombstoneHeaders, DeadLetterHeaders)
STATED = ("retention.ms", "delete.retention.ms", "max.message.bytes")
"""Of a topic's configuration, beside `cleanup.policy`: what AsyncAPI's binding of Kafka has numbers for."""


class Channel(NamedTuple):
    """A topic as others see it."""

    topic: str
    """Its name, by the settings."""
    about: str
    action: str
    """`send` or `receive`: what stream_rec does."""
    messages: Sequence[str]


def write(folder: Path, settings: Settings) -> list[Path]:
    """Writes `asyncapi.json` and a schema of each message; returns the paths.

    Raises `UserError` when the folder can't be written to.
    """
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, document in documents(settings).items():
            path = folder / name
            path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
            written.append(path)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from None
    return written


def documents(settings: Settings) -> dict[str, Json]:
    """File name to content."""
    schemas = {f"{of.__name__}.json": schema(of) for of in STRUCTS}
    return {"asyncapi.json": asyncapi(settings)} | schemas


def schema(of: type[msgspec.Struct]) -> Json:
    """The JSON Schema of one struct, complete in itself."""
    (top,), parts = msgspec.json.schema_components([of], ref_template="#/$defs/{name}")
    return {"$schema": DIALECT, **top, "$defs": _described(parts)}


def asyncapi(settings: Settings) -> Json:
    """Topics, messages and schemas in one AsyncAPI document; topic names and layouts are those of the settings."""
    _, schemas = msgspec.json.schema_components(STRUCTS, ref_template="#/components/schemas/{name}")
    channels = _channels(settings)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "stream_rec",
            "version": __version__,
            "description": "Events in, and after each of them what its user will probably do next.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {name: _channel(channel, settings) for name, channel in channels.items()},
        "operations": {name: _operation(name, channel) for name, channel in channels.items()},
        "components": {"messages": _messages(), "schemas": _described(schemas)},
    }


def _described(schemas: Json) -> Json:
    """Adds to each field what stands under it in the source; msgspec passes on the docstrings of classes alone."""
    for name, told in schemas.items():
        of = getattr(messages, name)
        about = dict(_field_docs(of))
        by_place = dict(zip(of.__struct_fields__, told.get("prefixItems", ()), strict=False))
        for field, one in by_place.items():
            one["title"] = field
        for field, one in {**told.get("properties", {}), **by_place}.items():
            if field in about:
                one["description"] = about[field]
    return schemas


def _field_docs(of: type) -> Iterator[tuple[str, str]]:
    """Each field that has a text right under it, and the text."""
    for node in ast.parse(inspect.getsource(of)).body:
        for pair in itertools.pairwise(ast.iter_child_nodes(node)):
            match pair:
                case ast.AnnAssign(target=ast.Name(id=field)), ast.Expr(value=ast.Constant(value=str(text))):
                    yield field, " ".join(text.split())


def _channels(settings: Settings) -> dict[str, Channel]:
    return {
        "events": Channel(settings.events_topic, "What users do, as it happens.", "receive", ["Event"]),
        "windows": Channel(
            settings.windows_topic,
            "What the agents remember of each user, and the worker's queue. Read it, never write to it.",
            "send",
            ["Window", "Erased"],
        ),
        "items": Channel(settings.items_topic, "The catalogue.", "receive", ["Item", "Tombstone"]),
        "recommendations": Channel(
            settings.recommendations_topic,
            "The answers, written in transactions: read committed records only.",
            "send",
            ["Recommendation", "Erased"],
        ),
        "dead-letter": Channel(
            settings.dead_letter_topic, "What can't be used, with the reason.", "send", ["DeadLetter"]
        ),
    }


def _channel(channel: Channel, settings: Settings) -> Json:
    layout = topics.layouts(settings)[channel.topic]
    numbers = {name: int(layout[name]) for name in STATED if name in layout}
    return {
        "address": channel.topic,
        "description": channel.about,
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in channel.messages},
        "bindings": {
            "kafka": {
                "partitions": settings.partitions,
                "replicas": settings.replication_factor,
                "topicConfiguration": {"cleanup.policy": [layout["cleanup.policy"]], **numbers},
                "bindingVersion": "0.5.0",
            }
        },
    }


def _operation(name: str, channel: Channel) -> Json:
    return {"action": channel.action, "channel": {"$ref": f"#/channels/{name}"}}


def _messages() -> Json:
    user, item = ({"type": "string", "description": f"The {whose}_id, in UTF-8."} for whose in ("user", "item"))
    return {
        **{of.__name__: _message(user, payload=_ref(of)) for of in (Event, Window, Recommendation)},
        "Item": _message(item, payload=_ref(Item)),
        "Tombstone": _message(item, payload={"type": "null"}, summary="No value: the item is withdrawn."),
        "Erased": _message(
            user,
            payload={"type": "null"},
            headers=_ref(TombstoneHeaders),
            summary="No value: the user was erased. Drop what you hold of them.",
        ),
        "DeadLetter": {
            "contentType": "application/octet-stream",
            "headers": _ref(DeadLetterHeaders),
            "summary": "Key and value are the bytes as they came.",
        },
    }


def _message(key: Json, **parts: Any) -> Json:
    return parts | {"bindings": {"kafka": {"key": key, "bindingVersion": "0.5.0"}}}


def _ref(of: type) -> Json:
    return {"$ref": f"#/components/schemas/{of.__name__}"}
