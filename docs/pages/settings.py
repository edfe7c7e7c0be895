"""Every setting, from `config.py`."""

from collections.abc import Iterator
from typing import Any

from docs.pages import markdown
from docs.pages.markdown import code
from stream_rec.config import PREFIX, Settings, environment_name

BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
KINDS = {"boolean": "true or false", "integer": "whole number", "number": "number", "string": "text", "array": "list"}


INTRO = f"""\
# Settings

A setting comes from, in this order:

1. an option of the command, `--top-k 50`; [commands.md](commands.md) says which command takes which;
2. the environment, `{environment_name("top_k")}=50`: `{PREFIX}` and the name in capitals;
3. a TOML file, `top_k = 50`: the one that `--config` or `{PREFIX}CONFIG` names, else `stream-rec.toml` in the working
   folder;
4. the default.

`stream-rec settings` prints the values in force. A wrong value, or a name that is no setting, ends the command with one
line that names it, and exit code 2.

"""


def page() -> str:
    return markdown.text(_lines())


def _lines() -> Iterator[str]:
    yield from INTRO.splitlines()
    told = Settings.model_json_schema()["properties"]
    rows = [[code(name), _values(told[name]), _default(name), told[name]["description"]] for name in told]
    yield from markdown.table(["setting", "values", "default", "meaning"], rows)


def _default(name: str) -> str:
    field = Settings.model_fields[name]
    if field.default_factory is not None:  # it depends on the machine
        return "the user's cache folder"
    value = ",".join(field.default) if isinstance(field.default, tuple) else field.default
    return "" if value in (None, "") else code(str(value).lower() if isinstance(value, bool) else value)


def _values(told: dict[str, Any]) -> str:
    """What JSON Schema says of a value, in words; None is told by an empty default."""
    (one,) = [kind for kind in told.get("anyOf", [told]) if kind.get("type") != "null"]
    if "enum" in one:
        return code(*one["enum"])
    if one.get("format", "").endswith("path"):
        return "path"
    bounds = [f"{words} {one[bound]:,}" for bound, words in BOUNDS.items() if bound in one]
    return ", ".join([KINDS[one["type"]], *bounds])
