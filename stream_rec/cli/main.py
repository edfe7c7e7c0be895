"""The commands; each a thin call into a room. What is heavy (torch, faust, polars) is imported by who needs it.

Options that are settings take their help, unit and default from `config.py`, and are read together with the environment
and the TOML file there.
"""

import logging
import math
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from stream_rec import __version__
from stream_rec.cli.bench import bench
from stream_rec.cli.console import console, explain
from stream_rec.cli.options import EVERYWHERE, KAFKA, POSITIVE, SEED, Command, Finite, Option, shown
from stream_rec.cli.pipeline import COMMANDS
from stream_rec.cli.training import evaluate, train
from stream_rec.errors import UserError

if TYPE_CHECKING:
    from stream_rec.config import Settings
    from stream_rec.data.source import Source


UNWRITTEN = "what is printed can't be written"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, "--version", prog_name="stream-rec", message="%(prog)s %(version)s")
@click.option("--config", type=click.Path(path_type=Path), help="TOML file of settings [default: stream-rec.toml]")
@click.pass_context
def cli(context: click.Context, config: Path | None) -> None:  # noqa: ARG001 - `Command` reads it
    """Streaming, real-time behaviour prediction on Kafka: events in, ranked next items out.

    Begin with 'stream-rec demo'. Settings come from options, then the environment (STREAM_REC_*), then a TOML file;
    'stream-rec settings' lists them all.
    """
    context.obj = _read_topic


def _read_topic(*arguments: Any) -> "Source":
    """What `train` reads a topic with: its own room knows no Kafka. See `replay.kafka_source.read`."""
    from stream_rec.replay import kafka_source

    return kafka_source.read(*arguments)


@cli.command()
def version() -> None:
    """Print the version."""
    click.echo(f"stream-rec {__version__}")


@cli.command(cls=Command, settings=EVERYWHERE)
def settings(settings: "Settings") -> None:
    """List every setting: its value now, its environment name, what it means."""
    from rich.table import Table

    from stream_rec.config import environment_name
    from stream_rec.runtime.terminal import Terminal

    table = Table(box=None, pad_edge=False)
    for heading in ("setting", "value", "environment", "meaning"):
        table.add_column(heading, overflow="fold")
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        text = ",".join(value) if isinstance(value, tuple) else str(value)
        table.add_row(name, text, environment_name(name), field.description)
    Terminal().print(table)


@cli.command()
@click.option("--events", type=click.Path(path_type=Path), required=True, help="file to write: .csv, .jsonl (.gz)")
@click.option("--items", type=click.Path(path_type=Path), required=True, help="file to write: .csv, .jsonl (.gz)")
@click.option("--count", type=POSITIVE, default=60_000, show_default=True, help="events")
@click.option("--products", type=POSITIVE, default=600, show_default=True, help="products in the shop, 312 to 100,000")
@click.option("--shoppers", type=POSITIVE, default=2_000, show_default=True, help="shoppers")
@click.option("--seed", type=SEED, default=0, show_default=True, help="the same seed gives the same files")
def simulate(events: Path, items: Path, count: int, products: int, shoppers: int, seed: int) -> None:
    """Write the log and the catalogue of a simulated storefront."""
    from itertools import islice

    from stream_rec.data import event_log
    from stream_rec.data.simulator.storefront import Storefront

    if events.resolve() == items.resolve():
        raise UserError(f"--events and --items are both {events}: give each a file of its own")
    shop = Storefront(seed, products, shoppers)
    event_log.write_items(shop.items, items)
    event_log.write_events(shown(islice(shop.events(), count), count, "simulating"), events)
    click.echo(f"{count:,} events in {events}, {products:,} items in {items}")


@cli.command(
    cls=Command,
    settings=(
        *(*KAFKA, "events_topic", "recommendations_topic", "dead_letter_topic", "items_topic", "capacity", "stride"),
        *("device", "threads", "kv_cache_gb", "cache_dir"),
    ),
    offline=lambda given: "--diff" in given and "--from-topic" not in given,
)
@click.argument("events", type=click.Path(path_type=Path), required=False)
@click.option("--columns", default="", help="the log's columns, such as user=customer,time=when")
@click.option("--limit", type=POSITIVE, help="most events to send, or to compare the answers to")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    cls=Option,
    needs=("--report", "--diff"),
    help="the report, or the comparison, as one JSON object",
)
@click.option(
    "--after",
    type=Finite(0, 1),
    default=0.0,
    show_default=True,
    cls=Option,
    excludes=("--diff",),
    help="share of the log to leave out at its beginning",
)
@click.option(
    "--speed",
    default="max",
    show_default=True,
    cls=Option,
    excludes=("--diff", "--rate"),
    help="'max', or how many times faster than the log",
)
@click.option(
    "--rate",
    type=Finite(0),
    cls=Option,
    excludes=("--diff",),
    help="events a second, whatever the log's gaps; instead of --speed",
)
@click.option(
    "--shift",
    is_flag=True,
    cls=Option,
    excludes=("--diff",),
    help="timestamps become the moment of sending [default: the log's own]",
)
@click.option(
    "--report",
    is_flag=True,
    cls=Option,
    excludes=("--diff",),
    help="follow the answers: accuracy beside the floors, latency, what was lost",
)
@click.option("--diff", is_flag=True, help="send nothing: compare what two models answer to the events")
@click.option(
    "--model",
    "models",
    type=click.Path(path_type=Path),
    multiple=True,
    cls=Option,
    needs=("--diff",),
    help="with --diff: a model's folder; twice",
)
@click.option(
    "--from-topic",
    metavar="TOPIC",
    cls=Option,
    needs=("--diff",),
    excludes=("--columns",),
    help="with --diff: a topic of events in place of the file",
)
@click.option(
    "--range",
    metavar="SINCE..UNTIL",
    cls=Option,
    needs=("--diff",),
    help="with --diff: compare events from a time on and before another: 2026-11-26..2026-11-27T08:30, or an age, 7d",
)
def replay(
    settings: "Settings",
    events: Path | None,
    columns: str,
    limit: int | None,
    as_json: bool,
    diff: bool,
    models: tuple[Path, ...],
    from_topic: str | None,
    range: str | None,
    **sending: Any,
) -> None:
    """Send a log's events to the events topic, each user's in order; or, with --diff, try two models on them.

    With --report, see what becomes of the events. It is prequential: each event is compared with the newest answer
    before it. The floors, popularity and last-item Markov, learn from the part that --after leaves out and from each
    event. A worker that coalesces answers a burst by its newest event alone, so for a report at speed start it with
    --coalesce false.

    With --diff nothing is sent: both models answer the same windows in the same order, each with a memory that learns
    on. Compared are events that neither was trained on: accuracy, with an interval from resampled users, how far the
    answers agree, and whose changed most, by user id.
    """
    if diff:
        from stream_rec.cli import diff as command
        from stream_rec.serving.load import load_engine

        plan = command.DiffOptions(models, events, from_topic, range, columns, limit, as_json)
        command.run(settings, plan, partial(_read_topic, settings), load_engine)
        return
    from stream_rec.data import event_log
    from stream_rec.replay import command as room

    if events is None:
        raise UserError("name a file of events to send")
    log = event_log.read_events(events, event_log.parse_columns(columns))
    room.run(settings, log, room.ReplayOptions(limit=limit, as_json=as_json, **sending))


@cli.command(cls=Command, settings=("retention_hours", "replication_factor", *EVERYWHERE))
@click.option("--events-per-second", type=Finite(0, 1e12, min_open=True), required=True, help="at the busiest hour")
@click.option("--users", type=POSITIVE, required=True, help="users with a window")
@click.option("--active", type=POSITIVE, help="users whose next event should be an append [default: a tenth]")
@click.option("--items", type=POSITIVE, default=10_000, show_default=True, help="items in the catalogue")
@click.option("--busy", type=Finite(0.1, 0.95), default=0.6, show_default=True, help="share of a core in use")
@click.option(
    "--measured", type=click.Path(path_type=Path), help="what 'bench pipeline --json' printed on such a machine"
)
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
def plan(settings: "Settings", as_json: bool, **given: Any) -> None:
    """Work out how many agents, workers and partitions, and what memory and disk, a load asks for.

    From processor seconds measured for a thousand events, on this project's machine or with --measured on yours.
    """
    from stream_rec import scaling
    from stream_rec.bench import report

    load = scaling.Load(
        given["events_per_second"],
        given["users"],
        given["active"] or math.ceil(given["users"] / 10),
        given["items"],
        settings.retention_hours,
    )
    costs = scaling.Costs() if given["measured"] is None else scaling.Costs.read(given["measured"])
    found = scaling.plan(load, costs, given["busy"], settings.replication_factor)
    report.show(report.listed(found), found, as_json)


for command in (*COMMANDS, train, evaluate, bench, console, explain):
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The entry point: a person's mistake is one line and exit code 2."""
    logging.getLogger("aiokafka").setLevel(logging.ERROR)  # it warns of each retry
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what a terminal of few characters can't show
    try:
        code = cli.main(args=arguments, prog_name="stream-rec", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except UserError as error:
        code = _refused(str(error))
    except OSError as error:
        if error.errno is None or error.strerror is None:  # a time-out, or what some library makes of one: a defect
            raise
        code = _refused(f"{error.filename or UNWRITTEN}: {error.strerror}")
    except SystemExit as error:
        if not isinstance(error.__context__, BrokenPipeError):  # which click ends with exit code 1 and no word
            raise
        code = _refused(f"{UNWRITTEN}: {error.__context__.strerror}")
    except click.ClickException as error:
        with suppress(OSError):
            error.show()
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        code = 130
    sys.exit(code if isinstance(code, int) else 0)


def _refused(why: str) -> int:
    """Says in one line why the command ends, where that can be said; returns the exit code."""
    from stream_rec.runtime.terminal import as_line

    with suppress(OSError):
        click.echo(f"stream-rec: {as_line(why)}", err=True)
    try:
        sys.stdout.flush()
    except (OSError, AttributeError):  # else the interpreter tries again when it ends, with a traceback
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 2


if __name__ == "__main__":
    main()
