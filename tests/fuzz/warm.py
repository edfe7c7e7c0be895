"""Imported once by the server that children are forked from: they find torch imported and the counters compiled."""

import tempfile
from pathlib import Path

import torch

from stream_rec.data import event_log
from stream_rec.models import model_store
from stream_rec.serving.engine import Engine, Limits
from tests.tiny import STRIDE, tiny_model, window

__all__ = ("event_log",)

torch.set_num_threads(1)  # a fork has no other threads
with tempfile.TemporaryDirectory() as name:
    model_store.save(tiny_model(), Path(name))
    Engine.load(Path(name), Path(name), Limits(stride=STRIDE), "cpu").step([window("u", 3, ["i1", "i2", "i3"])])
