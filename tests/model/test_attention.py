import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_rec.model import attention
from stream_rec.model.attention import BLOCK, Gathered, InPlace, Ragged
from stream_rec.model.batcher import Placed
from stream_rec.model.folder import Model
from tests.tiny import CAPACITY

HEADS, KV_HEADS, WIDTH = 4, 2, 8


@st.composite
def placed(draw: st.DrawFn, capacity: int = 12, slots: int = 9) -> Placed:
    """Rows of a call, sorted as the batch plan sorts them."""
    rows = draw(st.integers(1, slots))
    lengths = [draw(st.integers(1, capacity)) for _ in range(rows)]
    keep = [draw(st.integers(0, length - 1)) for length in lengths]
    order = sorted(range(rows), key=lambda at: (lengths[at] - keep[at], lengths[at]))
    chosen = draw(st.permutations(range(slots)))[:rows]
    columns = ([values[at] for at in order] for values in (chosen, keep, lengths))
    return Placed(*(np.array(column) for column in columns), capacity)


def one_by_one(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, call: Placed) -> torch.Tensor:
    """Each token alone: softmax over what stands in its slot up to its own position."""
    out = []
    for token, (slot, position) in enumerate(zip(np.repeat(call.slots, call.new), call.positions, strict=True)):
        seen = slice(slot * call.capacity, slot * call.capacity + position + 1)
        for head in range(HEADS):
            of = head // (HEADS // KV_HEADS)
            weights = torch.softmax(keys[seen, of] @ query[head, token] / WIDTH**0.5, dim=0)
            out.append(weights @ values[seen, of])
    return torch.stack(out).view(-1, HEADS, WIDTH)


@settings(max_examples=15, deadline=None)
@given(call=placed())
def test_both_ways_are_attention_to_the_own_slot_up_to_the_own_position(call: Placed) -> None:
    torch.manual_seed(0)
    places = 9 * call.capacity
    keys, values = torch.randn(places, KV_HEADS, WIDTH), torch.randn(places, KV_HEADS, WIDTH)
    query = torch.randn(HEADS, int(call.new.sum()), WIDTH)
    want = one_by_one(query, keys, values, call)
    cpu = torch.device("cpu")
    for way in (Gathered.of(call, HEADS // KV_HEADS, cpu), InPlace.of(call, places, cpu)):
        assert torch.allclose(way(query, keys, values, WIDTH**-0.5), want, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(call=placed(capacity=200, slots=12))
def test_every_place_that_a_token_sees_lies_in_a_block_that_is_read(call: Placed) -> None:
    """A compiled flex_attention reads the listed blocks alone; uncompiled, as above, it asks the mask about all."""
    counts, indices = attention.blocks(call, 12 * call.capacity)
    for token, (slot, position) in enumerate(zip(np.repeat(call.slots, call.new), call.positions, strict=True)):
        block = token // BLOCK
        read = set(indices[block, : counts[block]].tolist())
        first = slot * call.capacity
        assert {first // BLOCK, (first + position) // BLOCK} <= read


def test_the_decoder_compiles_to_one_graph_for_all_shapes(model: Model) -> None:
    """What a GPU runs: traced once, without a break, reused for calls of other sizes. Only a GPU has it compiled."""
    encoder, body = model.encoder, model.encoder.body
    graphs = []

    def count(graph: torch.fx.GraphModule, _inputs: object) -> object:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(body, backend=count, dynamic=True, fullgraph=True)
    places, cpu = 5 * CAPACITY, torch.device("cpu")
    with torch.inference_mode():
        for rows in (2, 3):
            call = Placed(np.arange(rows), np.arange(rows), np.arange(rows) + 3, CAPACITY)
            tokens, positions = (
                torch.randn(1, int(call.new.sum()), encoder.width),
                torch.from_numpy(call.positions)[None],
            )
            found = []
            for decoder in (body, compiled):
                cache = [[torch.zeros(places, 2, 4) for _ in range(2)] for _ in range(2)]
                ragged = Ragged(*cache, torch.from_numpy(call.write), InPlace.of(call, places, cpu))
                found.append(decoder(inputs_embeds=tokens, position_ids=positions, use_cache=False, ragged=ragged)[0])
            assert torch.allclose(*found, atol=1e-5)
    assert len(graphs) == 1


@pytest.fixture(autouse=True)
def _quiet(recwarn: pytest.WarningsRecorder) -> None:
    """flex_attention warns that it is slow when it isn't compiled."""
