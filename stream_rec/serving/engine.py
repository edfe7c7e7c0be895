"""Windows in, recommendations out: the one entry to the model side.

The engine knows neither Kafka nor partitions, and keeps nothing that can't be rebuilt from the model and the windows:
cached keys and values are a short cut whose answer equals that of encoding the whole window, and the online memory is
a function of the windows seen. It is not thread-safe: one thread calls it, except for `read`.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stream_rec.errors import ModelError, UserError
from stream_rec.features.catalog import Catalog
from stream_rec.features.drift import Drift
from stream_rec.features.event_tokenizer import WindowReader, reader_of
from stream_rec.features.item_features import Vectors
from stream_rec.features.online_statistics import BaselineRanks
from stream_rec.features.text_encoder import TextEncoder, VectorCache
from stream_rec.features.tokens import UNKNOWN, Tokens, event_type_numbers
from stream_rec.messages import Item, Recommendation, Window
from stream_rec.models.model_store import Model, load
from stream_rec.models.token_embedding import token_embedding_of
from stream_rec.models.validation import probe_windows
from stream_rec.ranking.blend import BARRED
from stream_rec.ranking.candidate_features import CandidateFeatures
from stream_rec.ranking.explanation import Explanation, Neighbours, around, influences, reasons, shortened
from stream_rec.ranking.ranker import Ranker, RankingConfig, Recall
from stream_rec.ranking.retrieval import Retrieved
from stream_rec.serving import cache_audit
from stream_rec.serving import device as devices
from stream_rec.serving.cache_audit import Audit
from stream_rec.serving.forward import forward_of
from stream_rec.serving.incremental import ForwardStats, IncrementalEncoder
from stream_rec.serving.item_tower import ItemEmbeddings
from stream_rec.serving.kv_cache import CacheSpec, KeyValueCache
from stream_rec.serving.preprocess import PreparedWindow, Preprocessor, Rows
from stream_rec.serving.response import Names, recommendations
from stream_rec.serving.statistics import StatisticsByLog

PROBE_ITEMS = 32
"""Of the catalogue, in probe windows."""

log = logging.getLogger(__name__)

T = TypeVar("T")

CLOCK_AHEAD_S = 3_600.0
"""How far Kafka's clock may be ahead of this machine's: one window of a later time would end all learning until then.
"""


class Limits(NamedTuple):
    """What a step may use."""

    stride: int | None = None
    """How far a full window moves, events: matters where windows hold more than the model reads. See `stride_of`."""
    token_budget: int = 4_096
    kv_cache_bytes: float = 1e9
    kv_cache_share: float | None = None
    """Of the device's memory; instead of `kv_cache_bytes`."""
    kv_host_bytes: float = 0
    """For who is evicted from the device's cache."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    top_k: int = 20
    interests_k: int = 5
    audit_share: float = 0.0
    """Of the windows, those that are also encoded whole."""
    scoring: Literal["auto", "exact", "ann"] = "auto"
    index_effort: float = 1.0
    recall_share: float = 0.0
    """Of the windows, those that are also ranked without the index, where there is one."""
    learn_per_day: float = np.inf
    """Events of one user that teach the statistics in one go, and as many a day from then on."""
    exclude_seen: bool = False
    """Whether items in a user's window are left out."""
    categories: frozenset[str] = frozenset()
    """Those that are recommended; none for all."""
    diversity: float = 0.0


class Step(NamedTuple):
    recommendations: list[Recommendation]
    """One a window, in the order of the windows, but for those that failed."""
    floors: list[BaselineRanks]
    """Of the last event of each window that has a recommendation, before it was learned."""
    failed: dict[int, Exception]
    """Why windows have none, by their place among the windows."""
    work: ForwardStats
    unknown_items: int
    """Windows whose last item the catalogue doesn't know."""
    unscored: int
    """Candidates left out of the answers because their score was no finite number."""
    audit: Audit
    recall: Recall
    drift: dict[str, float]
    """Population stability indices of late events, by what may have drifted; none before enough was seen."""


class Heard(NamedTuple):
    """What the memory said of a window."""

    floors: BaselineRanks
    found: CandidateFeatures


class Candidates(NamedTuple):
    """Windows and what may be recommended to them: an answer depends on nothing else."""

    taken: Sequence[PreparedWindow]
    states: Tensor
    """(len(taken), width)"""
    near: Retrieved
    heard: Mapping[int, Heard]
    """By the place among `taken`, of those that were learned."""


class Answer(NamedTuple):
    recommendation: Recommendation
    first: float
    """Probability of the first item."""
    unscored: int
    """Candidates that were left out."""


class Engine:
    """A model that serves, on `device`."""

    def __init__(self, model: Model, catalog: Catalog, limits: Limits, device: torch.device) -> None:
        self.version = model.version
        self.capacity = model.config.capacity
        self.trained_until = model.config.trained_until if model.config.has_time else None
        """Time of the last event that the model was trained on, seconds since 1970; None where its log had no times."""
        self.catalog = catalog
        since = model.config.remembers_until if model.config.has_time else -np.inf  # what is live is newer than rows
        self.memories = StatisticsByLog(model.config.horizons, model.memory, since, catalog, limits.learn_per_day)
        reference = model.config.reference
        self._drift = (
            None if reference is None else Drift(reference, model.memory["popularity.sums"].astype(np.float64))
        )
        self._limits = limits
        self._event_types = model.config.event_types
        self._type_numbers = event_type_numbers(self._event_types)
        self.untaught = 0
        """Events that taught nothing because their user had taught enough, see `Limits.learn_per_day`."""
        self.unmeasured = 0
        """Measurements beside the answers (audit, recall, drift) that failed."""
        self._draw = np.random.default_rng()
        self._device = device
        self._encoder = model.encoder.to(device).eval()
        body = self._encoder.body
        words, types = model.config.encoder.words, model.config.event_types
        reader = WindowReader(reader_of(catalog, types, words, model.tokenizer, gaps=model.config.has_time), types)
        self._preprocessor = Preprocessor(catalog, reader, self.capacity, limits.stride)
        look = token_embedding_of(self._encoder.inputs, self._encoder.width, device)
        dtype = devices.dtype_of(limits.dtype, device)
        self.tolerance = cache_audit.EXACT if dtype == torch.float32 else cache_audit.ROUNDED
        shape = CacheSpec.of(body.config, self.capacity * model.config.encoder.event_tokens, dtype)
        share = limits.kv_cache_share
        budget = limits.kv_cache_bytes if share is None else share * devices.memory(device)
        cache = KeyValueCache(shape, budget, device, limits.kv_host_bytes)
        if device.type == "cuda":  # a CPU computes in float32 whatever it stores
            body.to(dtype)
        forward = forward_of(self._encoder, cache.first)
        self.incremental = IncrementalEncoder(self._encoder, look, cache, forward, limits.token_budget)
        self._embeddings = ItemEmbeddings(catalog, self._encoder, look, limits.categories, device)
        choice = RankingConfig(
            limits.top_k, limits.scoring, limits.index_effort, limits.diversity, limits.exclude_seen, self.capacity
        )
        self.ranker = Ranker(model.config.blend, choice)
        self._embed(np.arange(len(catalog)))
        self.memories.warm()

    @classmethod
    def load(cls, folder: Path, cache_dir: Path, limits: Limits, device: str = "auto", threads: int = 1) -> "Engine":
        """An engine from a model folder. Raises `UserError` for a bad folder, or a device that isn't there.

        `threads` is process-wide (torch keeps one number): more than 1 only where no other process needs the cores.
        """
        torch.set_num_threads(threads)
        place = devices.find(device)
        model = load(folder)
        encoder = TextEncoder(model.config.text_encoder, cache_dir, str(place))
        catalog = Catalog(model.items, model.vectors, model.features, model.alike, encoder)
        try:
            return cls(model, catalog, limits, place)
        except (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError) as error:
            reason, _, _ = str(error).partition("\n")
            raise UserError(f"the model in {folder} can't be served ({reason}): train it again") from error

    @property
    def unusable_items(self) -> int:
        """Items that are never recommended, because their vectors are not finite."""
        return self._embeddings.unusable

    @property
    def texts(self) -> VectorCache:
        """The cache of text vectors."""
        return self.catalog.encoder.cache

    @property
    def body(self) -> Any:
        """The decoder of transformers."""
        return self._encoder.body

    @torch.inference_mode()
    def step(self, windows: Sequence[Window], logs: Sequence[int] | None = None) -> Step:
        """Answers each of `windows`, at least one, oldest first for each user; each also teaches the online memory.

        `logs` (len(windows),) says whose statistics, see `StatisticsByLog`; by default there is one log. What raises
        here has taught nothing; once the statistics have learned, a window that can't be answered is among the `failed`
        ones, so that none is ever answered by statistics that have learned what comes after it.
        """
        whose = [0] * len(windows) if logs is None else logs
        taken = [one._replace(log=log) for one, log in zip(self._preprocessor.prepare(windows), whose, strict=True)]
        tokens = [one.tokens for one in taken]
        states, work = self.incremental.encode([window.user_id for window in windows], tokens)
        if not states.isfinite().all():
            raise ArithmeticError("the model gave a state that is not finite")
        near = self.ranker.nearest(states)
        learned = self._learn_and_ask(taken, near)
        failed = {place: one for place, one in enumerate(learned) if isinstance(one, Exception)}
        heard = {place: one for place, one in enumerate(learned) if not isinstance(one, Exception)}
        answers: dict[int, Answer] = {}
        for place, outcome in self._outcomes(Candidates(taken, states, near, heard), list(heard)):
            if isinstance(outcome, Answer):
                answers[place] = outcome
            else:
                failed[place] = outcome
        firsts = [(taken[place], answer.first) for place, answer in answers.items()]
        return Step(
            [answer.recommendation for answer in answers.values()],
            [heard[place].floors for place in answers],
            failed,
            work,
            sum(one.rows[-1] == UNKNOWN for one in taken),
            sum(answer.unscored for answer in answers.values()),
            self._beside(partial(self._audit, taken, states), Audit()),
            self._beside(partial(self._recall, taken, states), Recall()),
            self._beside(partial(self._drifted, firsts), {}),
        )

    def affordable(self, windows: Sequence[Window]) -> int:
        """How many of the leading `windows` a step can answer within the token budget: at least one."""
        tokens = self._preprocessor.tokens(windows)
        if sum(map(len, tokens)) <= self._limits.token_budget:  # nothing need be in the cache
            return len(windows)
        costs = self.incremental.new_token_counts([window.user_id for window in windows], tokens)
        return max(1, int((costs.cumsum() <= self._limits.token_budget).sum()))

    def learn(self, window: Window, log: int = 0) -> None:
        """Teaches the online memory a window without answering it: what a restart needs to be where it was."""
        window = self._preprocessor.truncate(window)
        self._learn(window, self._preprocessor.rows(window), log)

    def forget(self, user_id: str) -> None:
        """Erases a user's cached keys and values and their place in the online memories."""
        self._preprocessor.clear()
        self.incremental.cache.forget(user_id)
        self.memories.forget(user_id)

    def __contains__(self, user_id: str) -> bool:
        """Whether anything here is a user's own; the sums of the online memories are nobody's."""
        return user_id in self.incremental.cache or user_id in self.memories

    def read(self, items: Sequence[Item]) -> Vectors:
        """Vectors for `upsert`: slow where a text is new. May run on another thread, beside `step`."""
        return self.catalog.read(items)

    @torch.inference_mode()
    def upsert(self, items: Sequence[Item], vectors: Vectors) -> None:
        """Adds or changes items; recommendable from the next step on. Windows that hold a changed one re-encode."""
        changed = self.catalog.upsert(items, vectors)
        self._preprocessor.clear()
        self._embed(changed)

    @torch.inference_mode()
    def withdraw(self, item_ids: Sequence[str]) -> None:
        """Items that are recommended no more, from the next step on."""
        self.catalog.withdraw(item_ids)
        self._embed(np.zeros(0, np.int64))

    def full(self, windows: Sequence[Window]) -> Tensor:
        """User states (len(windows), width) by encoding each whole window without the cache: what `step` must equal."""
        return self.incremental.encode_full(self._preprocessor.tokens(windows))

    def states(self, windows: Sequence[Window]) -> Tensor:
        """User states (len(windows), width) through the cache, as `step` computes them; learns nothing."""
        return self.incremental.encode([window.user_id for window in windows], self._preprocessor.tokens(windows))[0]

    @torch.inference_mode()
    def probe(self) -> None:
        """Raises `ModelError` unless a few windows have answers that are numbers, the same with and without the cache.

        They are windows of nobody's, of some of the catalogue's items and an unknown one. Learns nothing.
        """
        count = min(PROBE_ITEMS, len(self.catalog) - 1)
        windows = probe_windows(self.catalog.ids(range(1, count + 1)), self._event_types, self.capacity)
        users = [window.user_id for window in windows]
        taken = self._preprocessor.prepare(windows)
        tokens = [one.tokens for one in taken]
        try:
            whole = self._whole(tokens)
            self.incremental.encode(users, [one.prefix(max(1, len(one) - 1)) for one in tokens])
            states, _ = self.incremental.encode(users, tokens)
            ranked = self.ranker.rank(states, partial(self._ask, taken))
            known = self._encoder.users(states, self._last_types(taken))
            types = torch.softmax(self._encoder.type_logits(known), dim=1)
            interest = self._interest(known, ranked.rows)
        except Exception as error:
            raise ModelError(f"the model fails on probe windows ({type(error).__name__}: {error})") from error
        finally:
            for user in users:
                self.forget(user)
        told = [whole, states, ranked.scores, ranked.probabilities, ranked.interests, types]
        if not all(bool(one.isfinite().all()) for one in (*told, *([] if interest is None else [interest]))):
            raise ModelError("the model's answers to probe windows are not all finite numbers")
        left_out = self.unusable_items or bool((ranked.unscored > 0).any())
        if left_out and (ranked.scores <= BARRED).all():
            raise ModelError("the model gives no item a score")
        if float((states - whole).abs().max()) > self.tolerance.difference:
            raise ModelError("the model's answers to probe windows differ with cached keys and values")

    def reset(self) -> None:
        """Forgets every user, and what was learned since the training."""
        self._preprocessor.clear()
        self.incremental.cache.reset()
        self.memories.reset()

    @torch.inference_mode()
    def explain(self, window: Window, log: int = 0) -> Explanation:
        """Why `window` has its answer, by the memory of `log` as it stands; learns nothing, leaves the cache alone."""
        fitted = self._preprocessor.truncate(window)
        taken = self._preprocessor.prepare([fitted, *shortened(fitted)])
        states = self._whole([one.tokens for one in taken])
        evidence = self.memories.extractor(log)

        def ask(near: Retrieved) -> list[CandidateFeatures]:
            rows = near.rows.cpu().numpy()
            return [evidence.extract(one.rows, mine) for one, mine in zip(taken, rows, strict=False)]

        ranked = self.ranker.rank(states[:1], ask)
        table, scored = self.ranker.score_all(states, ask)
        names = self.catalog.ids(ranked.rows[0].tolist())
        why = reasons(table, ranked, self.ranker.blend.weights, names)
        return Explanation(window.user_id, window.n, self.version, why, influences(fitted, scored, ranked))

    def neighbours(self, item_id: str, log: int = 0, count: int = 10) -> Neighbours | None:
        """What stands near an item, by the memory of `log` too; None for one that the catalogue doesn't know."""
        row = self.catalog.row(item_id)
        return None if row == UNKNOWN else around(row, self.memories.extractor(log), self.catalog.ids, count)

    def _whole(self, tokens: Sequence[Tokens]) -> Tensor:
        """States without the cache, in calls within the token budget."""
        at_once = max(1, self._limits.token_budget // max(map(len, tokens)))
        parts = [tokens[begin : begin + at_once] for begin in range(0, len(tokens), at_once)]
        return torch.cat([self.incremental.encode_full(part) for part in parts])

    def _learn(self, window: Window, rows: Rows, log: int) -> None:
        times = [event.timestamp for event in window.events]
        memory = self.memories.extractor(log).memory
        arrived = min(window.arrived, time.time() + CLOCK_AHEAD_S)
        self.untaught += memory.learn(window.user_id, window.n, window.offset, rows, times, arrived)

    def _learn_and_ask(self, taken: Sequence[PreparedWindow], near: Retrieved) -> list[Heard | Exception]:
        """Window by window: an answer never depends on how windows fell into batches."""
        heard: list[Heard | Exception] = []
        for one, rows in zip(taken, near.rows.cpu().numpy(), strict=True):
            try:
                evidence = self.memories.extractor(one.log)
                floors = evidence.memory.baselines(one.rows)
                self._learn(one.window, one.rows, one.log)
                heard.append(Heard(floors, evidence.extract(one.rows, rows)))
            except Exception as error:  # noqa: BLE001 - the windows before it are learned, and shall be answered
                heard.append(error)
        return heard

    def _outcomes(self, candidates: Candidates, places: Sequence[int]) -> Iterator[tuple[int, Answer | Exception]]:
        """Answers the windows at `places`; should that fail, halves of them, so that only those at fault have none."""
        try:
            answers: Sequence[Answer | Exception] = self._answers(candidates, places)
        except Exception as error:  # noqa: BLE001 - it is told by the step
            if len(places) > 1:
                half = len(places) // 2
                yield from self._outcomes(candidates, places[:half])
                yield from self._outcomes(candidates, places[half:])
                return
            answers = [error] * len(places)
        yield from zip(places, answers, strict=True)

    def _answers(self, candidates: Candidates, places: Sequence[int]) -> list[Answer]:
        """Learns nothing: it may be called again."""
        where = torch.tensor(places, dtype=torch.int64, device=self._device)
        taken = [candidates.taken[place] for place in places]
        found = [candidates.heard[place].found for place in places]
        ranked = self.ranker.choose(candidates.near.at(where), found)
        if ((ranked.unscored > 0) & (ranked.scores <= BARRED).all(dim=1)).any():
            raise ArithmeticError("the model gave no score that is a number")
        users = self._encoder.users(candidates.states[where], self._last_types(taken))
        types = torch.softmax(self._encoder.type_logits(users)[:, UNKNOWN + 1 :], dim=1)
        interest = self._interest(users, ranked.rows)
        named = Names(self.version, self._event_types, self.items.labels, self.catalog.ids)
        read = [one.window for one in taken]
        told = recommendations(read, ranked, types, interest, named, self._limits.interests_k)
        return list(map(Answer, told, ranked.probabilities[:, 0].tolist(), ranked.unscored.tolist()))

    def _beside(self, measure: Callable[[], T], otherwise: T) -> T:
        """What is measured beside the answers, which do not depend on it; `otherwise` where that fails."""
        try:
            return measure()
        except Exception as error:  # noqa: BLE001 - the answers are there
            self.unmeasured += 1
            log.warning("%s while answers were measured", type(error).__name__)
            return otherwise

    def _ask(self, taken: Sequence[PreparedWindow], near: Retrieved) -> list[CandidateFeatures]:
        pairs = zip(taken, near.rows.cpu().numpy(), strict=True)
        return [self.memories.extractor(one.log).extract(one.rows, rows) for one, rows in pairs]

    def _last_types(self, taken: Sequence[PreparedWindow]) -> Tensor:
        """The number of the type of each window's last event, (len(taken),)."""
        last = [self._type_numbers.get(one.window.events[-1].event_type, UNKNOWN) for one in taken]
        return torch.tensor(last, device=self._device)

    def _interest(self, users: Tensor, rows: Tensor) -> Tensor | None:
        """The probability that a contact with one of `rows` (batch, k) is the goal, (batch, k); None without a goal."""
        if self._encoder.theta is None:
            return None
        return torch.sigmoid(self._encoder.interest_logits(users, self.items.outputs[rows]))

    def _drifted(self, firsts: Sequence[tuple[PreparedWindow, float]]) -> dict[str, float]:
        """The indices once the windows' last events, and the first probability of each answer, are among them."""
        if self._drift is None or not firsts:
            return {}
        types = [one.window.events[-1].event_type for one, _ in firsts]
        self._drift.observe([one.rows[-1] for one, _ in firsts], types, np.array([first for _, first in firsts]))
        return self._drift.indices()

    def _share(self, count: int, share: float) -> NDArray[np.int64]:
        """A random `share` of the numbers below `count`."""
        return np.flatnonzero(self._draw.random(count) < share)

    def _recall(self, taken: Sequence[PreparedWindow], states: Tensor) -> Recall:
        """What the index finds for a random share of the windows, against scoring everything."""
        chosen = self._share(len(taken), self._limits.recall_share)
        return self.ranker.recall(states[chosen], partial(self._ask, [taken[at] for at in chosen.tolist()]))

    def _audit(self, taken: Sequence[PreparedWindow], states: Tensor) -> Audit:
        """Compares the answers of a random share of the windows with what encoding them whole gives.

        Of the windows that are drawn, as many as the token budget allows, at least one: what is compared costs no more
        than a step may.
        """
        drawn = self._draw.permutation(self._share(len(taken), self._limits.audit_share))
        if not len(drawn):
            return Audit()
        longest = np.maximum.accumulate([len(taken[at].tokens) for at in drawn])  # all are padded to it
        within = longest * np.arange(1, len(drawn) + 1) <= self._limits.token_budget
        chosen = drawn[: max(1, int(within.sum()))]
        windows = [taken[at] for at in chosen.tolist()]
        whole = self.incremental.encode_full([one.tokens for one in windows])
        ours, theirs = (self.ranker.by_score(of, partial(self._ask, windows)) for of in (states[chosen], whole))
        return cache_audit.compare(states[chosen], whole, ours, theirs, self.tolerance)

    @torch.inference_mode()
    def _embed(self, rows: NDArray[np.int64]) -> None:
        """Brings what is computed from the catalogue up to date for `rows`, whose vectors are new."""
        self.items = self._embeddings.update(rows)
        self.ranker.update(self.items, rows)
        self.memories.changed()
