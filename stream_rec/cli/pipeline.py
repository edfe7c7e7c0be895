"""What speaks to Kafka, as commands: the broker, topics, agents, worker, and what a person asks or sends."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stream_rec.cli.options import EVERYWHERE, KAFKA, PORT, POSITIVE, SEED, Command, Finite, Option, UserId, shown

if TYPE_CHECKING:
    from stream_rec.config import Settings
    from stream_rec.messages import Item, Rejected

MOST_NAMED = 20
"""Items that are named when many are left out."""

TOPICS = ("events_topic", "windows_topic", "items_topic", "recommendations_topic", "dead_letter_topic")


@click.command(cls=Command, settings=("capacity", "text_encoder", "device", "kv_cache_gb", *EVERYWHERE))
@click.option(
    "--events", type=click.Path(path_type=Path), help="a log to train on and feed [default: a simulated shop]"
)
@click.option("--items", type=click.Path(path_type=Path), cls=Option, needs=("--events",), help="the log's catalogue")
@click.option(
    "--columns",
    default="",
    cls=Option,
    needs=("--events",),
    help="the files' columns, such as user=customer,time=when,title=name",
)
@click.option(
    "--first",
    type=Finite(0, 1),
    default=0.8,
    show_default=True,
    cls=Option,
    needs=("--events",),
    help="share of the log to train on; the rest is fed",
)
@click.option("--seconds", type=Finite(0), help="how long to feed, seconds [default: until Ctrl-C or the log's end]")
@click.option("--rate", type=Finite(0), default=100.0, show_default=True, help="events a second")
@click.option("--epochs", type=POSITIVE, default=8, show_default=True, help="passes over the training log")
@click.option("--seed", type=SEED, default=0, show_default=True, help="of the simulated shop and the training")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object as the last line of stdout")
def demo(settings: "Settings", as_json: bool, **given: Any) -> int:
    """Run everything on this machine: broker, training, agents, worker, live events, a live table.

    Needs the extra `local`: pip install 'stream-rec[local]'. Ctrl-C ends it all.
    """
    from stream_rec.local import demo as room

    return room.run(settings, room.DemoOptions(as_json=as_json, **given))


@click.command()
@click.option("--data", type=click.Path(path_type=Path), help="folder to keep topics in [default: a temporary one]")
@click.option("--port", type=PORT, default=9092, show_default=True, help="port on 127.0.0.1; 0 takes any free one")
@click.option("--heap-mb", type=click.IntRange(64), default=512, show_default=True, help="Java's heap, MiB")
def broker(data: Path | None, port: int, heap_mb: int) -> int:
    """Run a real Apache Kafka (KRaft, one node) in the foreground until Ctrl-C.

    Needs neither Docker nor Java, but the extra `local`. For one machine: demo, tests, trials.
    """
    from stream_rec.local.broker import Broker
    from stream_rec.runtime.process import wait_for_shutdown

    with Broker(data, port, heap_mb, notify=lambda line: click.echo(line, err=True)) as running:
        return wait_for_shutdown(running.poll)


@click.group()
def topics() -> None:
    """Create the topics, check them against the settings, or print who needs which rights."""


@topics.command(
    "create", cls=Command, settings=(*KAFKA, *TOPICS, "partitions", "replication_factor", "retention_hours")
)
def topics_create(settings: "Settings") -> None:
    """Create the topics that do not exist; leave the others alone."""
    from stream_rec.kafka import topics as room

    created = asyncio.run(room.create(settings))
    for name in settings.topics:
        click.echo(f"{name}: {'created' if name in created else 'was there'}")


@topics.command("check", cls=Command, settings=(*KAFKA, *TOPICS, "partitions", "replication_factor", "retention_hours"))
def topics_check(settings: "Settings") -> int:
    """Compare the topics with the settings; exit code 1 where they differ."""
    from stream_rec.kafka import topics as room

    problems = asyncio.run(room.check(settings))
    for problem in problems:
        click.echo(problem)
    if not problems:
        click.echo("the topics are as the settings want them")
    return 1 if problems else 0


@topics.command("acls", cls=Command, settings=(*TOPICS, "agents_group", "worker_group", *EVERYWHERE))
def topics_acls(settings: "Settings") -> None:
    """Print the least rights of each part, as arguments for Kafka's kafka-acls.sh; see docs/security.md.

    stream-rec topics acls | xargs -L 1 kafka-acls.sh --bootstrap-server HOST:PORT --add
    """
    from stream_rec.kafka import access_control

    for arguments in access_control.acl_commands(settings):
        click.echo(arguments)


@click.command(cls=Command, settings=(*TOPICS, "partitions", "replication_factor", "retention_hours", *EVERYWHERE))
@click.argument("folder", type=click.Path(path_type=Path))
def schemas(settings: "Settings", folder: Path) -> None:
    """Write JSON Schemas of all messages, and an AsyncAPI document of the topics, into FOLDER.

    Topic names and layouts are those of the settings. See docs/downstream.md.
    """
    from stream_rec.cli import schemas as room

    for path in room.write(folder, settings):
        click.echo(path)


@click.command(
    cls=Command,
    settings=(
        *KAFKA,
        *("events_topic", "windows_topic", "dead_letter_topic", "event_types", "max_event_bytes", "max_future_s"),
        *("pseudonym_key_file", "capacity", "stride", "store", "standby_replicas", "agents_group"),
        *("metrics_host", "agents_metrics_port", "ready_lag", "fail_fast", "cache_dir"),
    ),
)
def agents(settings: "Settings") -> int:
    """Run an agent process: events to rolling windows, bad ones to dead letters. Several share the partitions."""
    from stream_rec.pipeline import agents as room

    return room.run(settings)


@click.command(
    cls=Command,
    settings=(
        *KAFKA,
        *("model", "watch_model_s", "windows_topic", "items_topic", "recommendations_topic", "dead_letter_topic"),
        *("stride", "audit_share", "token_budget", "batch_windows", "linger_ms", "coalesce", "top_k"),
        *("index", "index_effort", "recall_share", "exclude_seen", "categories", "diversity", "interests_k"),
        "learn_per_day",
        *("device", "threads", "kv_cache_gb", "kv_cache_share", "kv_host_gb", "dtype", "worker_group"),
        *("metrics_host", "worker_metrics_port", "ready_lag", "fail_fast", "cache_dir"),
    ),
)
def worker(settings: "Settings") -> int:
    """Run a worker process: windows to recommendations, by the trained model. Several share the partitions."""
    from stream_rec.worker import main as room

    return room.run(settings)


@click.command(cls=Command, settings=(*KAFKA, "items_topic", "max_item_bytes"))
@click.argument("items", type=click.Path(path_type=Path))
@click.option("--columns", default="", help="the file's columns, such as item=sku,title=name")
@click.option(
    "--like",
    cls=Option,
    excludes=("--events",),
    help="name of the item column in the log that the items belong to; --events finds it by itself",
)
@click.option(
    "--events", type=click.Path(path_type=Path), help="that log: how many of its items the catalogue knows is printed"
)
def items(settings: "Settings", items: Path, columns: str, like: str | None, events: Path | None) -> int:
    """Write a catalogue file to the items topic: each item is recommendable at once.

    Items that workers would refuse are named and left out; exit code 1 where there are any.
    """
    from stream_rec.data import event_log, ids
    from stream_rec.kafka.publish import publish_items
    from stream_rec.runtime.terminal import as_line

    if events is None:
        catalogue = event_log.read_items(items, event_log.parse_columns(columns), like)
    else:
        log, catalogue = event_log.read_both(events, items, columns)
        known = [item.item_id for item in catalogue]
        for line in ids.coverage(ids.joined(log.frame["item"], known), known):
            click.echo(as_line(line), err=True)
    refused: list[str] = []

    def refuse(item: "Item", rejected: "Rejected") -> None:
        refused.append(f"item {item.item_id!r} is left out: {rejected}")

    count = asyncio.run(publish_items(shown(catalogue, len(catalogue), "items"), settings, refuse))
    for line in refused[:MOST_NAMED]:
        click.echo(as_line(line), err=True)
    if len(refused) > MOST_NAMED:
        click.echo(f"{len(refused) - MOST_NAMED:,} more items are left out", err=True)
    click.echo(f"{count:,} items written to topic {settings.items_topic}")
    return 1 if refused else 0


@click.command(cls=Command, settings=(*KAFKA, "recommendations_topic", "items_topic", "pseudonym_key_file"))
@click.argument("user", type=UserId())
@click.option("--json", "as_json", is_flag=True, help="the recommendation as it stands in the topic")
def recommend(settings: "Settings", user: str, as_json: bool) -> int:
    """Show the newest recommendation of USER, with titles; exit code 1 where there is none."""
    from stream_rec.local import lookup

    return asyncio.run(lookup.show(user, settings, as_json))


@click.command(cls=Command, settings=("pseudonym_key_file",))
@click.argument("user", type=UserId())
def pseudonym(settings: "Settings", user: str) -> None:
    """Print what USER is called in windows and recommendations: the key of their records.

    Without a key file that is the id itself.
    """
    from stream_rec.pseudonyms import naming

    click.echo(naming(settings.pseudonym_key_file)(user))


@click.command(cls=Command, settings=(*KAFKA, *TOPICS, "agents_group", "worker_group", "pseudonym_key_file"))
@click.argument("user", type=UserId())
@click.option(
    "--wait", is_flag=True, help="until it is done, and print a receipt as JSON: what was checked, what remains"
)
@click.option(
    "--timeout",
    type=Finite(0),
    default=60.0,
    show_default=True,
    cls=Option,
    needs=("--wait",),
    help="longest wait for the agents, and for the worker, seconds",
)
def forget(settings: "Settings", user: str, wait: bool, timeout: float) -> int:
    """Erase USER: window, recommendation, cached keys and values, in order with the user's other events.

    With --wait, exit code 1 where it is not done in time or something of the user is left that should be gone.
    """
    from stream_rec import erasure as room

    return asyncio.run(room.run(user, settings, timeout if wait else None))


COMMANDS = (demo, broker, topics, schemas, agents, worker, items, recommend, pseudonym, forget)
