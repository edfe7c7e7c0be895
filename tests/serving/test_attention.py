import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_rec.serving.attention.gather import GatherAttention
from stream_rec.serving.scheduler import BatchLayout

HEADS, KV_HEADS, WIDTH = 4, 2, 8


@st.composite
def placed(draw: st.DrawFn, capacity: int = 12, slots: int = 9) -> BatchLayout:
    """Rows of a call, sorted as the batch plan sorts them."""
    rows = draw(st.integers(1, slots))
    lengths = [draw(st.integers(1, capacity)) for _ in range(rows)]
    keep = [draw(st.integers(0, length - 1)) for length in lengths]
    order = sorted(range(rows), key=lambda at: (lengths[at] - keep[at], lengths[at]))
    chosen = draw(st.permutations(range(slots)))[:rows]
    columns = ([values[at] for at in order] for values in (chosen, keep, lengths))
    return BatchLayout(*(np.array(column) for column in columns), capacity)


def one_by_one(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, call: BatchLayout) -> torch.Tensor:
    """Each token alone: softmax over what stands in its slot up to its own position."""
    out = []
    for token, (slot, position) in enumerate(zip(np.repeat(call.slots, call.new), call.positions, strict=True)):
        seen = slice(slot * call.capacity, slot * call.capacity + position + 1)
        for head in range(len(query)):
            of = head // (len(query) // KV_HEADS)
            weights = torch.softmax(keys[seen, of] @ query[head, token] / WIDTH**0.5, dim=0)
            out.append(weights @ values[seen, of])
    return torch.stack(out).view(-1, len(query), WIDTH)


@settings(max_examples=15, deadline=None)
@given(call=placed())
def test_gathering_is_attention_to_the_own_slot_up_to_the_own_position(call: BatchLayout) -> None:
    torch.manual_seed(0)
    places = 9 * call.capacity
    keys, values = torch.randn(places, KV_HEADS, WIDTH), torch.randn(places, KV_HEADS, WIDTH)
    query = torch.randn(HEADS, int(call.new.sum()), WIDTH)
    way = GatherAttention.of(call, HEADS // KV_HEADS)
    assert torch.allclose(way(query, keys, values, WIDTH**-0.5), one_by_one(query, keys, values, call), atol=1e-5)
