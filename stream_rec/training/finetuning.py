"""What of a decoder is trained: all of it, adapters beside its matrices (LoRA), or nothing.

LoRA: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, https://arxiv.org/abs/2106.09685.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

Tune = Literal["full", "lora", "frozen"]

RANK = 16
RATE = {"full": 0.1, "lora": 0.5}
"""Learning rate of what is trained in a pre-trained body, as a share of the rest's: it is to adapt, not to forget."""
ABOUT: dict[Tune, str] = {
    "full": "the whole body",
    "lora": f"LoRA adapters of rank {RANK} beside all matrices of the body, since merged into them",
    "frozen": "nothing of the body",
}


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

    chosen = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type=TaskType.FEATURE_EXTRACTION)
    adapted = LoraModel(body, chosen, "default")
    yield
    adapted.merge_and_unload()
