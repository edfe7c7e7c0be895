"""Where a training stands, at the end of each epoch, as safetensors: an interrupted training goes on from there."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import polars as pl
import torch
from msgspec import Struct
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from stream_rec.errors import UserError
from stream_rec.messages import Item

PREFIX = "checkpoint-"


class Epoch(Struct, frozen=True, omit_defaults=True):
    """What an epoch of a training came to."""

    loss: float
    """Cross-entropy among the negatives, mean over the epoch's steps."""
    held_out: dict[str, float] | None = None
    """Of the decoder alone after it, on some held-out predictions: `loss` among all items, `hr_at_10`, `ndcg_at_10`."""


def fingerprint(config: Struct, frame: pl.DataFrame, items: Sequence[Item]) -> str:
    """The same for the same settings, events and items: hexadecimal digits."""
    digest = hashlib.sha256(msgspec.json.encode(config))
    digest.update(msgspec.json.encode(items))
    digest.update(frame.hash_rows(seed=0).to_numpy().tobytes())
    return digest.hexdigest()[:16]


class Checkpoints(NamedTuple):
    """The checkpoints in a folder, of the training that `fingerprint` names."""

    folder: Path
    fingerprint: str

    def stage(self, name: str) -> "Stage":
        titles = {"fit": "training", "refit": "training on the whole log"}
        return Stage(self.folder / f"{PREFIX}{name}.safetensors", self.fingerprint, titles[name])

    def remove(self) -> None:
        """Deletes them: the training is over."""
        for path in self.folder.glob(f"{PREFIX}*.safetensors"):
            path.unlink()


class Stage(NamedTuple):
    """One run over all epochs."""

    path: Path
    fingerprint: str
    title: str

    def keep(self, model: nn.Module, optimiser: torch.optim.Optimizer, epochs: Sequence[Epoch]) -> None:
        """Writes the state after these epochs, in one move: a crash leaves the old file or the new one.

        Of the model, the weights that are trained: the others are what they were.
        """
        tensors = {f"model.{name}": weight.detach().contiguous() for name, weight in trained(model).items()}
        for number, state in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{number}.{name}": value.contiguous() for name, value in state.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        written = self.path.with_suffix(".part")
        told = msgspec.json.encode(epochs).decode()
        save_file(tensors, written, metadata={"fingerprint": self.fingerprint, "epochs": told})
        written.replace(self.path)

    def restore(self, model: nn.Module, optimiser: torch.optim.Optimizer) -> list[Epoch]:
        """Brings both to where they were kept; returns the epochs done, none without a checkpoint.

        Raises `UserError` for a checkpoint of other settings or data.
        """
        if not self.path.exists():
            return []
        try:
            with safe_open(self.path, "pt") as file:
                metadata = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except (OSError, SafetensorError) as error:
            raise UserError(f"{self.path} cannot be read ({error}): begin anew with --overwrite") from None
        if metadata["fingerprint"] != self.fingerprint:
            raise UserError(
                f"{self.path.parent} holds an unfinished training with other settings or data: "
                "choose another --out, or begin anew with --overwrite"
            )
        with torch.no_grad():
            for name, weight in trained(model).items():
                weight.copy_(tensors[f"model.{name}"])
        states: dict[int, dict[str, Any]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimiser."):
                _, number, field = name.split(".")
                states.setdefault(int(number), {})[field] = tensor
        optimiser.load_state_dict({**optimiser.state_dict(), "state": states})
        return msgspec.json.decode(metadata["epochs"], type=list[Epoch])


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that take gradients, by name."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
