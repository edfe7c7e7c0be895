"""Training and evaluation as commands."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stream_rec.cli.options import CORES, EVERYWHERE, KAFKA, POSITIVE, SEED, Command, Finite
from stream_rec.runtime.process import keep_freed_memory, limit_openmp_spinning

if TYPE_CHECKING:
    from stream_rec.config import Settings

COLUMNS = click.option(
    "--columns",
    default="",
    help="the files' columns, such as user=customer,time=when,title=name; time=none: the log has no times",
)
PROTOCOL = click.option(
    "--protocol",
    type=click.Choice(["prequential", "global-time", "leave-one-out"]),
    default="prequential",
    show_default=True,
    help="what is held out: the last part of the log, learned from as it passes or not; or each user's last event",
)
THREADS = click.option("--threads", type=CORES, help="CPU threads [default: all cores]")


@click.command(
    cls=Command,
    settings=(*KAFKA, "items_topic", "event_types", "capacity", "stride", "text_encoder", "cache_dir", "device"),
    offline=lambda given: "--from-topic" not in given,
)
@click.argument("events", type=click.Path(path_type=Path), required=False)
@click.option("--from-topic", metavar="TOPIC", help="a topic of events in place of the file, up to what it holds now")
@click.option(
    "--since", metavar="TIME", help="events from a time on: 2026-11-27T08:30, seconds since 1970, or an age, 30d"
)
@click.option("--until", metavar="TIME", help="events before a time")
@click.option(
    "--items",
    type=click.Path(path_type=Path),
    help="the catalogue; without it items have no text, or with --from-topic that of the topic of items",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="folder of the model")
@click.option(
    "--continue",
    "continues",
    type=click.Path(path_type=Path),
    metavar="MODEL",
    help="train a model further, on a log that holds newer events",
)
@COLUMNS
@click.option("--first", default=1.0, show_default=True, help="share of the log to train on, from its beginning")
@click.option(
    "--epochs",
    type=int,
    help="passes over the log [default: 12, or 20 of a log of 300,000 events or more; with --continue a third]",
)
@click.option("--width", type=int, help="of the decoder; a pre-trained one brings its own [default: 128]")
@click.option("--layers", type=POSITIVE, help="of the decoder [default: 2; of a pre-trained one all]")
@click.option("--base", help="pre-trained causal language model: a name, a folder or a .gguf file [default: none]")
@click.option(
    "--tune",
    type=click.Choice(["lora", "frozen", "full"]),
    help="what of --base is trained: adapters (LoRA), nothing, or all of it [default: lora]",
)
@click.option(
    "--read",
    type=click.Choice(["items", "words"]),
    default="items",
    show_default=True,
    help="an event is one token, its item; or, with --base, its words",
)
@click.option(
    "--template",
    default="{event} {title}, {category}",
    show_default=True,
    help="an event in words; may hold {event}, {title}, {category}, {brand}, {price}",
)
@click.option("--event-tokens", type=POSITIVE, default=16, show_default=True, help="most tokens of an event in words")
@click.option(
    "--learning-rate",
    type=float,
    help="at its highest [default: 0.002, with --continue 0.001, with --private-epsilon 0.006]",
)
@click.option("--validation", default=0.1, show_default=True, help="share of the events, the last ones, held out")
@click.option("--refit/--no-refit", default=True, show_default=True, help="train once more with the held-out events")
@click.option("--goal", help="event type whose probability an item's interest is [default: purchase, if there is one]")
@click.option(
    "--weights", default="", help="what event types count in the decoder's loss: view=1,purchase=4 [default: 1]"
)
@PROTOCOL
@click.option("--seed", type=SEED, default=0, show_default=True, help="the same seed and data give the same model")
@click.option(
    "--seeds", type=int, metavar="N", help="train N models, from --seed on, into seed-0, seed-1, ... in --out"
)
@click.option(
    "--trials",
    type=int,
    metavar="N",
    help="try N settings on the held-out part, then train with the best: learning rate, weight decay, dropout, epochs, "
    "width, layers; what an option says is not searched",
)
@click.option(
    "--private-epsilon",
    type=float,
    metavar="E",
    help="train with differential privacy, of a user: what is learnt is at most exp(E) times as likely as without any "
    "one of them; 0.1 to 20, the smaller the less is told and learnt [default: none]",
)
@click.option(
    "--private-delta",
    type=float,
    metavar="D",
    help="and with D for what is less likely still [default: a tenth of 1 / users]",
)
@click.option("--private-clip", type=float, metavar="C", help="most a user's gradient counts, its norm [default: 1]")
@THREADS
@click.option("--overwrite", is_flag=True, help="begin anew where --out holds a model or an unfinished training")
@click.pass_obj
def train(read_topic: Any, /, settings: "Settings", **given: Any) -> int:
    """Train a model on a log: a file, or a topic. Ctrl-C interrupts; the same command goes on from the last epoch."""
    limit_openmp_spinning()
    keep_freed_memory()
    from stream_rec.cli import train as session
    from stream_rec.training.options import TrainOptions

    return session.run(settings, TrainOptions(**given), partial(read_topic, settings))


@click.command(cls=Command, settings=("stride", "cache_dir", "device", *EVERYWHERE))
@click.argument("models", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.argument("events", type=click.Path(path_type=Path))
@PROTOCOL
@COLUMNS
@click.option(
    "--after",
    type=Finite(0, 1),
    default=0.0,
    show_default=True,
    help="predict only what comes after this share of the log",
)
@click.option(
    "--seen",
    type=click.Choice(["served", "keep", "window", "ever"]),
    default="served",
    show_default=True,
    help="items that the user has met: keep them, leave out those in the window, or all that they ever met, as"
    " published figures do; served: as the setting exclude_seen says",
)
@click.option(
    "--baskets",
    type=click.Choice(["auto", "yes", "no"]),
    default="auto",
    show_default=True,
    help="predict in one what a user does at one time; auto: if that is most of the log",
)
@THREADS
@click.option("--json", "as_json", is_flag=True, help="print one JSON object; figures of several seeds are averaged")
def evaluate(settings: "Settings", **given: Any) -> int:
    """Measure models (of several seeds) on what they have not seen of a log, beside floors that need no training."""
    limit_openmp_spinning()
    from stream_rec.cli import evaluate as assess

    return assess.run(settings, assess.EvaluateOptions(**given))
