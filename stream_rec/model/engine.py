"""Windows in, recommendations out: the one entry to the model side.

The engine knows neither Kafka nor partitions, and keeps nothing that can't be rebuilt from the model and the windows:
cached keys and values are a short cut whose answer equals that of encoding the whole window, and the online memory is
a function of the windows seen. It is not thread-safe: one thread calls it, except for `read`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stream_rec.errors import UserError
from stream_rec.messages import Interest, Item, RankedItem, Recommendation, Window
from stream_rec.model import batcher, scorer
from stream_rec.model.batcher import Call, Request
from stream_rec.model.catalog import Catalog
from stream_rec.model.counters import REACH, Transitions
from stream_rec.model.features import Vectors
from stream_rec.model.folder import Model, load
from stream_rec.model.kv_cache import KeyValueCache
from stream_rec.model.scorer import Candidates, Memory
from stream_rec.model.text import TextEncoder
from stream_rec.model.tokens import UNKNOWN, Tokens, event_type_numbers, gap_buckets, identities
from stream_rec.window import fit

WASTE = 0.2
"""Largest share of a model call that may be padding."""


class Limits(NamedTuple):
    """What a step may use."""

    stride: int
    """How far a full window moves, events: matters where windows hold more than the model reads."""
    token_budget: int = 4_096
    kv_cache_bytes: float = 1e9
    top_k: int = 20
    interests_k: int = 5


class Work(NamedTuple):
    """What a step did, for the metrics."""

    appended: int
    """Tokens computed behind a kept prefix."""
    prefilled: int
    """Tokens computed for rows without one."""
    padding: int
    hits: int
    misses: int
    unknown_items: int


class Step(NamedTuple):
    recommendations: list[Recommendation]
    """One a window, in the order of the windows."""
    work: Work


class Engine:
    """A model that serves. `device` and `dtype` are those of the cache and the encoder."""

    def __init__(self, model: Model, catalog: Catalog, limits: Limits, device: torch.device) -> None:
        self.version = model.version
        self.capacity = model.config.capacity
        self.catalog = catalog
        self.cache = KeyValueCache(
            model.encoder.body.config, self.capacity, limits.kv_cache_bytes, torch.float32, device
        )
        self.transitions = Transitions(model.config.half_life, since=model.config.trained_until)
        self.transitions.load(model.transitions)
        self._limits = limits
        self._blend = model.config.blend
        self._event_types = model.config.event_types
        self._type_of = event_type_numbers(model.config.event_types)
        self._device = device
        self._encoder = model.encoder.to(device).eval()
        self._inputs = torch.zeros(0, self._encoder.width, device=device)
        self.candidates = Candidates(self._inputs, torch.zeros(0), torch.zeros(0), ())
        self._embed(np.arange(len(catalog)))

    @classmethod
    def load(cls, folder: Path, cache_dir: Path, limits: Limits, device: str = "auto", threads: int = 1) -> "Engine":
        """An engine from a model folder. Raises `UserError` for a bad folder, or a device that isn't there.

        `threads` is process-wide (torch keeps one number): more than 1 only where no other process needs the cores.
        """
        torch.set_num_threads(threads)
        place = _device(device)
        model = load(folder)
        encoder = TextEncoder(model.config.text_encoder, cache_dir, str(place))
        return cls(model, Catalog(model.items, model.vectors, model.features, encoder), limits, place)

    @torch.inference_mode()
    def step(self, windows: Sequence[Window]) -> Step:
        """Answers each of `windows`, oldest first for each user; each one also teaches the online memory."""
        windows = [fit(window, self.capacity, self._limits.stride) for window in windows]
        tokens = [self._tokens(window) for window in windows]
        memory = self._remember(windows, tokens)
        states, work = self.encode([window.user_id for window in windows], tokens)
        ranked = scorer.rank(states, memory, self.candidates, self._blend, self._limits.top_k)
        if not ranked.scores.isfinite().all():  # as JSON it would be null, which no reader takes for a score
            raise ArithmeticError("the model gave a score that is not a number")
        types = torch.softmax(self._encoder.type_logits(states)[:, UNKNOWN + 1 :], dim=1)
        return Step(self._answers(windows, ranked, types), work)

    def learn(self, window: Window) -> None:
        """Teaches the online memory a window without answering it: what a restart needs to be where it was."""
        window = fit(window, self.capacity, self._limits.stride)
        self._learn(window, [self.catalog.row(event.item_id) for event in window.events])

    def forget(self, user_id: str) -> None:
        """Erases a user's cached keys and values and their place in the online memory."""
        self.cache.forget(user_id)
        self.transitions.forget(user_id)

    def read(self, items: Sequence[Item]) -> Vectors:
        """Vectors for `upsert`: slow where a text is new. May run on another thread, beside `step`."""
        return self.catalog.read(items)

    @torch.inference_mode()
    def upsert(self, items: Sequence[Item], vectors: Vectors) -> None:
        """Adds or changes items; recommendable from the next step on. Windows that hold a changed one re-encode."""
        changed = self.catalog.upsert(items, vectors)
        self._embed(changed)

    @torch.inference_mode()
    def full(self, windows: Sequence[Window]) -> Tensor:
        """User states (len(windows), width) by encoding each whole window without the cache: what `step` must equal."""
        return self.whole([self._tokens(fit(window, self.capacity, self._limits.stride)) for window in windows])

    @torch.inference_mode()
    def whole(self, tokens: Sequence[Tokens]) -> Tensor:
        """`full` for windows that are tokens already: one forward pass, padded on the right."""
        lengths = np.array([len(read.rows) for read in tokens])
        positions = np.broadcast_to(np.arange(lengths.max()), (len(tokens), lengths.max()))
        padding = positions >= lengths[:, None]
        padded = Tokens(*(_gather(column, positions, padding) for column in zip(*tokens, strict=True)))
        last = torch.from_numpy(lengths - 1).to(self._device)
        states: Tensor = self._encoder(self._vectors(padded))[torch.arange(len(tokens), device=self._device), last]
        return states

    @torch.inference_mode()
    def states(self, windows: Sequence[Window]) -> Tensor:
        """User states (len(windows), width) through the cache, as `step` computes them; learns nothing."""
        tokens = [self._tokens(fit(window, self.capacity, self._limits.stride)) for window in windows]
        return self.encode([window.user_id for window in windows], tokens)[0]

    @torch.inference_mode()
    def encode(self, users: Sequence[str], tokens: Sequence[Tokens]) -> tuple[Tensor, Work]:
        """User states (len(users), width) of the users' windows, computed behind whatever prefix the cache holds.

        The windows of one user stand in their order; each holds at most `capacity` tokens.
        """
        types = len(self._event_types) + 1
        requests = [
            Request(user, identities(read, self.catalog.stamps, types))
            for user, read in zip(users, tokens, strict=True)
        ]
        states = torch.empty(len(users), self._encoder.width, device=self._device)
        calls: list[Call] = []
        for rows in batcher.rounds(requests, self.cache.slots):
            slots = self.cache.acquire([row.user_id for row in rows])
            packed = batcher.pack(rows, slots, self.cache.prefix, self._limits.token_budget, WASTE)
            for call in packed:
                self._compute(call, tokens, states)
            calls += packed
        done = [row for call in calls for row in call.rows]
        work = Work(
            appended=sum(row.new for row in done if row.keep),
            prefilled=sum(row.new for row in done if not row.keep),
            padding=sum(call.padding for call in calls),
            hits=sum(1 for row in done if row.keep),
            misses=sum(1 for row in done if not row.keep),
            unknown_items=sum(int(read.rows[-1] == UNKNOWN) for read in tokens),
        )
        return states, work

    def _tokens(self, window: Window) -> Tokens:
        row, number = self.catalog.row, self._type_of
        return Tokens(
            np.array([row(event.item_id) for event in window.events]),
            np.array([number.get(event.event_type, UNKNOWN) for event in window.events]),
            gap_buckets(np.array([event.timestamp for event in window.events])),
        )

    def _learn(self, window: Window, rows: Sequence[int]) -> None:
        times = [event.timestamp for event in window.events]
        self.transitions.learn(window.user_id, window.n, window.offset, rows, times)

    def _remember(self, windows: Sequence[Window], tokens: Sequence[Tokens]) -> Memory:
        """Learns and asks window by window: an answer never depends on how windows fell into batches."""
        after: list[dict[int, float]] = []
        last: list[int] = []
        for window, read in zip(windows, tokens, strict=True):
            rows = read.rows.tolist()
            self._learn(window, rows)
            after.append(self.transitions.after(rows[-REACH:], window.events[-1].timestamp))
            last.append(rows[-1])
        return Memory.of(after, last, self._device)

    def _compute(self, call: Call, tokens: Sequence[Tokens], states: Tensor) -> None:
        """One forward pass: writes the rows' keys and values behind their prefixes and their answers into `states`."""
        keep = np.array([row.keep for row in call.rows])
        end = np.array([len(row.tokens) for row in call.rows])
        positions = keep[:, None] + np.arange(call.rows[0].new)
        padding = positions >= end[:, None]
        read = [tokens[row.answers[-1][0]] for row in call.rows]
        vectors = self._vectors(Tokens(*(_gather(column, positions, padding) for column in zip(*read, strict=True))))
        positions[padding] = self.cache.capacity  # the scratch column
        places = torch.from_numpy(positions).to(self._device)
        span = int(end.max())
        self.cache.aim.slots = torch.from_numpy(call.slots).to(self._device)
        self.cache.aim.positions, self.cache.aim.span = places, span
        mask = torch.arange(span, device=self._device) <= places[:, None, :, None]
        self.cache.begin(call.slots, keep)
        computed = self._encoder(vectors, self.cache.layers, mask, places)
        for row, slot in zip(call.rows, call.slots.tolist(), strict=True):
            self.cache.commit(slot, row.keep, row.tokens)
        answers = [(index, at, place - row.keep) for at, row in enumerate(call.rows) for index, place in row.answers]
        index, at, place = (torch.tensor(column, device=self._device) for column in zip(*answers, strict=True))
        states[index] = computed[at, place]

    def _vectors(self, tokens: Tokens) -> Tensor:
        """Token vectors (..., width) of token numbers (...)."""
        rows, types, gaps = (torch.from_numpy(column).to(self._device) for column in tokens)
        return self._encoder.add_event(self._inputs[rows], types, gaps)

    def _embed(self, rows: NDArray[np.int64]) -> None:
        """Brings what is computed from the catalogue up to date for `rows`, whose vectors are new."""
        encoder, count = self._encoder, len(self.catalog)
        if count > len(self._inputs):
            more = torch.zeros(count - len(self._inputs), encoder.width, device=self._device)
            self._inputs = torch.cat([self._inputs, more])
            self.candidates = self.candidates._replace(outputs=torch.cat([self.candidates.outputs, more.clone()]))
        if len(rows):
            where = torch.from_numpy(rows).to(self._device)
            vectors = torch.from_numpy(self.catalog.vectors[rows]).to(self._device)
            trained = (where < encoder.residual.num_embeddings)[:, None]
            residual = encoder.residual(where.clamp(max=encoder.residual.num_embeddings - 1)) * trained
            items = encoder.items(vectors, residual)
            self._inputs[where] = encoder.norm(items)
            self.candidates.outputs[where] = torch.nn.functional.normalize(items, dim=1) * encoder.log_scale.exp()
        self.candidates = self.candidates._replace(
            barred=torch.from_numpy(~self.catalog.available[:count]).to(self._device),
            categories=torch.from_numpy(self.catalog.categories[:count]).to(self._device),
            labels=tuple(self.catalog.labels),
        )

    def _answers(self, windows: Sequence[Window], ranked: scorer.Ranked, types: Tensor) -> list[Recommendation]:
        best = ranked.interests.topk(min(self._limits.interests_k, ranked.interests.shape[1]), dim=1)
        columns = (ranked.rows, ranked.scores, ranked.probabilities, best.indices, best.values, types)
        return [
            Recommendation(
                user_id=window.user_id,
                seq=window.n,
                offset=window.offset,
                event_time=window.events[-1].timestamp,
                items=tuple(
                    RankedItem(self.catalog.item(row).item_id, round(score, 4), round(probability, 6))
                    for row, score, probability in zip(rows, scores, probabilities, strict=True)
                ),
                next_event={name: round(p, 4) for name, p in zip(self._event_types, next_types, strict=True)},
                interests=tuple(
                    Interest(self.candidates.labels[at], round(weight, 4))
                    for at, weight in zip(labels, weights, strict=True)
                    if self.candidates.labels[at]
                ),
                model=self.version,
            )
            for window, rows, scores, probabilities, labels, weights, next_types in zip(
                windows, *(column.tolist() for column in columns), strict=True
            )
        ]


def _gather(
    columns: Sequence[NDArray[np.int64]], positions: NDArray[np.int64], padding: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """`columns[i][positions[i]]` for each row i, 0 where `padding`: (rows, new)."""
    offsets = np.cumsum([0, *(len(column) for column in columns[:-1])])
    flat = np.concatenate(columns)
    return np.where(padding, 0, flat[np.where(padding, 0, positions + offsets[:, None])])


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {name}: this machine has {torch.cuda.device_count()} CUDA devices; set device to cpu")
    return device
