"""The settings of a training: its goal and the weights of event types, what of a decoder is trained, sizes and rates.

What is trained of a pre-trained decoder is all of it, adapters beside its matrices (LoRA) or nothing. LoRA: Hu et al.,
"LoRA: Low-Rank Adaptation of Large Language Models", 2021, https://arxiv.org/abs/2106.09685.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from typing import Any, Literal, NamedTuple

from msgspec import Struct

from stream_rec.errors import UserError
from stream_rec.evaluation.splits import Protocol
from stream_rec.models.user_encoder import EncoderConfig

GOAL = "purchase"
"""Where a log has it and nobody says another."""


Tune = Literal["full", "lora", "frozen"]
LORA_RANK = 16
BACKBONE_RATE = {"full": 0.1, "lora": 0.5}
"""Learning rate of what is trained in a pre-trained body, as a share of the rest's: it is to adapt, not to forget."""
TUNE_ABOUT: dict[Tune, str] = {
    "full": "the whole body",
    "lora": f"LoRA adapters of rank {LORA_RANK} beside all matrices of the body, since merged into them",
    "frozen": "nothing of the body",
}
PRIVATE_RATE = 6e-3
"""Highest learning rate of a private training, whose steps are few and large."""
CLIP = 1.0
"""Norm of a user's gradient, at most, in a private training."""
LONG = 300_000
"""Events of a long log."""
CONTINUED_RATE = 1e-3
"""Highest learning rate of a model that is trained further."""


def goal_of(given: str | None, event_types: Collection[str]) -> str | None:
    """The goal among a log's `event_types`; None for none. Raises `UserError` for one that the log can't teach."""
    if given is None:
        return GOAL if GOAL in event_types and len(event_types) > 1 else None
    if given not in event_types:
        raise UserError(f"--goal {given}: the log's event types are {', '.join(sorted(event_types))}")
    if len(event_types) == 1:
        raise UserError(f"--goal {given}: every event of the log is one, which tells nothing")
    return given


def parse_weights(text: str) -> dict[str, float]:
    """The value of `--weights`, type by type; of nothing, nothing. Raises `UserError`.

    >>> parse_weights("view=1, purchase=4")
    {'view': 1.0, 'purchase': 4.0}
    """
    weights: dict[str, float] = {}
    for part in text.split(",") if text.strip() else ():
        name, _, number = (word.strip() for word in part.rpartition("="))
        try:
            weight = float(number)
        except ValueError:
            weight = -1.0
        if not (name and isfinite(weight) and weight >= 0):
            raise UserError(f"--weights: {part.strip()!r} is not of the form type=number, as in view=1,purchase=4")
        if name in weights:
            raise UserError(f"--weights: {name} is given twice")
        weights[name] = weight
    return weights


def weights_of(given: Mapping[str, float], event_types: Collection[str]) -> list[float]:
    """The weight of each of a log's `event_types`, 1 where none is `given`. Raises `UserError`."""
    for name in given:
        if name not in event_types:
            raise UserError(f"--weights {name}: the log's event types are {', '.join(sorted(event_types))}")
    weights = [given.get(name, 1.0) for name in event_types]
    if not any(weights):
        raise UserError("--weights: nothing counts; give some event type more than 0")
    return weights


@contextmanager
def tuning(body: Any, how: Tune) -> Iterator[None]:
    """Inside, only what `how` says of `body` takes gradients; after it, `body` is its own kind again."""
    if how == "full":
        yield
        return
    body.requires_grad_(False)
    if how == "frozen":
        yield
        return
    from peft import LoraConfig, TaskType  # takes a second: only where it is used
    from peft.tuners.lora import LoraModel

    chosen = LoraConfig(
        r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules="all-linear", task_type=TaskType.FEATURE_EXTRACTION
    )
    adapted = LoraModel(body, chosen, "default")
    yield
    adapted.merge_and_unload()


class Size(NamedTuple):
    """What follows from how many events a log has."""

    epochs: int
    dropout: float
    batch_tokens: int

    @classmethod
    def of(cls, events: int) -> "Size":
        """A long log tells more of each item: it needs less dropout, and larger steps take less time."""
        return cls(12, 0.3, 1_000) if events < LONG else cls(20, 0.2, 6_400)

    @property
    def epochs_continued(self) -> int:
        """Of a model that is trained further: a third."""
        return self.epochs // 3


class Private(Struct, frozen=True):
    """What a training with differential privacy promises at most, and how."""

    epsilon: float
    delta: float | None = None
    """None: a tenth of 1 / users."""
    clip: float = CLIP
    """Norm of a user's gradient, at most."""


class TrainConfig(Struct, frozen=True):
    """The defaults are the recipe's."""

    encoder: EncoderConfig = EncoderConfig()
    tune: Tune = "full"
    """What of the body is trained."""
    capacity: int = 64
    stride: int = 32
    epochs: int = 12
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    batch_tokens: int = 1_000
    """Padded tokens of a step, not events, where an event is several."""
    negatives: int = 1_024
    """Shared by a batch; a catalogue of at most four times as many items is scored whole."""
    warmup: float = 0.1
    """Share of all steps over which the learning rate rises."""
    validation: float = 0.1
    """Share of the events, the last ones, that fit the blend and give the figures."""
    refit: bool = True
    """Train once more on the whole log, validation included, with the weights found."""
    protocol: Protocol = "prequential"
    """What the blend's weights and the figures are for; and with leave-one-out each user's last event is never seen."""
    has_time: bool = True
    """Whether the log has times; without them nothing decays, and neither gaps nor recency count."""
    goal: str | None = None
    """The event type that interest is the probability of; None: purchase, where the log has it among others."""
    weights: dict[str, float] = {}
    """How much an event of a type counts in the decoder's loss, 1 where nothing is said."""
    seed: int = 0
    private: Private | None = None
    """None: trained without differential privacy."""
    continues: str = ""
    """Version of the model that is trained further; empty: a new one."""
