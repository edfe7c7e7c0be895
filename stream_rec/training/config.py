"""What a person may choose about a training."""

from typing import NamedTuple

from msgspec import Struct

from stream_rec.evaluation.splits import Protocol
from stream_rec.models.user_encoder import EncoderConfig
from stream_rec.training.finetuning import Tune

PRIVATE_RATE = 6e-3
"""Highest learning rate of a private training, whose steps are few and large."""
CLIP = 1.0
"""Norm of a user's gradient, at most, in a private training."""
LONG = 300_000
"""Events of a long log."""
CONTINUED_RATE = 1e-3
"""Highest learning rate of a model that is trained further."""


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
