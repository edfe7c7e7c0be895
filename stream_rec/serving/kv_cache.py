"""Keys and values of all users: a slot holds one user's window.

What stands in a slot is known by the identity of each of its tokens: a prefix is reused if and only if it is the same
prefix, whatever happened in between (a moved window, an item whose text changed, an erasure and a return, a lost step).
There is no other rule, and so no way to a wrong prefix.
"""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stream_rec.errors import UserError
from stream_rec.features.tokens import Numbers

MOST = 1 << 20
"""Users of a tier: beyond that their names and identities, not the keys and values, fill the memory."""


class CacheSpec(NamedTuple):
    """What a slot has room for."""

    layers: int
    kv_heads: int
    head_dim: int
    capacity: int
    """Tokens."""
    dtype: torch.dtype

    @classmethod
    def of(cls, config: Any, capacity: int, dtype: torch.dtype) -> "CacheSpec":
        """`config` is the decoder's transformers configuration."""
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(config.num_hidden_layers, config.num_key_value_heads, head_dim, capacity, dtype)

    @property
    def bytes(self) -> int:
        return 2 * self.layers * self.kv_heads * self.capacity * self.head_dim * self.dtype.itemsize


class SwapBuffer(NamedTuple):
    """What some slots hold, on its way from one tier to the other."""

    cached: Tensor
    """Keys of each layer, then values of each layer: (2 * layers, slots, capacity, kv_heads, head_dim)."""
    identities: Numbers
    lengths: Numbers


class CachePool:
    """Slots in the memory of one device, given to users; the least recently used first in `users`."""

    def __init__(self, shape: CacheSpec, budget: float, device: torch.device) -> None:
        self.slots = min(MOST, int(budget // shape.bytes))
        self.capacity = shape.capacity
        self.dummy_slot = self.slots * shape.capacity
        """A place of nobody's, for what is written to fill up a call."""
        places = (2 * shape.layers, self.dummy_slot + 1, shape.kv_heads, shape.head_dim)
        self._cached = torch.zeros(places, dtype=shape.dtype, device=device)
        self.keys, self.values = self._cached[: shape.layers].unbind(), self._cached[shape.layers :].unbind()
        """Of each layer, (places, kv_heads, head_dim)."""
        self.device = device
        self.identities: Numbers = np.zeros((self.slots, shape.capacity), np.int64)
        self.lengths: Numbers = np.zeros(self.slots, np.int64)
        self.users: OrderedDict[str, int] = OrderedDict()
        self._free = list(range(self.slots - 1, -1, -1))

    @property
    def free_slots(self) -> int:
        """Slots that nobody has."""
        return len(self._free)

    def allocate(self, user: str) -> int:
        """A free slot to a user who has none."""
        self.users[user] = self._free.pop()
        return self.users[user]

    def free(self, user: str) -> None:
        """Frees the user's slot and overwrites what it held: nobody's behaviour outlives their place."""
        slot = self.users.pop(user)
        self._cached[:, slot * self.capacity : (slot + 1) * self.capacity].zero_()
        self.identities[slot] = 0
        self.lengths[slot] = 0
        self._free.append(slot)

    def oldest(self, count: int) -> list[str]:
        """The `count` least recently used users."""
        return list(islice(self.users, max(0, count)))

    def read(self, users: Sequence[str]) -> SwapBuffer:
        """A copy of what the users' slots hold."""
        slots = self._slots(users)
        return SwapBuffer(self._cached[:, self._places(slots)], self.identities[slots], self.lengths[slots])

    def write(self, users: Sequence[str], content: SwapBuffer) -> None:
        """Puts what `read` gave into the users' slots."""
        slots = self._slots(users)
        self._cached[:, self._places(slots)] = content.cached.to(self.device)
        self.identities[slots], self.lengths[slots] = content.identities, content.lengths

    def _slots(self, users: Sequence[str]) -> Numbers:
        return np.array([self.users[user] for user in users], np.int64)

    def _places(self, slots: Numbers) -> Tensor:
        """All places of `slots` (n,), (n, capacity)."""
        return torch.from_numpy(slots[:, None] * self.capacity + np.arange(self.capacity)).to(self.device)


class KeyValueCache:
    """Slots for users in a fixed budget of memory, the least recently used one given away first.

    With a `host_budget` (bytes), who loses a slot on `device` keeps the content in a slot of the host's memory, and has
    it back on return: a copy instead of a prefill. `budget` in bytes.
    """

    def __init__(self, shape: CacheSpec, budget: float, device: torch.device, host_budget: float = 0) -> None:
        self.bytes_per_user = shape.bytes
        self.capacity = shape.capacity
        self.device = device
        self.first = CachePool(shape, budget, device)
        self.second = CachePool(shape, host_budget, torch.device("cpu"))
        if not self.first.slots:
            raise UserError(
                f"kv_cache_gb is too small: one user needs {shape.bytes / 1e9:.4f} GB, {budget / 1e9:.4f} are given"
            )
        self.slots = self.first.slots
        self.evictions = 0

    def __len__(self) -> int:
        """Users whose keys and values are held, wherever."""
        return len(self.first.users) + len(self.second.users)

    def __contains__(self, user: str) -> bool:
        return user in self.first.users or user in self.second.users

    def acquire(self, users: Sequence[str]) -> Numbers:
        """A slot for each of `users`, (len(users),): at most `slots` different ones, none of which evicts another."""
        held = self.first.users
        for user in users:
            if user in held:
                held.move_to_end(user)
        absent = list(dict.fromkeys(user for user in users if user not in held))
        if absent:
            self._admit(absent)
        return np.fromiter((held[user] for user in users), np.int64, len(users))

    def prefixes(self, slots: Numbers, identities: Numbers, lengths: Numbers) -> Numbers:
        """How many leading tokens stand in each slot already, (rows,).

        `identities` (rows, width) are padded on the right; `lengths` (rows,) says how far each row goes.
        """
        return _prefixes(self.first, slots, identities, lengths)

    def kept(self, users: Sequence[str], identities: Numbers, lengths: Numbers) -> Numbers:
        """`prefixes` for users who may have no slot: 0 for them, (rows,). Changes nothing."""
        found = np.zeros(len(users), np.int64)
        for tier in (self.first, self.second):
            here = np.array([at for at, user in enumerate(users) if user in tier.users], np.int64)
            if len(here):
                slots = np.array([tier.users[users[at]] for at in here.tolist()])
                found[here] = _prefixes(tier, slots, identities[here], lengths[here])
        return found

    def begin(self, slots: Numbers, keep: Numbers) -> None:
        """Declares void what lies behind the kept prefixes, before a forward pass overwrites it and may fail."""
        self.first.lengths[slots] = keep

    def commit(self, slots: Numbers, identities: Numbers, lengths: Numbers) -> None:
        """Declares the tokens written to the slots valid; arguments as for `prefixes`."""
        self.first.identities[slots, : identities.shape[1]] = identities
        self.first.lengths[slots] = lengths

    def forget(self, user: str) -> None:
        """Frees a user's slot, wherever it is."""
        for tier in (self.first, self.second):
            if user in tier.users:
                tier.free(user)

    def reset(self) -> None:
        """Frees every slot."""
        for tier in (self.first, self.second):
            for user in list(tier.users):
                tier.free(user)

    def clear(self) -> None:
        """Forgets every prefix; the slots stay with their users."""
        self.first.lengths[:] = 0
        self.second.lengths[:] = 0

    def _admit(self, users: Sequence[str]) -> None:
        """Slots for users without one; what the second tier holds of them comes with them."""
        returning = [user for user in users if user in self.second.users]
        content = self.second.read(returning)
        for user in returning:
            self.second.free(user)
        self._evict(len(users) - self.first.free_slots)
        for user in users:
            self.first.allocate(user)
        self.first.write(returning, content)

    def _evict(self, count: int) -> None:
        """Frees `count` slots of the first tier; as many users as the second can hold move there."""
        leaving = self.first.oldest(count)
        moving = leaving[max(0, len(leaving) - self.second.slots) :]
        gone = self.second.oldest(len(moving) - self.second.free_slots)
        for user in gone:
            self.second.free(user)
        content = self.first.read(moving)
        for user in leaving:
            self.first.free(user)
        for user in moving:
            self.second.allocate(user)
        self.second.write(moving, content)
        self.evictions += len(leaving) - len(moving) + len(gone)


def _prefixes(tier: CachePool, slots: Numbers, identities: Numbers, lengths: Numbers) -> Numbers:
    known = np.minimum(tier.lengths[slots], lengths)
    places = np.arange(identities.shape[1])
    differ = (tier.identities[slots, : len(places)] != identities) & (places < known[:, None])
    found: Numbers = np.where(differ.any(axis=1), differ.argmax(axis=1), known)
    return found
