"""The benchmarks as commands."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stream_rec.cli.options import CORES, EVERYWHERE, POSITIVE, Command, Finite, Option
from stream_rec.cli.training import COLUMNS
from stream_rec.runtime.process import limit_openmp_spinning

if TYPE_CHECKING:
    from stream_rec.config import Settings

EVENTS = click.option(
    "--events", type=click.Path(path_type=Path), help="a log with long histories [default: a simulated shop]"
)
LOG_COLUMNS = click.option(
    "--columns", default="", cls=Option, needs=("--events",), help="the log's columns, such as user=customer,time=when"
)
ITEMS = click.option(
    "--items", type=POSITIVE, default=10_000, show_default=True, help="items in the catalogue, at least the log's own"
)
RUNS = click.option("--runs", type=POSITIVE, default=3, show_default=True, help="runs, of which the median counts")
WIDTH = click.option("--width", type=POSITIVE, default=128, show_default=True, help="of the decoder")
LAYERS = click.option("--layers", type=POSITIVE, default=2, show_default=True, help="of the decoder")
USERS = click.option(
    "--users",
    type=POSITIVE,
    default=2_000,
    show_default=True,
    cls=Option,
    excludes=("--events",),
    help="users of the simulated shop",
)
AGENTS = click.option("--agents", type=POSITIVE, default=1, show_default=True, help="agent processes")
THREADS = click.option("--threads", type=CORES, default=1, show_default=True, help="CPU threads of torch")
SHAPED = ("--base", "--decoder")
"""Decoders that have a shape of their own."""
JSON = click.option("--json", "as_json", is_flag=True, help="print one JSON object as the last line of stdout")


@click.group()
def bench() -> None:
    """Measure this machine; each benchmark prints its figures, and with --json one JSON object as the last line."""


@bench.command("engine", cls=Command, settings=("kv_cache_gb", "device", "dtype"))
@EVENTS
@click.option(
    "--columns",
    default="",
    cls=Option,
    needs=("--events", "--titles"),
    help="the files' columns, such as user=customer,time=when,title=name",
)
@click.option(
    "--capacity",
    type=POSITIVE,
    help="events in the longest window; it moves by half of it [default: 128; with --base 32]",
)
@click.option(
    "--width", type=POSITIVE, default=256, show_default=True, cls=Option, excludes=SHAPED, help="of the decoder"
)
@click.option(
    "--layers",
    type=POSITIVE,
    cls=Option,
    excludes=("--decoder",),
    help="of the decoder [default: 4; with --base all]",
)
@click.option(
    "--heads", type=POSITIVE, default=4, show_default=True, cls=Option, excludes=SHAPED, help="attention heads"
)
@click.option(
    "--kv-heads",
    type=POSITIVE,
    default=1,
    show_default=True,
    cls=Option,
    excludes=SHAPED,
    help="heads of the keys and values",
)
@click.option(
    "--items",
    type=POSITIVE,
    default=10_000,
    show_default=True,
    cls=Option,
    excludes=("--base",),
    help="items in the catalogue, at least the log's own",
)
@click.option(
    "--count", type=POSITIVE, help="events to answer: the last ones of the log [default: 50000; with --base 400]"
)
@click.option(
    "--batch", type=POSITIVE, help="windows in a step, and whole windows in a batch [default: 256; with --base 32]"
)
@RUNS
@THREADS
@click.option(
    "--decoder",
    type=click.Path(path_type=Path),
    cls=Option,
    excludes=("--base",),
    help="a transformers configuration (config.json): random weights in its shape, not in the one above",
)
@click.option("--base", help="a pre-trained causal language model in place of the random decoder, read in both ways")
@click.option(
    "--titles",
    type=click.Path(path_type=Path),
    cls=Option,
    needs=("--base",),
    help="with --base: the log's catalogue, for the words",
)
@JSON
def bench_engine(
    settings: "Settings",
    events: Path | None,
    columns: str,
    base: str | None,
    titles: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Events a second through cached keys and values, against encoding each of the same windows whole.

    The decoder has random weights; both sides go from event vectors to user vectors, in this process. With --base the
    decoder is a pre-trained language model, which has a shape of its own, and the figures are those of both readings:
    one token an event, and the event's words.
    """
    limit_openmp_spinning()
    given |= {
        "events": given.pop("count"),
        **{name: getattr(settings, name) for name in ("kv_cache_gb", "device", "dtype")},
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    if base is None:
        from stream_rec.bench import engine as room

        room.show(events, columns, room.EngineBenchOptions(**chosen), as_json)
    else:
        from stream_rec.bench import language_model

        language = language_model.Language(base, chosen.pop("layers", None), titles)
        language_model.show(events, columns, language, language_model.PLAN._replace(**chosen), as_json)


@bench.command("catalog")
@click.option(
    "--items",
    type=click.IntRange(1_000, 20_000_000),
    multiple=True,
    default=(10_000, 100_000, 1_000_000),
    show_default=True,
    help="items in the catalogue; may be given several times",
)
@click.option("--width", type=POSITIVE, default=128, show_default=True, help="of the item vectors")
@click.option("--batch", type=POSITIVE, default=256, show_default=True, help="answers in a step")
@RUNS
@click.option("--threads", type=CORES, default=1, show_default=True, help="CPU threads of torch and of the index")
@JSON
def bench_catalog(as_json: bool, **given: Any) -> None:
    """Answers a second by an index of the catalogue, against scoring all of it; and how many items the index finds.

    User states in, ranked items with probabilities and interests out. Vectors lie as those of trained models do. A
    million items take 4 GB of memory and some minutes.
    """
    limit_openmp_spinning()
    from stream_rec.bench import catalog as room

    room.show(room.CatalogBenchOptions(**given), as_json)


@bench.command("peers", cls=Command)
@EVENTS
@LOG_COLUMNS
@click.option(
    "--capacity",
    type=POSITIVE,
    default=128,
    show_default=True,
    help="events in the longest window; it moves by half of it",
)
@click.option("--width", type=POSITIVE, default=256, show_default=True, help="of every model")
@click.option("--layers", type=POSITIVE, default=4, show_default=True, help="of every model")
@ITEMS
@click.option(
    "--count",
    type=POSITIVE,
    default=50_000,
    show_default=True,
    help="events that the engine answers: the log's last ones",
)
@click.option(
    "--sample", type=POSITIVE, default=1_500, show_default=True, help="of their windows, those that the peers answer"
)
@click.option("--batch", type=POSITIVE, default=256, show_default=True, help="windows in a step, and in a peer's batch")
@RUNS
@THREADS
@JSON
def bench_peers(events: Path | None, columns: str, count: int, as_json: bool, **given: Any) -> None:
    """Events a second of this engine, and of peers that compute the whole window again for each event.

    Peers: the decoder of plain transformers, and the SASRec of RecTools, which the extra `bench` installs. All have
    random weights, the same width, layers and items.
    """
    limit_openmp_spinning()
    from stream_rec.bench import peers as room
    from stream_rec.bench.engine import EngineBenchOptions

    room.show(events, columns, EngineBenchOptions(events=count, **given), as_json)


@bench.command(
    "pipeline",
    cls=Command,
    settings=("capacity", "partitions", "batch_windows", "linger_ms", "kv_cache_gb", "threads", "store", *EVERYWHERE),
)
@click.option("--events", type=click.Path(path_type=Path), help="a log, fed as it stands [default: a simulated shop]")
@LOG_COLUMNS
@WIDTH
@LAYERS
@ITEMS
@USERS
@AGENTS
@click.option("--count", type=POSITIVE, default=15_000, show_default=True, help="events in a run")
@click.option(
    "--runs", type=POSITIVE, default=3, show_default=True, help="runs at each load, of which the median counts"
)
@JSON
def bench_pipeline(
    settings: "Settings", events: Path | None, columns: str, count: int, as_json: bool, **given: Any
) -> None:
    """Updates a second of broker, agents, worker and load on this machine; at half of that, the latency.

    Needs the extra `local`: pip install 'stream-rec[local]'. Every event is answered. Full load keeps 2,048 events on
    their way, so that it is as much as is answered. Latency is from Kafka's timestamp of an event until a consumer of
    committed records has the recommendation. The decoder has random weights.
    """
    from stream_rec.bench import pipeline as room

    room.show(settings, events, columns, room.PipelineBenchOptions(events=count, **given), as_json)


@bench.command(
    "overload",
    cls=Command,
    settings=(
        *("capacity", "partitions", "batch_windows", "linger_ms", "coalesce", "kv_cache_gb", "threads", "store"),
        *EVERYWHERE,
    ),
)
@click.option(
    "--events", type=click.Path(path_type=Path), help="a log, its end fed over and over [default: a simulated shop]"
)
@LOG_COLUMNS
@click.option(
    "--rate", type=Finite(0), required=True, help="events a second: three times what 'bench pipeline' says, say"
)
@click.option("--seconds", type=Finite(0), default=600.0, show_default=True, help="for how long")
@WIDTH
@LAYERS
@ITEMS
@USERS
@AGENTS
@JSON
def bench_overload(settings: "Settings", events: Path | None, columns: str, as_json: bool, **given: Any) -> None:
    """Send more events than broker, agents and worker on this machine can take, for minutes; then let them catch up.

    How far they fall behind, what memory they hold, how long they take to catch up, and whether every user's newest
    window and answer are those of all that was sent. Needs the extra `local`: pip install 'stream-rec[local]'.
    """
    from stream_rec.bench import overload as room

    room.show(settings, events, columns, room.OverloadOptions(**given), as_json)


@bench.command("blend", cls=Command, settings=("stride", "cache_dir", *EVERYWHERE))
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("events", type=click.Path(path_type=Path))
@COLUMNS
@click.option("--answers", type=POSITIVE, default=4_096, show_default=True, help="in a run")
@click.option(
    "--sample",
    type=POSITIVE,
    default=256,
    show_default=True,
    help="answers that are also made from the whole catalogue",
)
@RUNS
@THREADS
@JSON
def bench_blend(settings: "Settings", as_json: bool, **given: Any) -> None:
    """Milliseconds an answer from user states to ranked items, of a trained model on what it has not seen of a log.

    All parts of the score, the learning of the online memory included. And which share of the 20 best items of the
    whole catalogue are among the candidates.
    """
    limit_openmp_spinning()
    from stream_rec.bench import blend as room

    room.show(room.BlendBenchOptions(**given), settings.stride, settings.cache_dir, as_json)
