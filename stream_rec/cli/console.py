"""The page and the explanation as commands."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from stream_rec.cli.options import KAFKA, Command, UserId

if TYPE_CHECKING:
    from stream_rec.config import Settings

MODEL = (
    "model",
    "capacity",
    "stride",
    "top_k",
    "index",
    "learn_per_day",
    "exclude_seen",
    "categories",
    "diversity",
    "device",
    "threads",
)
"""Settings that make the model aside answer as the workers do."""


@click.command(
    cls=Command,
    settings=(
        *(*KAFKA, "console_host", "console_port"),
        *("events_topic", "windows_topic", "items_topic", "recommendations_topic", "dead_letter_topic", "event_types"),
        *("pseudonym_key_file", "fail_fast"),
        *(*MODEL, "cache_dir"),
    ),
)
@click.option("--allow-events", is_flag=True, help="let the page send events [default: it is read-only]")
def console(settings: "Settings", allow_events: bool) -> int:
    """Serve a page to look at: the live stream, accuracy, users, items; and /recommendations/USER as JSON.

    With --model (or its variable) it also says why: the model is loaded at the first question, beside the workers.
    Whoever reaches the address sees what users do: it listens on this machine alone unless --host says otherwise.
    """
    from stream_rec.console import server

    return server.run(settings, allow_events)


@click.command(
    cls=Command,
    settings=(
        *(*KAFKA, "windows_topic", "items_topic", "recommendations_topic", "pseudonym_key_file"),
        *(*MODEL, "cache_dir"),
    ),
)
@click.argument("user", type=UserId(), required=False)
@click.option("--window", type=click.Path(path_type=Path), help="a window as JSON, in place of USER; asks no broker")
@click.option(
    "--llm",
    metavar="MODEL",
    help="a causal language model (a name, a folder or a .gguf file) that sums the facts up; it runs on this machine",
)
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
def explain(settings: "Settings", user: str | None, window: Path | None, llm: str | None, as_json: bool) -> int:
    """Explain the newest answer of USER: the parts of each score, and which events moved it most.

    The model computes the answer again, with a memory of its own and what the topics teach up to the user's window;
    the output says how far that is the published answer. Exit code 1 where the user has no window.
    """
    from stream_rec.console.explain import command as room

    return room.run(settings, room.ExplainOptions(user, window, as_json, llm))
