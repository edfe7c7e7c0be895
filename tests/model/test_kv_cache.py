from collections.abc import Sequence

import numpy as np
import pytest
import torch

from stream_rec.model.kv_cache import KeyValueCache, Shape

SHAPE = Shape(layers=1, kv_heads=1, head_dim=2, capacity=4, dtype=torch.float32)


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
