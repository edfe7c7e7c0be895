"""What peers do on the same work: answer an event by computing its whole window again.

The peers are the decoder of plain transformers, of the engine's own shape, called as its documentation has it (windows
as they come, padded to the longest of the batch, with an attention mask); and the SASRec of RecTools with the same
width, layers, heads, items and longest window, by its public `recommend()`. Beside them stands the engine encoding
windows whole, windows of like length together: the best that recomputation can do with this model.

All have random weights and run in one process, in batches of one size, with the same threads, over the same windows.
"""

import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from rich.progress import Progress
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its name everywhere
from transformers import LlamaConfig, LlamaModel

from stream_rec.bench import engine as ours
from stream_rec.bench.engine import Asked, EngineBenchOptions, Stage
from stream_rec.bench.report import show as show_figures
from stream_rec.data import event_log
from stream_rec.runtime.terminal import Terminal

TOP = 20
HOW_TO_INSTALL = (
    "RecTools is not installed, its figures are left out: in a checkout, uv pip install --editable '.[bench]'"
)

Calls = Sequence[Callable[[], object]]
"""One for each batch of the sample."""


class Side(NamedTuple):
    """One way to answer the sample."""

    encode: Calls
    """From windows to user vectors."""
    rank: Calls
    """From windows to the best items of the whole catalogue."""


def show(events: Path | None, columns: str, plan: EngineBenchOptions, as_json: bool) -> None:
    """Measures, with a progress bar on stderr, and prints the figures. Raises `UserError` for a bad log."""
    frame = (
        event_log.read_events(events, event_log.parse_columns(columns)).frame
        if events
        else ours.simulated(2 * plan.events)
    )
    console = Terminal(stderr=True)
    with Progress(console=console) as bar:
        task = bar.add_task("runs", total=plan.runs)
        figures = run(frame, plan, lambda done: bar.update(task, completed=done))
    if figures["rectools"] is None:
        console.print(HOW_TO_INSTALL, highlight=False, markup=False)
    view = Table("", "events/s to user vectors", "events/s to ranked items", "stream_rec ranks more, times", box=None)
    for name in ("stream_rec", "whole_windows", "transformers", "rectools"):
        if found := figures[name]:
            view.add_row(name, *(str(found[what]) for what in ("encoded_per_s", "ranked_per_s", "ratio")))
    show_figures(view, figures, as_json)


def run(frame: pl.DataFrame, plan: EngineBenchOptions, progress: Callable[[int], None]) -> dict[str, Any]:
    """The figures, medians over the runs: events a second, and `ratio`, how many times as many the engine ranks."""
    torch.set_num_threads(plan.threads)
    stage = ours.prepare(frame, plan)
    batches = list(ours.batches(stage.sample, plan.batch))
    sides = {"transformers": transformers(stage, batches, plan)}
    if recommended := rectools(stage, batches, plan):
        sides["rectools"] = recommended
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in ("stream_rec", "whole_windows", *sides)}
    for number in range(plan.runs):
        rates["stream_rec"].append(_both(len(stage.stream), partial(_stream, stage, plan)))
        rates["whole_windows"].append(
            _both(len(stage.sample), partial(ours.timed_full, stage.engine, stage.sample, plan))
        )
        for name, (encode, rank) in sides.items():
            rates[name].append((len(stage.sample) / _seconds(encode), len(stage.sample) / _seconds(rank)))
        progress(number + 1)
    return {
        "events": len(stage.stream),
        "sample": len(stage.sample),
        "items": len(stage.engine.catalog) - 1,
        **{name: getattr(plan, name) for name in ("capacity", "width", "layers", "heads", "batch", "runs", "threads")},
        **{name: _figures(rates[name], rates["stream_rec"]) for name in rates},
        **({} if recommended else {"rectools": None}),
    }


def transformers(stage: Stage, batches: Sequence[Sequence[Asked]], plan: EngineBenchOptions) -> Side:
    """Llama over item vectors as a person writes it, and the dot product with all items."""
    torch.manual_seed(0)
    items = F.normalize(torch.randn(len(stage.engine.catalog), plan.width))
    model = LlamaModel(
        LlamaConfig(
            hidden_size=plan.width,
            intermediate_size=4 * plan.width,
            num_hidden_layers=plan.layers,
            num_attention_heads=plan.heads,
            num_key_value_heads=plan.kv_heads,
            vocab_size=1,
            bos_token_id=None,
            eos_token_id=None,
        )
    ).eval()

    @torch.inference_mode()
    def encode(batch: Sequence[Asked]) -> Tensor:
        windows = [torch.from_numpy(_rows(one)) for one in batch]
        lengths = torch.tensor([len(window) for window in windows])
        rows = torch.nn.utils.rnn.pad_sequence(windows, batch_first=True)
        mask = torch.arange(rows.shape[1]) < lengths[:, None]
        hidden = model(inputs_embeds=items[rows], attention_mask=mask, use_cache=False).last_hidden_state
        states: Tensor = hidden[torch.arange(len(rows)), lengths - 1]
        return states

    @torch.inference_mode()
    def rank(batch: Sequence[Asked]) -> Tensor:
        return (F.normalize(encode(batch), dim=1) @ items.T).topk(TOP).indices

    return Side([partial(encode, batch) for batch in batches], [partial(rank, batch) for batch in batches])


def rectools(stage: Stage, batches: Sequence[Sequence[Asked]], plan: EngineBenchOptions) -> Side | None:
    """RecTools' SASRec, or None where it isn't installed. Its tables of events are made before the clock starts."""
    try:
        import pandas as pd
        from rectools import Columns
        from rectools.dataset import Dataset
        from rectools.models import SASRecModel
    except ImportError:
        return None
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)

    def table(windows: Iterable[Any]) -> Any:
        """Each window is a user's whole history."""
        windows = list(windows)
        users = np.repeat(np.arange(len(windows)), [len(window) for window in windows])
        times = pd.to_datetime(np.arange(len(users)), unit="s")
        columns = (users, np.concatenate(windows), np.ones(len(users)), times)
        names = (Columns.User, Columns.Item, Columns.Weight, Columns.Datetime)
        return Dataset.construct(pd.DataFrame(dict(zip(names, columns, strict=True))))

    every = np.arange(1, len(stage.engine.catalog))
    model = SASRecModel(
        n_blocks=plan.layers,
        n_heads=plan.heads,
        n_factors=plan.width,
        session_max_len=plan.capacity,
        loss="BCE",
        epochs=1,
        train_min_user_interactions=1,
        recommend_batch_size=plan.batch,
        recommend_torch_device="cpu",
    )
    with warnings.catch_warnings(action="ignore"):
        model.fit(table(np.array_split(every, -(-len(every) // plan.capacity))))  # briefly: it has to know every item
    known = model.data_preparator.item_id_map

    @torch.inference_mode()
    def encode(batch: Sequence[Asked]) -> Tensor:
        rows = torch.zeros(len(batch), plan.capacity, dtype=torch.int64)  # padding counts: `recommend` has as much
        for row, one in zip(rows, batch, strict=True):
            row[-len(one.tokens) :] = torch.from_numpy(known.convert_to_internal(_rows(one)))
        network = model.torch_model
        states: Tensor = network.encode_sessions({"x": rows}, network.item_model.get_all_embeddings())[:, -1]
        return states

    def rank(users: Any, events: Any) -> Any:
        return model.recommend(users, events, k=TOP, filter_viewed=False)

    asked = [(np.arange(len(batch)), table(map(_rows, batch))) for batch in batches]
    return Side([partial(encode, batch) for batch in batches], [partial(rank, *one) for one in asked])


def _rows(one: Asked) -> Any:
    return one.tokens.numbers[0]


def _stream(stage: Stage, plan: EngineBenchOptions, score: bool) -> float:
    ours.fill(stage.engine, stage.warm, plan)
    return ours.timed_stream(stage.engine, stage.stream, plan, score)[0]


def _both(events: int, seconds: Callable[[bool], float]) -> tuple[float, float]:
    """Events a second without and with the ranking."""
    return events / seconds(False), events / seconds(True)


def _figures(found: Sequence[tuple[float, float]], engine: Sequence[tuple[float, float]]) -> dict[str, float]:
    encoded, ranked = map(statistics.median, zip(*found, strict=True))
    ratio = statistics.median(rate for _, rate in engine) / ranked
    return {"encoded_per_s": round(encoded, 1), "ranked_per_s": round(ranked, 1), "ratio": round(ratio, 1)}


def _seconds(calls: Calls) -> float:
    began = time.perf_counter()
    for call in calls:
        call()
    return time.perf_counter() - began
