"""Windows to user states, each computed behind whatever prefix of it the cache holds: exact to encoding it whole.

It knows tokens and not events, so that item tokens and words are the same to it.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stream_rec.features.tokens import Numbers, Tokens
from stream_rec.models.user_encoder import EncoderConfig, UserEncoder
from stream_rec.serving import scheduler
from stream_rec.serving.device import upload
from stream_rec.serving.forward import Forward, ForwardOutput, GatherForward
from stream_rec.serving.kv_cache import CacheSpec, KeyValueCache
from stream_rec.serving.scheduler import BatchLayout, ScheduledSequence

PROBE = 5
"""Tokens by which it is seen whether a decoder computes the same through cached keys and values."""

log = logging.getLogger(__name__)

TokenEmbedding = Callable[[Tensor], Tensor]
"""Token numbers (columns, ...) to token vectors (..., width)."""


class ForwardStats(NamedTuple):
    """What was computed, for the metrics; counts of tokens but where it says otherwise."""

    appended: int = 0
    """Computed behind a kept prefix."""
    prefilled: int = 0
    """Computed for rows without one."""
    hits: int = 0
    """Rows with a kept prefix."""
    misses: int = 0
    needed: int = 0
    """Cached positions that attention read because a row needs them."""
    padding: int = 0
    """Cached positions that it read beside them, since rows of unlike length share an attention."""
    filled: int = 0
    """Computed to fill up calls, of nobody's."""

    def __add__(self, other: "ForwardStats") -> "ForwardStats":  # type: ignore[override]  # a sum of counts, not a longer tuple
        return ForwardStats(*(one + another for one, another in zip(self, other, strict=True)))


class IncrementalEncoder:
    """An encoder with a cache. `budget`: most new tokens of one model call, which `forward` computes."""

    def __init__(
        self, encoder: UserEncoder, look: TokenEmbedding, cache: KeyValueCache, forward: Forward, budget: int
    ) -> None:
        self._encoder = encoder
        self._look = look
        self._forward = forward
        self._budget = budget
        self._device = cache.device
        self.cache = cache

    @torch.inference_mode()
    def encode(self, users: Sequence[str], tokens: Sequence[Tokens]) -> tuple[Tensor, ForwardStats]:
        """User states (len(users), width) of the users' windows; each holds at most the cache's capacity in tokens.

        The windows of one user stand in their order.
        """
        states = torch.empty(len(users), self._encoder.width, device=self._device)
        work = ForwardStats()
        for rows in scheduler.waves(users, tokens, self.cache.slots):
            work += self._compute(rows, states)
        return states, work

    def new_token_counts(self, users: Sequence[str], tokens: Sequence[Tokens]) -> Numbers:
        """How many new tokens `encode` would compute for each window, (len(users),)."""
        identities, lengths = scheduler.padded(tokens)
        keep = self.cache.kept(users, identities, lengths)
        before: dict[str, int] = {}
        for at, user in enumerate(users):
            if user in before:  # by then the slot holds the user's window before this one
                known = tokens[before[user]].identities
                keep[at] = scheduler.common_prefix_len(known, tokens[at].identities)
            before[user] = at
        costs: Numbers = np.maximum(lengths - keep, 1)
        return costs

    @torch.inference_mode()
    def encode_full(self, tokens: Sequence[Tokens]) -> Tensor:
        """User states (len(tokens), width) by one forward pass over whole windows, padded on the right: no cache."""
        lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))
        columns = len(tokens[0].numbers)
        filled = np.zeros((columns, len(tokens), int(lengths.max())), np.int64)
        filled[:, np.arange(filled.shape[2]) < lengths[:, None]] = np.concatenate([one.numbers for one in tokens], 1)
        states: Tensor = self._encoder(self._look(upload(filled, self._device)))
        return states[upload(np.arange(len(tokens)), self._device), upload(lengths - 1, self._device)]

    def _compute(self, rows: Sequence[ScheduledSequence], states: Tensor) -> ForwardStats:
        """Computes a round and writes its answers into `states`."""
        slots = self.cache.acquire([row.user for row in rows])
        identities, lengths = scheduler.padded([row.tokens for row in rows])
        first = np.fromiter((row.answers[0][1] for row in rows), np.int64, len(rows))
        # The first answered token is always computed: its state is kept nowhere.
        keep = np.minimum(self.cache.prefixes(slots, identities, lengths), first - 1)
        work = ForwardStats()
        for chosen in scheduler.pack_by_token_budget(lengths - keep, lengths, self._budget):
            self.cache.begin(slots[chosen], keep[chosen])
            placed = BatchLayout(slots[chosen], keep[chosen], lengths[chosen], self.cache.capacity)
            work += self._call([rows[at] for at in chosen], placed, states)
            self.cache.commit(slots[chosen], identities[chosen], lengths[chosen])
        return work

    def _call(self, rows: Sequence[ScheduledSequence], placed: BatchLayout, states: Tensor) -> ForwardStats:
        """One forward pass over the new tokens of `rows`, one after the other."""
        numbers = np.concatenate(
            [row.tokens.numbers[:, kept:] for row, kept in zip(rows, placed.keep.tolist(), strict=True)], axis=1
        )
        computed = self._forward(self._look(upload(numbers, self._device)), placed)
        answers = [
            (request, begin + length - kept - 1)
            for row, begin, kept in zip(rows, placed.begins.tolist(), placed.keep.tolist(), strict=True)
            for request, length in row.answers
        ]
        request, at = upload(np.array(answers).T, self._device)
        states[request] = computed.states[at]
        return _work(placed, computed)


def _work(placed: BatchLayout, computed: ForwardOutput) -> ForwardStats:
    hit, needed = placed.keep > 0, int(placed.lengths.sum())
    return ForwardStats(
        appended=int(placed.new[hit].sum()),
        prefilled=int(placed.new[~hit].sum()),
        hits=int(hit.sum()),
        misses=int((~hit).sum()),
        needed=needed,
        padding=computed.read - needed,
        filled=computed.filled,
    )


def refuse_inexact(name: str, body: Any) -> None:
    """Raises `UserError` for a decoder that does not compute the same through cached keys and values.

    A few tokens are computed at once, and again one behind the cached others. `name` is for the error message.
    """
    from stream_rec.models.pretrained import REFUSALS, own_attention  # takes seconds, which a worker need not wait

    try:
        apart = _error_behind_cache(body.eval())
    except (TypeError, AttributeError, *REFUSALS) as error:
        log.info("%s, computed behind cached keys and values: %s", name, error)
        apart = float("inf")
    if not apart <= 1e-3:
        raise own_attention(name)


def _error_behind_cache(body: Any) -> float:
    """The largest difference between a whole window and one computed in two parts, as a share of its largest number."""
    encoder = UserEncoder(EncoderConfig(dropout=0, residual_dropout=0), body, items=1, item_dim=1, types=1).eval()
    vectors = torch.randn(PROBE, encoder.width, generator=torch.Generator().manual_seed(0))
    shape = CacheSpec.of(body.config, PROBE, torch.float32)
    cache = KeyValueCache(shape, shape.bytes, torch.device("cpu"))
    incremental = IncrementalEncoder(
        encoder, lambda numbers: vectors[numbers[0]], cache, GatherForward(encoder, cache.first), PROBE
    )
    ids = np.arange(PROBE)
    windows = [Tokens(ids[None, :length], ids[:length] + 1) for length in (PROBE - 2, PROBE)]
    whole = incremental.encode_full(windows)
    parts = torch.cat([incremental.encode(["probe"], [window])[0] for window in windows])
    return float((parts - whole).abs().max() / whole.abs().max())
