"""A pre-trained language model behind the engine's cache, against re-encoding the whole prompt, as people do today.

Both readings of the same events: one token an event over item vectors, and the event's words. The body's weights are
the model's own; what stands around it (item side, output) is random, for speed does not depend on it.
"""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import polars as pl
import torch
from rich.table import Table
from tokenizers import Tokenizer

from stream_rec.bench import engine as ours
from stream_rec.bench.engine import EngineBenchOptions, Stage
from stream_rec.bench.random_model import random_model
from stream_rec.bench.report import show as show_figures
from stream_rec.data import event_log
from stream_rec.features.catalog import Catalog
from stream_rec.features.event_template import EventTemplate
from stream_rec.features.event_tokenizer import reader_of
from stream_rec.features.text_encoder import TextEncoder
from stream_rec.messages import Item
from stream_rec.models.pretrained import PretrainedBackbone, load_backbone, load_tokenizer
from stream_rec.models.user_encoder import EncoderConfig, UserEncoder
from stream_rec.runtime.terminal import Terminal
from stream_rec.serving import device as devices
from stream_rec.serving.engine import Engine
from stream_rec.serving.incremental import refuse_inexact

PLAN = EngineBenchOptions(capacity=32, events=400, sample=32, batch=32)
"""Its defaults: a language model is a thousand times the work of a small decoder."""
ITEM_DIM = 64


class Language(NamedTuple):
    """What is measured: a pre-trained model, and the texts of the items."""

    base: str
    layers: int | None
    titles: Path | None
    """A catalogue file; without one an item is called by its id."""


def show(events: Path | None, columns: str, language: Language, plan: EngineBenchOptions, as_json: bool) -> None:
    """Measures and prints the figures. Raises `UserError` for a bad log, catalogue or model."""
    if events is None:
        frame = ours.simulated(2 * plan.events)
        items = event_log.read_items(language.titles, event_log.parse_columns(columns)) if language.titles else []
    else:
        log, items = event_log.read_both(events, language.titles, columns)
        frame = log.frame
    with Terminal(stderr=True).status("loading the language model") as status:
        base = load_backbone(language.base, language.layers, plan.capacity * EventTemplate().limit)
        refuse_inexact(language.base, base.body)
        tokenizer = load_tokenizer(language.base)
        figures = run(frame, items, base, tokenizer, plan, status.update)
    view = Table("", "items", "words", box=None)
    for name in figures["items"]:
        view.add_row(name, *(str(figures[reading][name]) for reading in ("items", "words")))
    show_figures(view, {"base": Path(language.base).name, **figures}, as_json)


def run(
    frame: pl.DataFrame,
    items: Sequence[Item],
    base: PretrainedBackbone,
    tokenizer: Tokenizer,
    plan: EngineBenchOptions,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """The figures of both readings, medians over the runs; rates are events a second."""
    torch.set_num_threads(plan.threads)
    named = {item.item_id: item for item in items}
    catalogue = [named.get(name) or Item(name) for name in frame["item"].unique(maintain_order=True).to_list()]
    measured = {}
    for reading, words in (("items", None), ("words", EventTemplate())):
        stage = _stage(frame, catalogue, base, words, tokenizer, plan)
        progress(f"reading {reading}")
        measured[reading] = _measure(stage, plan)
    return {
        "layers": base.body.config.num_hidden_layers,
        **{name: getattr(plan, name) for name in ("events", "capacity", "batch", "sample", "runs", "threads")},
        **measured,
    }


def _stage(
    frame: pl.DataFrame,
    items: Sequence[Item],
    base: PretrainedBackbone,
    words: EventTemplate | None,
    tokenizer: Tokenizer,
    plan: EngineBenchOptions,
) -> Stage:
    types = tuple(frame["event"].unique().sort().to_list())
    around = random_model(EncoderConfig(width=ITEM_DIM, layers=1), items, types, plan.capacity)
    shape = EncoderConfig(dropout=0, residual_dropout=0, words=words)
    table = base.table if words else None
    encoder = UserEncoder(shape, base.body, len(items) + 1, ITEM_DIM, len(types) + 1, table)
    config = msgspec.structs.replace(around.config, encoder=shape)
    model = around._replace(encoder=encoder, config=config, tokenizer=tokenizer)
    catalog = Catalog(items, model.vectors, model.features, model.alike, TextEncoder("none", Path("none")))
    engine = Engine(model, catalog, ours.limits(plan), devices.find(plan.device))
    return ours.stage(engine, frame, plan, reader_of(catalog, types, words, tokenizer))


def _measure(stage: Stage, plan: EngineBenchOptions) -> dict[str, Any]:
    engine, warm, stream, sample = stage
    rates: dict[str, list[float]] = {"stream": [], "full": []}
    work: list[Any] = []
    for _ in range(plan.runs):
        ours.fill(engine, warm, plan)
        seconds, work = ours.timed_stream(engine, stream, plan, score=False)
        rates["stream"].append(len(stream) / seconds)
        rates["full"].append(len(sample) / ours.timed_full(engine, sample, plan, score=False))
    median = {name: statistics.median(found) for name, found in rates.items()}
    audited = ours.compare(engine, warm, stream[: plan.sample], plan)
    whole = sum(len(one.tokens) for one in stream)
    computed = sum(one.appended + one.prefilled for one in work)
    return {
        "stream_events_per_s": round(median["stream"], 2),
        "full_events_per_s": round(median["full"], 2),
        "ratio": round(median["stream"] / median["full"], 1),
        "token_ratio": round(whole / computed, 1),
        "tokens_per_event": {"full": round(whole / len(stream), 2), "stream": round(computed / len(stream), 2)},
        "max_abs_diff": audited.largest,
        "top20_changed": audited.changed,
        "bytes_per_user": engine.incremental.cache.bytes_per_user,
    }
