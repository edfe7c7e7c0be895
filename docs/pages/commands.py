"""Every command with its options, as click tells them."""

from collections.abc import Iterator, Sequence

import click

from docs.pages import markdown
from docs.pages.markdown import code
from stream_rec.cli.main import cli
from stream_rec.cli.options import Command

WIDE = 10_000
"""Columns, so that click breaks no line."""


INTRO = """\
# Commands

`stream-rec COMMAND --help` prints the same. Exit codes: 0 done; 1 where the command says so; 2 a mistake in what it was
given, told in one line; 130 after Ctrl-C. The settings that a command takes as options stand in
[settings.md](settings.md). Before the command:

"""


def page() -> str:
    return markdown.text(_lines())


def _lines() -> Iterator[str]:
    yield from INTRO.splitlines()
    root = click.Context(cli, info_name="stream-rec", terminal_width=WIDE, max_content_width=WIDE)
    yield from _options(root)
    yield from _commands(cli, root)


def _commands(group: click.Group, context: click.Context) -> Iterator[str]:
    for name, command in group.commands.items():
        inner = click.Context(command, info_name=name, parent=context)
        yield f"## {inner.command_path}"
        yield ""
        yield _prose(command.help or "")
        yield ""
        yield from _commands(command, inner) if isinstance(command, click.Group) else _usage(inner)


def _usage(context: click.Context) -> Iterator[str]:
    yield "```text"
    yield context.command.get_usage(context).removeprefix("Usage: ")
    yield "```"
    yield ""
    yield from _options(context)
    if settings := _settings(context.command):
        options = [option for option in context.command.get_params(context) if option.name in settings]
        yield f"Settings: {', '.join(map(_setting, options))}."
        yield ""


def _setting(option: click.Parameter) -> str:
    """The option, and where it has another name, the setting."""
    flag, name = option.opts[0], option.name or ""
    return code(flag) if flag == "--" + name.replace("_", "-") else f"{code(flag)} ({code(name)})"


def _settings(command: click.Command) -> Sequence[str]:
    return command.settings if isinstance(command, Command) else ()


def _options(context: click.Context) -> Iterator[str]:
    """A table of the options that are no settings."""
    left_out = {"help", *_settings(context.command)}
    records = [
        record
        for option in context.command.get_params(context)
        if option.name not in left_out and (record := option.get_help_record(context))
    ]
    if records:
        yield from markdown.table(["option", "meaning"], [[code(names), _prose(about)] for names, about in records])


def _prose(text: str) -> str:
    """Without click's doubled spaces, and with what would be HTML or emphasis left as it stands."""
    return (
        "\n".join(" ".join(line.split()) for line in text.strip().splitlines()).replace("<", "&lt;").replace("*", r"\*")
    )
