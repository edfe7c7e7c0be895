"""The engine against encoding every window anew, which is what it spares: the same log, windows, model and threads.

The model has random weights: speed does not depend on them, and a trained one of this size would say nothing more.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl
import torch
from rich.progress import Progress
from torch import Tensor

from stream_rec.bench import ceilings
from stream_rec.bench.random_model import random_model
from stream_rec.bench.report import listed
from stream_rec.bench.report import show as show_figures
from stream_rec.data import event_log
from stream_rec.data.dataset import Dataset, dataset, served
from stream_rec.data.simulator.storefront import Storefront
from stream_rec.errors import UserError
from stream_rec.features.catalog import Catalog
from stream_rec.features.event_tokenizer import Events, ItemReader, Reader
from stream_rec.features.text_encoder import TextEncoder
from stream_rec.features.tokens import Tokens, event_type_numbers
from stream_rec.messages import Item
from stream_rec.models.user_encoder import EncoderConfig, body_from
from stream_rec.ranking.blend import Ranked
from stream_rec.ranking.candidate_features import PARTS, CandidateFeatures
from stream_rec.ranking.retrieval import Retrieved
from stream_rec.runtime.terminal import Terminal
from stream_rec.serving import cache_audit
from stream_rec.serving import device as devices
from stream_rec.serving.cache_audit import Audit
from stream_rec.serving.engine import Engine, Limits
from stream_rec.serving.incremental import ForwardStats

DIFFERENT = 512
"""Windows that are compared, state by state, with their full encoding."""


class EngineBenchOptions(NamedTuple):
    """What is measured. Counts of events but where it says otherwise."""

    capacity: int = 128
    width: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 1
    items: int = 10_000
    events: int = 50_000
    sample: int = 1_500
    """Windows that are encoded whole, drawn from the very ones that the engine answered."""
    batch: int = 256
    """Windows in a step, and in a batch of whole windows."""
    runs: int = 3
    threads: int = 1
    kv_cache_gb: float = 1.0
    device: str = "cpu"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    decoder: Path | None = None
    """A transformers configuration; its shape, and not the one above, is the decoder's."""


class Asked(NamedTuple):
    """One event's window."""

    user: str
    tokens: Tokens


class Stage(NamedTuple):
    """What is measured on."""

    engine: Engine
    warm: Sequence[Asked]
    """What the cache holds before the first event: `fill` puts it there."""
    stream: Sequence[Asked]
    sample: Sequence[Asked]
    """Of the stream, drawn at random."""


def show(events: Path | None, columns: str, plan: EngineBenchOptions, as_json: bool) -> None:
    """Measures, with a progress bar on stderr, and prints the figures. Raises `UserError` for a bad log."""
    frame = (
        event_log.read_events(events, event_log.parse_columns(columns)).frame if events else simulated(2 * plan.events)
    )
    with Progress(console=Terminal(stderr=True)) as bar:
        task = bar.add_task("runs", total=2 * plan.runs)
        figures = run(frame, plan, lambda done: bar.update(task, completed=done))
    show_figures(listed(figures), figures, as_json)


def simulated(count: int) -> pl.DataFrame:
    """Few shoppers, so that their histories are long."""
    events = islice(Storefront(shoppers=100).events(), count)
    rows = [(event.user_id, event.item_id, event.event_type, event.timestamp) for event in events]
    return pl.DataFrame(rows, schema=("user", "item", "event", "time"), orient="row")


def run(frame: pl.DataFrame, plan: EngineBenchOptions, progress: Callable[[int], None]) -> dict[str, Any]:
    """The figures, medians over the runs; rates are events a second."""
    torch.set_num_threads(plan.threads)
    engine, warm, stream, sample = prepare(frame, plan)
    device, dtype = engine.incremental.cache.device, engine.incremental.cache.first.keys[0].dtype
    rates: dict[str, list[float]] = {"stream": [], "full": [], "stream_step": [], "full_step": []}
    work: list[ForwardStats] = []
    for number in range(plan.runs):
        for score in (False, True):
            name = "_step" if score else ""
            fill(engine, warm, plan)
            seconds, done = timed_stream(engine, stream, plan, score)
            rates["stream" + name].append(len(stream) / seconds)
            rates["full" + name].append(len(sample) / timed_full(engine, sample, plan, score))
            work = done
            progress(2 * number + 1 + score)
    median = {name: statistics.median(found) for name, found in rates.items()}
    total = sum(work, start=ForwardStats())
    computed, whole = total.appended + total.prefilled, sum(len(one.tokens) for one in stream)
    tokens = {"full": whole / len(stream), "stream": computed / len(stream)}
    audited = compare(engine, warm, stream, plan)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "dtype": str(dtype).removeprefix("torch."),
        "weights": ceilings.weights(engine.body),
        "events": len(stream),
        "users": len({one.user for one in stream}),
        "capacity": plan.capacity,
        "threads": plan.threads,
        "stream_events_per_s": round(median["stream"], 1),
        "full_events_per_s": round(median["full"], 1),
        "ratio": round(median["stream"] / median["full"], 1),
        "step_ratio": round(median["stream_step"] / median["full_step"], 1),
        "append_events_per_s": round(_append_rate(engine, sample, plan), 1),
        "token_ratio": round(whole / computed, 1),
        "tokens_per_event": {side: round(count, 2) for side, count in tokens.items()},
        "padding_share": round(total.padding / (total.padding + total.needed), 4),
        "fill_share": round(total.filled / (total.filled + computed), 4),
        "max_abs_diff": audited.largest,
        "top20_changed": audited.changed,
        "bytes_per_user": engine.incremental.cache.bytes_per_user,
        "of_ceilings": ceilings.reached(
            engine.body,
            engine.incremental.cache,
            {side: median[side] * tokens[side] for side in tokens},
            reads=median["stream"] * total.needed / len(stream),
        ),
    }


def prepare(frame: pl.DataFrame, plan: EngineBenchOptions) -> Stage:
    """An engine and the windows that it answers, from a log (user, item, event, time)."""
    engine = _engine(frame, plan)
    return stage(engine, frame, plan, ItemReader(engine.catalog, frame["event"].unique().sort().to_list()))


def stage(engine: Engine, frame: pl.DataFrame, plan: EngineBenchOptions, read: Reader) -> Stage:
    """The windows that an engine answers, as `read` gives their tokens."""
    data, asked = _asked(frame, engine, plan)
    warm = list(_windows(data, _before(data, asked), plan.capacity, read))
    stream = list(_windows(data, asked, plan.capacity, read))
    draw = np.random.default_rng(0)
    sample = [stream[at] for at in draw.choice(len(stream), min(plan.sample, len(stream)), replace=False).tolist()]
    return Stage(engine, warm, stream, sample)


def _engine(frame: pl.DataFrame, plan: EngineBenchOptions) -> Engine:
    """A model of the plan's shape over the log's items, filled up with items that nobody meets."""
    names = frame["item"].unique(maintain_order=True).to_list()
    items = [Item(name) for name in (*names, *(f"unmet {number}" for number in range(plan.items - len(names))))]
    given = None if plan.decoder is None else read_decoder(plan.decoder)
    config = EncoderConfig(
        width=given.config.hidden_size if given else plan.width,
        layers=plan.layers,
        heads=plan.heads,
        kv_heads=plan.kv_heads,
        inner=4 * plan.width,
        residual_dropout=0,
    )
    model = random_model(config, items, tuple(frame["event"].unique().sort().to_list()), plan.capacity, body=given)
    catalog = Catalog(items, model.vectors, model.features, model.alike, TextEncoder("none", Path("none")))
    return Engine(model, catalog, limits(plan), devices.find(plan.device))


def limits(plan: EngineBenchOptions) -> Limits:
    return Limits(stride=plan.capacity // 2, kv_cache_bytes=plan.kv_cache_gb * 1e9, dtype=plan.dtype)


def read_decoder(path: Path) -> Any:
    """A decoder of the shape that a transformers configuration file has, with random weights. Raises `UserError`."""
    try:
        return body_from(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is no configuration of a decoder ({error}): give a model's config.json") from error


def _asked(frame: pl.DataFrame, engine: Engine, plan: EngineBenchOptions) -> tuple[Dataset, list[int]]:
    """The log as numbers, and the places of the last events in the order of the log."""
    row_of = {engine.catalog.item(row).item_id: row for row in range(1, len(engine.catalog))}
    types = event_type_numbers(frame["event"].unique().sort().to_list())
    data = dataset(frame, row_of, types)
    return data, np.argsort(data.order)[-plan.events :].tolist()


def _before(data: Dataset, asked: Sequence[int]) -> list[int]:
    """The place before each asked user's first asked event, where there is one: what a warm cache holds."""
    first: dict[int, int] = {}
    for place in asked:
        first.setdefault(int(data.user_of(np.array(place))), place)
    return [place - 1 for user, place in first.items() if place > data.begins[user]]


def _windows(data: Dataset, places: Sequence[int], capacity: int, read: Reader) -> Iterator[Asked]:
    """The window after the event at each place."""
    for place in places:
        window = served(data, place + 1, capacity, capacity // 2)
        events = Events(data.rows[window], data.types[window], data.times[window], np.zeros(1, np.int64))
        yield Asked(str(data.user_of(np.array(place))), read(events).tokens)


def batches(asked: Sequence[Asked], size: int) -> Iterator[Sequence[Asked]]:
    for begin in range(0, len(asked), size):
        yield asked[begin : begin + size]


def _states(engine: Engine, batch: Sequence[Asked]) -> tuple[Tensor, ForwardStats]:
    return engine.incremental.encode([one.user for one in batch], [one.tokens for one in batch])


def fill(engine: Engine, warm: Sequence[Asked], plan: EngineBenchOptions) -> None:
    engine.incremental.cache.clear()
    for batch in batches(warm, plan.batch):
        _states(engine, batch)


def timed_stream(
    engine: Engine, stream: Sequence[Asked], plan: EngineBenchOptions, score: bool
) -> tuple[float, list[ForwardStats]]:
    """Seconds for the whole stream, in steps in the order of the log; and what each step did."""
    done = []
    began = time.perf_counter()
    for batch in batches(stream, plan.batch):
        states, work = _states(engine, batch)
        done.append(work)
        if score:
            _rank(engine, states)
    ceilings.wait(engine.incremental.cache.device)
    return time.perf_counter() - began, done


def timed_full(engine: Engine, sample: Sequence[Asked], plan: EngineBenchOptions, score: bool) -> float:
    """Seconds for encoding each window of the sample whole, windows of like length together."""
    order = sorted(sample, key=lambda one: len(one.tokens))
    began = time.perf_counter()
    for batch in batches(order, plan.batch):
        states = engine.incremental.encode_full([one.tokens for one in batch])
        if score:
            _rank(engine, states)
    ceilings.wait(engine.incremental.cache.device)
    return time.perf_counter() - began


@torch.inference_mode()
def _rank(engine: Engine, states: Tensor) -> Ranked:
    return engine.ranker.by_score(states, _decoders)


def _decoders(near: Retrieved) -> list[CandidateFeatures]:
    """The decoder's candidates alone: the other parts cost the same on both sides, and say nothing of either."""
    return [CandidateFeatures(rows, np.zeros((len(rows), len(PARTS)), np.float32)) for rows in near.rows.cpu().numpy()]


def _append_rate(engine: Engine, sample: Sequence[Asked], plan: EngineBenchOptions) -> float:
    """Events a second where each window only grows by its last event; windows of all lengths, a user each."""
    chosen = [one for one in sample if len(one.tokens) > 1][: plan.batch]
    users = [f"append {number}" for number in range(len(chosen))]
    shorter = [Tokens(one.tokens.numbers[:, :-1], one.tokens.identities[:-1]) for one in chosen]
    seconds, device = [], engine.incremental.cache.device
    for _ in range(5 * plan.runs):
        engine.incremental.encode(users, shorter)
        ceilings.wait(device)
        began = time.perf_counter()
        engine.incremental.encode(users, [one.tokens for one in chosen])
        ceilings.wait(device)
        seconds.append(time.perf_counter() - began)
    return len(chosen) / statistics.median(seconds)


def compare(engine: Engine, warm: Sequence[Asked], stream: Sequence[Asked], plan: EngineBenchOptions) -> Audit:
    """The first windows through the cache against the same ones encoded whole."""
    fill(engine, warm, plan)
    found = Audit()
    for batch in batches(stream[:DIFFERENT], plan.batch):
        states, _ = _states(engine, batch)
        whole = engine.incremental.encode_full([one.tokens for one in batch])
        found += cache_audit.compare(states, whole, _rank(engine, states), _rank(engine, whole), engine.tolerance)
    return found
