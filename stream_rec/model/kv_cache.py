"""Keys and values of all users: a slot holds one user's window.

What stands in a slot is known by the identity of each of its tokens: a prefix is reused if and only if it is the same
prefix, whatever happened in between (a moved window, an item whose text changed, an erasure and a return, a lost step).
There is no other rule, and so no way to a wrong prefix.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from stream_rec.errors import UserError
from stream_rec.model.tokens import Numbers


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
        self.device = device
        self.bytes_per_user = 2 * layers * heads * capacity * head * dtype.itemsize
        self.slots = min(most, int(budget // self.bytes_per_user))
        if self.slots < 1:
            raise UserError(
                f"kv_cache_gb is too small for one user: {self.bytes_per_user / 1e9:.4f} GB are needed, "
                f"{budget / 1e9:.4f} given"
            )
        shape = (self.slots * capacity, heads, head)
        self.keys, self.values = (
            [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)] for _ in range(2)
        )
        self.evictions = 0
        self._identities: Numbers = np.zeros((self.slots, capacity), np.int64)
        self._lengths: Numbers = np.zeros(self.slots, np.int64)
        self._slot_of: OrderedDict[str, int] = OrderedDict()
        self._free = list(range(self.slots - 1, -1, -1))

    def __len__(self) -> int:
        """Users with a slot."""
        return len(self._slot_of)

    def find(self, user: str) -> int | None:
        """The slot of a user who has one."""
        return self._slot_of.get(user)

    def acquire(self, users: Sequence[str]) -> Numbers:
        """A slot for each of `users`, (len(users),): at most `slots` different ones, none of which evicts another."""
        for user in users:
            if user in self._slot_of:
                self._slot_of.move_to_end(user)
        for user in users:
            if user not in self._slot_of:
                self._slot_of[user] = self._free.pop() if self._free else self._evict()
        return np.fromiter((self._slot_of[user] for user in users), np.int64, len(users))

    def prefixes(self, slots: Numbers, identities: Numbers, lengths: Numbers) -> Numbers:
        """How many leading tokens stand in each slot already, (rows,).

        `identities` (rows, width) are padded on the right; `lengths` (rows,) says how far each row goes.
        """
        known = np.minimum(self._lengths[slots], lengths)
        places = np.arange(identities.shape[1])
        differ = (self._identities[slots, : len(places)] != identities) & (places < known[:, None])
        found: Numbers = np.where(differ.any(axis=1), differ.argmax(axis=1), known)
        return found

    def begin(self, slots: Numbers, keep: Numbers) -> None:
        """Declares void what lies behind the kept prefixes, before a forward pass overwrites it and may fail."""
        self._lengths[slots] = keep

    def commit(self, slots: Numbers, identities: Numbers, lengths: Numbers) -> None:
        """Declares the tokens written to the slots valid; arguments as for `prefixes`."""
        self._identities[slots, : identities.shape[1]] = identities
        self._lengths[slots] = lengths

    def forget(self, user: str) -> None:
        """Frees a user's slot and overwrites what it held."""
        if (slot := self._slot_of.pop(user, None)) is not None:
            place = slot * self.capacity
            for cached in (*self.keys, *self.values):
                cached[place : place + self.capacity].zero_()
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
