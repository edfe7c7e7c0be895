"""Mutated model folders through loading and one step."""

import functools
import json
import math
import tempfile
from pathlib import Path
from random import Random

from safetensors.numpy import load, save

from stream_rec.messages import Recommendation, encode, read_recommendation
from stream_rec.models import model_store
from stream_rec.serving.engine import Engine, Limits
from tests.fuzz import mutate
from tests.fuzz.lane import Attempt
from tests.tiny import STRIDE, tiny_model, window

WINDOWS = [window("u", 3, ["i1", "i2", "nothing"]), window("v", 12, ["i5"] * 8, start=4)]


def prepare() -> Attempt:
    home = Path(tempfile.mkdtemp(prefix="stream-rec-fuzz-model-"))
    model_store.save(tiny_model(), home)
    whole = {path.name: path.read_bytes() for path in home.iterdir()}
    return functools.partial(_attempt, whole)


def _attempt(whole: dict[str, bytes], draw: Random, scratch: Path) -> None:
    changed = draw.choices(sorted(whole), k=draw.choice((1, 1, 1, 2)))
    for name, content in whole.items():
        (scratch / name).write_bytes(_mutated(draw, name, content) if name in changed else content)
    engine = Engine.load(scratch, scratch.parent, Limits(stride=STRIDE, kv_cache_bytes=1e7), "cpu")
    engine.probe()
    for answer in engine.step(WINDOWS).recommendations:
        check(answer)


def check(answer: Recommendation) -> None:
    """Raises `AssertionError` for an answer that no reader could use."""
    assert answer.items, "the answer lists nothing"
    assert all(map(math.isfinite, (number for one in answer.items for number in (one.score, one.probability))))
    read_recommendation(encode(answer))


def _mutated(draw: Random, name: str, content: bytes) -> bytes:
    if draw.random() < 0.2:
        return mutate.damaged(draw, content)
    if name.endswith(".safetensors"):
        arrays = load(content)
        for key in draw.choices(sorted(arrays), k=draw.choice((1, 1, 3))):
            if draw.random() < 0.1:
                arrays.pop(key, None)
            elif key in arrays:
                arrays[key] = mutate.array(draw, arrays[key])
        return save(arrays)
    if name.endswith(".jsonl"):
        lines = content.splitlines()
        at = draw.randrange(len(lines))
        lines[at] = mutate.message(draw, json.loads(lines[at]))
        return b"\n".join(lines) + b"\n"
    return mutate.message(draw, json.loads(content))
