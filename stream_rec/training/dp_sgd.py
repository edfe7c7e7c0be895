"""Fits an encoder with differential privacy: DP-SGD, whose unit is a user with all that the user did.

A step draws each user by a coin of its own (Poisson sampling), and of each one drawn a window at random. The gradient
of a user's loss is a function of the weights and of that window alone; it is clipped, and noise is added to the sum. So
the weights tell little of what one user did, and of whether the user is there at all.

- An item is what its text says: a learned residual an item would be as many weights as the log has clicks, and noise.
- A target competes with items drawn from the whole catalogue, not with what others did.
- The head for the next event's type learns along, from states that it doesn't change.
- Coins and noise come from the operating system, not from the seed: who knew the noise could take it back.

Abadi et al., "Deep Learning with Differential Privacy", 2016; a user as the unit: McMahan et al., "Learning
Differentially Private Recurrent Language Models", 2018; the accountant: Mironov, Talwar and Zhang, "Rényi Differential
Privacy of the Sampled Gaussian Mechanism", 2019. Clipping, noise and accounting are opacus'.
"""

import secrets
import warnings
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Self

import numpy as np
import polars as pl
import torch
from msgspec import structs
from numpy.typing import NDArray
from opacus.accountants import RDPAccountant
from opacus.accountants.utils import get_noise_multiplier
from opacus.optimizers import DPOptimizer
from opacus.utils.uniform_sampler import UniformWithReplacementSampler
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn import functional as F  # noqa: N812 - its name everywhere
from torch.nn.attention import SDPBackend, sdpa_kernel

from stream_rec.data import dataset
from stream_rec.data.dataset import Dataset, Slice
from stream_rec.errors import UserError
from stream_rec.messages import Item
from stream_rec.models.model_store import Privacy
from stream_rec.models.user_encoder import ItemInputs, UserEncoder
from stream_rec.runtime.progress import Progress
from stream_rec.training import checkpoint, trainer
from stream_rec.training.checkpoint import Epoch
from stream_rec.training.config import Private, TrainConfig, tuning, weights_of
from stream_rec.training.prepare import Prepared
from stream_rec.training.trainer import Diverged, Fitted, Watch

STEPS = 20
"""Of an epoch: in each of them a user is with a chance of 1 / `STEPS`."""
NEGATIVES = 512
ORDERS = (*(1 + quarter / 4 for quarter in range(1, 8)), *range(3, 65), 80, 96, 128, 192, 256, 512)
"""Of the Rényi divergences among which the accountant finds the tightest bound."""
AT_ONCE = 64
"""Users whose gradients are in memory at a time, each as large as the weights."""

Weights = dict[str, Tensor]


class Told(NamedTuple):
    """What some users did, a window each, padded on the right."""

    numbers: Tensor
    """Of the tokens, (users, columns, length)."""
    rows: Tensor
    """Of the targets behind the tokens, (users, length)."""
    last: Tensor
    """Event types before the targets, likewise."""
    types: Tensor
    """Of the targets, likewise; 0 where there is none."""
    counts: Tensor
    """How much the targets count, likewise; 0 where there is none."""

    @classmethod
    def of(cls, prepared: Prepared, chosen: Sequence[Slice], weights: Tensor) -> Self:
        """`weights` (types,) are those of the event types."""
        data, made = prepared.data, dataset.batch(prepared.data, chosen, prepared.reader)
        wanted, places = made.targets >= 0, made.targets.clip(min=0)
        rows, types, last = (
            torch.from_numpy(np.where(wanted, found, 0))
            for found in (data.rows[places], data.types[places], data.types[places - 1])
        )
        numbers, counts = torch.from_numpy(made.numbers).transpose(0, 1), weights[types] * torch.from_numpy(wanted)
        return cls(*(part.to(prepared.device) for part in (numbers, rows, last, types, counts)))


class UserLoss(nn.Module):
    """The loss of one user, as a module whose weights can be given."""

    def __init__(self, encoder: UserEncoder, vectors: Tensor) -> None:
        """`vectors` (catalogue rows, dim) are the items'."""
        super().__init__()
        self.encoder = encoder
        self._vectors = vectors

    def forward(self, told: Told, negatives: Tensor) -> Tensor:
        """Cross-entropy of the next item among the `negatives` (n,), and of its type; `told` is without its users."""
        encoder, rows = self.encoder, told.rows
        states = encoder(self._look(told.numbers)[None])[0]
        units = F.normalize(states, dim=-1)
        own = (units * encoder.outputs(self._items(rows))).sum(dim=-1, keepdim=True)
        others = units @ encoder.outputs(self._items(negatives)).T
        others = others.masked_fill(negatives == rows[:, None], -torch.inf)
        items = torch.cat([own, others], dim=1).logsumexp(dim=1) - own[:, 0]
        heard = encoder.type_logits(encoder.users(states.detach(), told.last))
        types = F.cross_entropy(heard, told.types, reduction="none")
        loss: Tensor = ((items + types) * told.counts).sum() / told.counts.sum().clamp(min=trainer.SMALLEST)
        return loss

    def _items(self, rows: Tensor) -> Tensor:
        return self.encoder.items(self._vectors[rows], self.encoder.residual(rows))

    def _look(self, numbers: Tensor) -> Tensor:
        inputs = self.encoder.inputs
        if not isinstance(inputs, ItemInputs):
            return inputs(numbers)  # type: ignore[no-any-return]
        rows, types, gaps = numbers
        return inputs(inputs.norm(self._items(rows)), types, gaps)  # type: ignore[no-any-return]


def fit_privately(
    prepared: Prepared,
    config: TrainConfig,
    known: NDArray[np.bool_],
    stage: checkpoint.Stage,
    progress: Progress,
    watch: Watch = trainer.nothing,
) -> Fitted:
    """As `trainer.fit`, for a configuration that is private."""
    assert config.private is not None  # noqa: S101 - a caller's mistake
    torch.manual_seed(config.seed)
    encoder = trainer.new_encoder(prepared, config).eval()
    encoder.residual.requires_grad_(False)
    users = users_of(prepared.data, known)
    plan = planned(config.private, len(users.begins), config.epochs)
    mapped = sdpa_kernel(SDPBackend.MATH)  # no other attention can be mapped over users
    with trainer.placed(encoder, prepared) as there, tuning(encoder.body, config.tune), mapped:
        epochs, epsilon = _epochs(encoder, there, config, users, plan, stage, progress, watch)
    return Fitted(encoder, epochs, structs.replace(plan, epsilon=epsilon))


def adapted(config: TrainConfig) -> TrainConfig:
    """What a private training settles: no dropout beside the noise, and neither a goal nor a second training."""
    encoder = structs.replace(config.encoder, dropout=0.0, residual_dropout=0.0, item_dropout=0.0)
    return structs.replace(config, encoder=encoder, goal=None, refit=False)


def catalogued(frame: pl.DataFrame, items: Sequence[Item]) -> pl.DataFrame:
    """The events of `frame` whose items are in the catalogue: what only the log names would tell that a user was there.

    Raises `UserError` where there is none.
    """
    found = frame.filter(pl.col("item").is_in([item.item_id for item in items]))
    if found.is_empty():
        raise UserError("--private-epsilon takes the items from the catalogue alone, and it holds none of the log's")
    return found


class Users(NamedTuple):
    """Those who have done two things or more, as arrays (users,)."""

    begins: NDArray[np.int64]
    """Where their events begin."""
    lengths: NDArray[np.int64]
    """How many of these are known."""


def users_of(data: Dataset, known: NDArray[np.bool_]) -> Users:
    """What is `known` (events,) of a user are the first events."""
    lengths = np.add.reduceat(known.astype(np.int64), data.begins[:-1])
    enough = lengths > 1
    return Users(data.begins[:-1][enough], lengths[enough])


def planned(private: Private, users: int, epochs: int) -> Privacy:
    """The least noise that keeps the promise."""
    delta = 0.1 / users if private.delta is None else private.delta
    rate, steps = 1 / STEPS, STEPS * epochs
    with warnings.catch_warnings(action="ignore"):  # of orders that are too few for the noise that it tries first
        noise = get_noise_multiplier(
            target_epsilon=private.epsilon,
            target_delta=delta,
            sample_rate=rate,
            steps=steps,
            accountant="rdp",
            alphas=ORDERS,
        )
    return Privacy(private.epsilon, delta, private.clip, noise, rate, steps, users)


def _epochs(
    encoder: UserEncoder,
    prepared: Prepared,
    config: TrainConfig,
    users: Users,
    plan: Privacy,
    stage: checkpoint.Stage,
    progress: Progress,
    watch: Watch,
) -> tuple[list[Epoch], float]:
    """Trains what takes gradients, from the last checkpoint on; returns what was spent too, as epsilon."""
    chance, noise = (torch.Generator(where).manual_seed(secrets.randbits(63)) for where in ("cpu", prepared.device))
    loss = UserLoss(encoder, prepared.vectors)
    inner = torch.optim.AdamW(trainer.groups(encoder, config), betas=(0.9, 0.98))
    optimiser = private_optimiser(inner, plan, noise)
    done = stage.restore(encoder, inner)
    accountant = RDPAccountant()
    accountant.history = [(plan.noise, plan.rate, STEPS * len(done))] if done else []
    optimiser.attach_step_hook(accountant.get_optimizer_hook_fn(plan.rate))
    weights = torch.tensor([1.0, *weights_of(config.weights, prepared.event_types)])
    draws = UniformWithReplacementSampler(num_samples=plan.users, sample_rate=plan.rate, generator=chance, steps=STEPS)
    for epoch in range(len(done), config.epochs):
        torch.manual_seed(config.seed * 10_007 + epoch)
        losses, count = 0.0, 0
        for number, drawn in enumerate(draws, epoch * STEPS):
            at = min(1.0, (number + 1) / max(1.0, config.warmup * plan.steps)) * max(0.05, 1 - number / plan.steps)
            for group in inner.param_groups:
                group["lr"] = group["highest"] * at
            windows = drawn_windows(users, drawn, config.capacity, chance)
            parts = in_parts(windows, dataset.sizes(prepared.data, windows, prepared.reader), config.batch_tokens)
            negatives = (1 + torch.randperm(len(prepared.vectors) - 1)[:NEGATIVES]).to(prepared.device)
            found = step(optimiser, loss, (Told.of(prepared, part, weights) for part in parts), negatives)
            losses, count = losses + found, count + len(drawn)
            progress(f"{stage.title} privately, epoch {epoch + 1} of {config.epochs}", number + 1, plan.steps)
        if not all(weight.isfinite().all() for weight in encoder.parameters()):
            raise Diverged("the training diverged: lower --learning-rate and begin anew with --overwrite")
        done.append(Epoch(losses / max(1, count), watch(encoder)))
        stage.keep(encoder, inner, done)
    return done, float(accountant.get_epsilon(plan.delta, alphas=ORDERS))


def private_optimiser(inner: torch.optim.Optimizer, plan: Privacy, noise: torch.Generator) -> DPOptimizer:
    """`inner`, whose steps are clipped and noisy."""
    return DPOptimizer(
        inner,
        noise_multiplier=plan.noise,
        max_grad_norm=plan.clip,
        expected_batch_size=plan.rate * plan.users,
        generator=noise,
        secure_mode=True,  # of several numbers: the bits of a single one tell what it was added to
    )


def step(optimiser: DPOptimizer, loss: UserLoss, parts: Iterable[Told], negatives: Tensor) -> float:
    """One step with the users of all `parts`, or with none; returns the sum of their losses."""
    trained = checkpoint.trained(loss)
    total = 0.0
    for told in parts:
        gradients, losses = gradients_of(loss, told, negatives)
        total += losses.sum().item()
        for name, weight in trained.items():
            weight.grad_sample = gradients[name]  # type: ignore[attr-defined]
        optimiser.signal_skip_step()
        optimiser.step()  # clips and adds up, no more
        optimiser.zero_grad()
    for weight in trained.values():
        weight.grad_sample = weight.new_zeros(0, *weight.shape)  # type: ignore[attr-defined]
    optimiser.step()
    optimiser.zero_grad()
    return total


def gradients_of(loss: UserLoss, told: Told, negatives: Tensor) -> tuple[Weights, Tensor]:
    """Gradients of each user's own loss, (users, ...) by name, and the losses, (users,)."""
    weights = {name: weight.detach() for name, weight in checkpoint.trained(loss).items()}

    def of_one(weights: Weights, told: Told) -> Tensor:
        found: Tensor = functional_call(loss, weights, (told, negatives))
        return found

    found: tuple[Weights, Tensor] = vmap(grad_and_value(of_one), in_dims=(None, 0))(weights, told)
    return found


def drawn_windows(users: Users, drawn: Sequence[int], capacity: int, chance: torch.Generator) -> list[Slice]:
    """A window of each user `drawn`, with all events behind its first one as targets; of a long history any one."""
    found = []
    for begin, length in zip(users.begins[drawn].tolist(), users.lengths[drawn].tolist(), strict=True):
        spare = max(0, length - capacity - 1)
        start = int(torch.randint(spare + 1, (), generator=chance))
        found.append(Slice(begin + start, length - spare, 1))
    return found


def in_parts(windows: Sequence[Slice], counts: NDArray[np.int64], tokens: int) -> list[list[Slice]]:
    """Those of like size together, as many as fit; `counts` (windows,) are their tokens."""
    batches = dataset.batches(windows, counts, tokens)
    return [batch[at : at + AT_ONCE] for batch in batches for at in range(0, len(batch), AT_ONCE)]
