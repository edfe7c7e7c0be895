"""What a GPU runs. Without one the kernel runs in Triton's interpreter, and nothing is recorded."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from stream_rec.bench.random_model import random_model
from stream_rec.features.catalog import Catalog
from stream_rec.features.text_encoder import TextEncoder
from stream_rec.messages import Event, Item, Window
from stream_rec.models.user_encoder import EncoderConfig, UserEncoder, new_body
from stream_rec.serving import scheduler
from stream_rec.serving.attention.cuda_graphs import SIZES, GraphForward, in_place, plan_of
from stream_rec.serving.attention.triton import InPlace, tokens_of
from stream_rec.serving.engine import Engine, Limits
from stream_rec.serving.forward import GatherForward, forward_of
from stream_rec.serving.kv_cache import CachePool, CacheSpec
from stream_rec.serving.scheduler import BatchLayout
from stream_rec.window import append
from tests.serving.test_attention import KV_HEADS, WIDTH, one_by_one, placed
from tests.tiny import CAPACITY, ITEMS, STRIDE, tiny_model

GPU = torch.cuda.is_available()
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
DEVICE = CUDA if GPU else CPU
MODEL = tiny_model()
SHAPE = EncoderConfig(width=64, layers=2, heads=4, kv_heads=2, inner=128, dropout=0, residual_dropout=0)
SLOTS = 9

needs_gpu = pytest.mark.skipif(not GPU, reason="this machine has no CUDA device")


def filled(shape: CacheSpec, slots: int, device: torch.device) -> CachePool:
    """A cache as earlier calls would have left it, the same each time."""
    tier = CachePool(shape, slots * shape.bytes, device)
    generator = torch.Generator().manual_seed(1)
    for layer in (*tier.keys, *tier.values):
        layer.copy_(torch.randn(layer.shape, generator=generator))
    return tier


@settings(max_examples=10, deadline=None)
@given(call=placed(capacity=80, slots=SLOTS), shared=st.sampled_from([1, 2, 3]), fill=st.integers(0, 3))
def test_the_kernel_attends_to_the_own_slot_up_to_the_own_position(call: BatchLayout, shared: int, fill: int) -> None:
    torch.manual_seed(0)
    places = SLOTS * call.capacity
    keys, values = (torch.randn(places, KV_HEADS, WIDTH, device=DEVICE) for _ in range(2))
    query = torch.randn(shared * KV_HEADS, int(call.new.sum()), WIDTH, device=DEVICE)
    tiles = np.pad(scheduler.tiles(call, tokens_of(shared, 1)), ((0, 0), (0, fill)))
    found = InPlace(torch.from_numpy(tiles).to(DEVICE))(query, keys, values, WIDTH**-0.5)
    assert torch.allclose(found, one_by_one(query, keys, values, call), atol=1e-5)


@settings(max_examples=6, deadline=None)
@given(call=placed(slots=SLOTS), fill=st.integers(0, 20))
def test_a_call_that_is_filled_up_is_computed_in_place_as_it_is_by_gathering(call: BatchLayout, fill: int) -> None:
    encoder = MODEL.encoder.eval()
    shape = CacheSpec.of(encoder.body.config, call.capacity, torch.float32)
    gathered, read = filled(shape, SLOTS, CPU), filled(shape, SLOTS, DEVICE)
    tokens = torch.randn(len(call.positions), encoder.width)
    full = torch.cat([tokens, torch.full((fill, encoder.width), 7.0)]).to(DEVICE)
    with torch.inference_mode():
        want = GatherForward(encoder.cpu(), gathered)(tokens, call).states
        plan = torch.from_numpy(plan_of(call, len(full), encoder, read)).to(DEVICE)
        found = in_place(encoder.to(DEVICE), read, full, plan).cpu()
    assert torch.allclose(found[: len(tokens)], want, atol=1e-5)
    for one, other in zip((*read.keys, *read.values), (*gathered.keys, *gathered.values), strict=True):
        assert torch.allclose(one[: read.dummy_slot].cpu(), other[: read.dummy_slot], atol=1e-5)


def test_a_cpu_gathers() -> None:
    assert isinstance(forward_of(MODEL.encoder, filled(CacheSpec(1, 1, 16, 4, torch.float32), 1, CPU)), GatherForward)


@needs_gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_on_a_gpu_the_cache_changes_no_answer(dtype: str, tmp_path: Path) -> None:
    """Evictions, a tier in the host's memory, erasures, calls of most recorded sizes and above."""
    model = random_model(SHAPE, [Item(f"i{number}") for number in range(ITEMS)], ("cart", "view"), CAPACITY)
    catalog = Catalog(model.items, model.vectors, model.features, model.alike, TextEncoder("none", tmp_path))
    user = CacheSpec.of(model.encoder.body.config, CAPACITY, getattr(torch, dtype)).bytes
    limits = Limits(STRIDE, 4_096, 400 * user, kv_host_bytes=100 * user, dtype=dtype)
    engine = Engine(model, catalog, limits, CUDA)
    draw, held, sizes = np.random.default_rng(0), dict[str, Window](), set[int]()
    for number in range(40):
        users = [f"u{user}" for user in draw.choice(600, size=draw.integers(1, 400), replace=False).tolist()]
        for name in users:
            event = Event(name, "view", 1_000.0 + number, f"i{draw.integers(ITEMS)}")
            held[name] = append(
                held.get(name), event, offset=number, arrived=event.timestamp, capacity=CAPACITY, stride=STRIDE
            )
        asked = [held[name] for name in users]
        engine.forget(f"u{draw.integers(600)}")
        want, step = engine.full(asked), engine.step(asked)
        sizes.add(step.work.appended + step.work.prefilled + step.work.filled)
        got = engine.states(asked)
        assert F.cosine_similarity(got, want).min() >= (1 - 1e-6 if dtype == "float32" else 0.999)
    assert engine.incremental.cache.evictions
    assert {*SIZES[-3:]} <= sizes


@needs_gpu
@pytest.mark.parametrize("tokens", [1, SIZES[0], SIZES[0] + 1, SIZES[-1] - 1, SIZES[-1], SIZES[-1] + 1])
def test_a_recorded_call_is_the_one_that_is_computed_at_once(tokens: int) -> None:
    encoder = UserEncoder(SHAPE, new_body(SHAPE), items=1, item_dim=1, types=1).eval().to(CUDA)
    encoder.body.to(torch.bfloat16)
    shape = CacheSpec.of(encoder.body.config, CAPACITY, torch.bfloat16)
    ours, theirs = (filled(shape, 2 * SIZES[-1], CUDA) for _ in range(2))
    every, one = np.arange(tokens), np.ones(tokens, np.int64)
    call = BatchLayout(every, every % CAPACITY, every % CAPACITY + one, CAPACITY)
    vectors = torch.randn(tokens, encoder.width, device=CUDA)
    with torch.inference_mode():
        found = GraphForward(encoder, ours)(vectors, call).states
        want = in_place(encoder, theirs, vectors, torch.from_numpy(plan_of(call, tokens, encoder, theirs)).to(CUDA))
    assert F.cosine_similarity(found, want).min() >= 0.999
