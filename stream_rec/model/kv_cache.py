"""Keys and values of all users, as transformers cache layers, so that any decoder becomes incremental.

A slot holds one user's window. What stands in a slot is known by the identity of each of its tokens: a prefix is reused
if and only if it is the same prefix, whatever happened in between (a moved window, an item whose text changed, an
erasure and a return, a lost step). There is no other rule, and so no way to a wrong prefix.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from stream_rec.errors import UserError

Identities = NDArray[np.int64]


class Aim:
    """Where the next forward pass reads and writes: `slots` (batch,), `positions` (batch, new), `span` tokens."""

    slots: Tensor
    positions: Tensor
    span: int


class SlabLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers is partly typed
    """Keys and values of one decoder layer for all users: (slots, kv_heads, capacity + 1, head_dim) each.

    The last column is scratch: tokens that only pad a batch write there, and nothing reads it.
    """

    is_sliding = False

    def __init__(self, aim: Aim, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.aim = aim
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None: ...

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """(batch, kv_heads, new, head_dim) in; what the batch may attend to, (batch, kv_heads, span, head_dim), out."""
        slots, positions, span = self.aim.slots, self.aim.positions, self.aim.span
        self.keys[slots[:, None], :, positions] = key_states.transpose(1, 2).to(self.keys.dtype)
        self.values[slots[:, None], :, positions] = value_states.transpose(1, 2).to(self.values.dtype)
        keys = self.keys[:, :, :span].index_select(0, slots)
        values = self.values[:, :, :span].index_select(0, slots)
        return keys.to(key_states.dtype), values.to(value_states.dtype)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:  # noqa: ARG002 - the interface's
        return self.aim.span, 0

    def get_seq_length(self) -> int:
        return 0  # positions are given, never counted from here

    def get_max_length(self) -> int:
        return self.keys.shape[2] - 1


class KeyValueCache:
    """Slots for users, the least recently used one given away first, in a fixed budget of memory.

    `config` is the decoder's transformers configuration; `capacity` counts tokens; `budget` bytes.
    """

    def __init__(
        self, config: Any, capacity: int, budget: float, dtype: torch.dtype, device: torch.device, most: int = 1 << 20
    ) -> None:
        heads: int = config.num_key_value_heads
        head: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        layers: int = config.num_hidden_layers
        self.capacity = capacity
        self.bytes_per_user = 2 * layers * heads * (capacity + 1) * head * dtype.itemsize
        self.slots = min(most, int(budget // self.bytes_per_user))
        if self.slots < 1:
            raise UserError(
                f"kv_cache_gb is too small for one user: {self.bytes_per_user / 1e9:.4f} GB are needed, "
                f"{budget / 1e9:.4f} given"
            )
        self.aim = Aim()
        shape = (self.slots, heads, capacity + 1, head)
        self.layers = Cache(layers=[SlabLayer(self.aim, shape, dtype, device) for _ in range(layers)])
        self.evictions = 0
        self._identities: Identities = np.zeros((self.slots, capacity), np.int64)
        self._lengths = np.zeros(self.slots, np.int64)
        self._slot_of: OrderedDict[str, int] = OrderedDict()
        self._free = list(range(self.slots - 1, -1, -1))

    def __len__(self) -> int:
        """Users with a slot."""
        return len(self._slot_of)

    def acquire(self, users: Sequence[str]) -> NDArray[np.int64]:
        """A slot for each of `users`, (len(users),): at most `slots` different ones, none of which evicts another."""
        for user in users:
            if user in self._slot_of:
                self._slot_of.move_to_end(user)
        for user in users:
            if user not in self._slot_of:
                self._slot_of[user] = self._free.pop() if self._free else self._evict()
        return np.fromiter((self._slot_of[user] for user in users), np.int64, len(users))

    def prefix(self, slot: int, identities: Identities) -> int:
        """How many leading tokens of `identities` (length,) stand in the slot already."""
        known = min(int(self._lengths[slot]), len(identities))
        differ = self._identities[slot, :known] != identities[:known]
        return int(differ.argmax()) if differ.any() else known

    def begin(self, slots: NDArray[np.int64], keep: Iterable[int]) -> None:
        """Declares what lies behind the kept prefix void, before a forward pass overwrites it: it may fail halfway."""
        self._lengths[slots] = np.fromiter(keep, np.int64, len(slots))

    def commit(self, slot: int, keep: int, identities: Identities) -> None:
        """Declares the tokens written to the slot valid."""
        self._identities[slot, keep : len(identities)] = identities[keep:]
        self._lengths[slot] = len(identities)

    def forget(self, user: str) -> None:
        """Frees a user's slot and overwrites what it held."""
        if (slot := self._slot_of.pop(user, None)) is not None:
            for layer in self.layers.layers:
                layer.keys[slot].zero_()
                layer.values[slot].zero_()
            self._identities[slot] = 0
            self._lengths[slot] = 0
            self._free.append(slot)

    def clear(self) -> None:
        """Forgets every prefix; the slots stay with their users."""
        self._lengths[:] = 0

    def _evict(self) -> int:
        _, slot = self._slot_of.popitem(last=False)
        self._lengths[slot] = 0
        self.evictions += 1
        return slot
