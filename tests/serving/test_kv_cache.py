from collections import OrderedDict
from collections.abc import Sequence
from itertools import takewhile
from operator import eq
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from stream_rec.errors import UserError
from stream_rec.features.tokens import Numbers, Tokens
from stream_rec.serving.kv_cache import CachePool, CacheSpec, KeyValueCache
from stream_rec.serving.scheduler import padded

SHAPE = CacheSpec(layers=2, kv_heads=1, head_dim=2, capacity=5, dtype=torch.float32)


def cache_of(device_slots: int, host_slots: int) -> KeyValueCache:
    return KeyValueCache(SHAPE, device_slots * SHAPE.bytes, torch.device("cpu"), host_slots * SHAPE.bytes)


def fill(cache: KeyValueCache, users: Sequence[str]) -> None:
    """Tokens of each user's own, and keys and values that can be told apart."""
    slots = cache.acquire(users)
    for user, slot in zip(users, slots.tolist(), strict=True):
        cache.first.keys[0][slot * SHAPE.capacity : (slot + 1) * SHAPE.capacity] = ord(user)
    cache.commit(slots, np.array([[ord(user)] * 4 for user in users]), np.full(len(users), 4))


def test_of_those_who_lose_their_slots_the_latest_active_move_to_the_host() -> None:
    cache = cache_of(4, 2)
    fill(cache, "abcd")
    fill(cache, "b")
    fill(cache, "wxyz")
    assert list(cache.second.users) == ["d", "b"]
    assert cache.evictions == 2
    fill(cache, "v")
    assert list(cache.second.users) == ["b", "w"]
    assert list(cache.first.users) == ["x", "y", "z", "v"]
    assert cache.evictions == 3


def test_who_returns_from_the_host_has_the_same_keys_and_tokens() -> None:
    cache = cache_of(2, 2)
    fill(cache, "ab")
    fill(cache, "cd")
    slots = cache.acquire("ab")
    assert list(cache.second.users) == ["c", "d"]
    for user, slot in zip("ab", slots.tolist(), strict=True):
        held = cache.first.keys[0][slot * SHAPE.capacity : (slot + 1) * SHAPE.capacity]
        assert held.unique().tolist() == [ord(user)]
    tokens = np.array([[ord(user)] * 4 for user in "ab"])
    assert cache.prefixes(slots, tokens, np.array([4, 3])).tolist() == [4, 3]


@pytest.mark.parametrize("host_slots", [0, 1])
def test_who_has_no_room_on_the_host_is_gone(host_slots: int) -> None:
    cache = cache_of(1, host_slots)
    for user in "abc":
        fill(cache, user)
    assert len(cache) == 1 + host_slots
    assert ("b" in cache) == bool(host_slots)
    assert cache.evictions == 2 - host_slots


def test_a_slot_has_room_for_keys_and_values_of_each_layer_and_token() -> None:
    shape = CacheSpec(layers=3, kv_heads=2, head_dim=8, capacity=5, dtype=torch.float16)
    assert shape.bytes == (3 + 3) * 2 * 8 * 5 * 2
    tier = CachePool(shape, 3.9 * shape.bytes, torch.device("cpu"))
    assert (tier.slots, tier.free_slots) == (3, 3)
    assert [tensor.shape for tensor in (*tier.keys, *tier.values)] == [(3 * 5 + 1, 2, 8)] * 6
    tier.allocate("a")
    assert (tier.slots, tier.free_slots) == (3, 2)
    assert tier.read("a").cached.shape == (6, 1, 5, 2, 8)


@pytest.mark.parametrize(("head_dim", "expected"), [(None, 12), (7, 7)])
def test_the_size_of_a_head_is_the_configured_one_or_its_share_of_the_state(
    head_dim: int | None, expected: int
) -> None:
    config = SimpleNamespace(num_hidden_layers=2, num_key_value_heads=3, hidden_size=48, num_attention_heads=4)
    shape = CacheSpec.of(SimpleNamespace(**vars(config), head_dim=head_dim), 9, torch.float32)
    assert shape == CacheSpec(2, 3, expected, 9, torch.float32)
    assert isinstance(shape.head_dim, int)
    assert CacheSpec.of(config, 9, torch.float32).head_dim == 12


def test_what_is_written_to_nobodys_place_is_in_no_slot() -> None:
    tier = CachePool(SHAPE, 2 * SHAPE.bytes, torch.device("cpu"))
    slots = {tier.allocate("a"), tier.allocate("b")}
    assert slots == {0, 1}
    for tensor in (*tier.keys, *tier.values):
        tensor[tier.dummy_slot] = 1
    assert not tier.read("ab").cached.any()


def test_a_tier_has_at_most_a_million_users_however_small_their_windows() -> None:
    smallest = CacheSpec(layers=1, kv_heads=1, head_dim=1, capacity=1, dtype=torch.float16)
    tier = CachePool(smallest, 1e12, torch.device("cpu"))
    assert tier.slots == tier.free_slots == 1_048_576


def test_a_budget_below_one_user_is_refused_with_both_sizes() -> None:
    shape = CacheSpec(layers=1, kv_heads=1, head_dim=128, capacity=2**20, dtype=torch.float16)
    with pytest.raises(UserError, match=r"one user needs 0\.5369 GB, 0\.2500 are given"):
        KeyValueCache(shape, 0.25e9, torch.device("cpu"))
    cache = cache_of(1, 0)
    assert (cache.slots, cache.bytes_per_user) == (1, SHAPE.bytes)


def test_a_user_who_is_named_twice_has_one_slot() -> None:
    cache = cache_of(2, 0)
    first, second, again = cache.acquire("aba").tolist()
    assert first == again != second
    assert list(cache.first.users) == ["a", "b"]
    cache.acquire("aba")
    assert list(cache.first.users) == ["b", "a"]


USERS = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=3, unique=True)
WINDOW = st.lists(st.integers(1, 2), min_size=1, max_size=SHAPE.capacity)


def tokens(windows: Sequence[list[int]]) -> tuple[Numbers, Numbers]:
    """Identities and lengths, as `prefixes` takes them."""
    return padded([Tokens(np.array([window]), np.array(window)) for window in windows])


def shared(held: list[int], window: list[int]) -> int:
    """The length of the longest common prefix."""
    return len(list(takewhile(bool, map(eq, held, window))))


class CacheAgainstReference(RuleBasedStateMachine):
    """The cache does what two ordered dictionaries of users' tokens do, and never holds another token's keys."""

    @initialize(host_slots=st.integers(0, 3))
    def start(self, host_slots: int) -> None:
        self.cache = cache_of(3, host_slots)
        self.first: OrderedDict[str, list[int]] = OrderedDict()
        self.second: OrderedDict[str, list[int]] = OrderedDict()
        self.evictions = 0

    @rule(users=USERS, windows=st.lists(WINDOW, min_size=3, max_size=3), fails=st.booleans())
    def step(self, users: list[str], windows: list[list[int]], fails: bool) -> None:
        """A forward pass over the users' windows, which may fail while it writes."""
        slots = self.cache.acquire(users)
        self._acquire(users)
        windows = windows[: len(users)]
        identities, lengths = tokens(windows)
        keep = self.cache.prefixes(slots, identities, lengths)
        held = [self.first[user] for user in users]
        assert keep.tolist() == [shared(*pair) for pair in zip(held, windows, strict=True)]
        self.cache.begin(slots, keep)
        for slot, kept, window in zip(slots.tolist(), keep.tolist(), windows, strict=True):
            for position, identity in enumerate(window[kept:], kept):
                self._write(slot * SHAPE.capacity + position, np.nan if fails else identity)
        if not fails:
            self.cache.commit(slots, identities, lengths)
        for user, kept, window in zip(users, keep.tolist(), windows, strict=True):
            self.first[user] = window[:kept] if fails else window

    @rule(user=st.sampled_from("abcdef"))
    def forget(self, user: str) -> None:
        self.cache.forget(user)
        self.first.pop(user, None)
        self.second.pop(user, None)

    @rule()
    def reset(self) -> None:
        self.cache.reset()
        self.first.clear()
        self.second.clear()

    @rule()
    def clear(self) -> None:
        self.cache.clear()
        for held in (self.first, self.second):
            for user in held:
                held[user] = []

    @rule(users=USERS, windows=st.lists(WINDOW, min_size=3, max_size=3))
    def kept(self, users: list[str], windows: list[list[int]]) -> None:
        held = [self.first.get(user, self.second.get(user, [])) for user in users]
        expected = [shared(*pair) for pair in zip(held, windows, strict=False)]
        assert self.cache.kept(users, *tokens(windows[: len(users)])).tolist() == expected

    @invariant()
    def holds_what_the_reference_holds(self) -> None:
        for tier, held in ((self.cache.first, self.first), (self.cache.second, self.second)):
            assert list(tier.users) == list(held)
            assert tier.free_slots == tier.slots - len(held)
            for index, tensor in enumerate((*tier.keys, *tier.values)):
                for user, window in held.items():
                    begin = tier.users[user] * SHAPE.capacity
                    stored = tensor[begin : begin + len(window)]
                    assert (stored == torch.tensor(window).view(-1, 1, 1) + index).all()
        assert len(self.cache) == len(self.first) + len(self.second)
        assert [user in self.cache for user in "abcdef"] == [user in self.first | self.second for user in "abcdef"]
        assert self.cache.evictions == self.evictions

    @invariant()
    def nothing_is_left_in_free_slots(self) -> None:
        for tier in (self.cache.first, self.cache.second):
            for slot in set(range(tier.slots)) - set(tier.users.values()):
                places = slice(slot * SHAPE.capacity, (slot + 1) * SHAPE.capacity)
                assert not any(tensor[places].any() for tensor in (*tier.keys, *tier.values))
                assert not tier.identities[slot].any()
                assert not tier.lengths[slot]

    def _acquire(self, users: list[str]) -> None:
        for user in users:
            if user in self.first:
                self.first.move_to_end(user)
        for user in users:
            if user not in self.first:
                self.first[user] = self.second.pop(user, [])
        while len(self.first) > self.cache.slots:
            user, window = self.first.popitem(last=False)
            self.second[user] = window
        while len(self.second) > self.cache.second.slots:
            self.second.popitem(last=False)
            self.evictions += 1

    def _write(self, place: int, identity: float) -> None:
        """Keys and values that tell tokens, and keys from values, apart."""
        for index, tensor in enumerate((*self.cache.first.keys, *self.cache.first.values)):
            tensor[place] = identity + index


TestCacheAgainstReference = CacheAgainstReference.TestCase
TestCacheAgainstReference.settings = settings(max_examples=40, stateful_step_count=20)
