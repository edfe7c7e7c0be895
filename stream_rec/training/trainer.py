"""Fits an encoder: AdamW with a short warm-up and linear decay, the last epoch kept.

Every epoch ends with a checkpoint, and every epoch's random numbers depend on the seed and its own number alone: a run
that was interrupted and goes on gives the very model of one that wasn't.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from stream_rec.data import dataset
from stream_rec.data.dataset import Slice
from stream_rec.errors import UserError
from stream_rec.features.tokens import Numbers
from stream_rec.models.model_store import Privacy
from stream_rec.models.user_encoder import ItemInputs, UserEncoder, new_body
from stream_rec.runtime.progress import Progress
from stream_rec.serving.device import upload
from stream_rec.serving.incremental import TokenEmbedding
from stream_rec.training import checkpoint, goal_head
from stream_rec.training.checkpoint import Epoch
from stream_rec.training.config import BACKBONE_RATE, TrainConfig, tuning, weights_of
from stream_rec.training.lbfgs import minimise
from stream_rec.training.prepare import Prepared

TYPE_RIDGE = 1e-4
SMALLEST = 1e-6
"""What a step's targets count at least: those of some steps may all weigh nothing."""

Watch = Callable[[UserEncoder], dict[str, float] | None]


class Diverged(UserError):  # noqa: N818 - what happened
    """The weights are no numbers any more."""


class Fitted(NamedTuple):
    encoder: UserEncoder
    epochs: list[Epoch]
    privacy: Privacy | None = None


def nothing(_encoder: UserEncoder) -> None:
    """Watches nothing."""


def fit(
    prepared: Prepared,
    config: TrainConfig,
    known: NDArray[np.bool_],
    stage: checkpoint.Stage,
    progress: Progress,
    watch: Watch = nothing,
) -> Fitted:
    """An encoder trained on the `known` (events,) events, for all epochs, going on from a checkpoint.

    `watch` says after each epoch how good the encoder is; it must draw no random numbers.
    """
    torch.manual_seed(config.seed)
    encoder = new_encoder(prepared, config)
    with placed(encoder, prepared) as there, tuning(encoder.body, config.tune):
        epochs = _epochs(encoder, there, config, known, stage, progress, watch)
    fit_heads(encoder, prepared, config, known)
    return Fitted(encoder, epochs)


@contextmanager
def placed(encoder: UserEncoder, prepared: Prepared) -> Iterator[Prepared]:
    """Has the encoder, and the item vectors that it reads, on the device that computes; then it is where it was."""
    before = encoder.log_scale.device
    encoder.to(prepared.device)
    yield prepared._replace(vectors=prepared.vectors.to(prepared.device))
    encoder.to(before)


def new_encoder(prepared: Prepared, config: TrainConfig) -> UserEncoder:
    """The encoder that training begins with: a trained model's, or one that has learnt what its body brings."""
    if prepared.start is not None:
        return copy.deepcopy(prepared.start)
    shape, base = config.encoder, prepared.base
    return UserEncoder(
        shape,
        new_body(shape) if base is None else copy.deepcopy(base.body),
        items=len(prepared.vectors),
        item_dim=prepared.features.dim,
        types=len(prepared.event_types) + 1,
        table=base.table if base is not None and shape.words else None,
        goal=config.goal is not None,
    )


def _epochs(
    encoder: UserEncoder,
    prepared: Prepared,
    config: TrainConfig,
    known: NDArray[np.bool_],
    stage: checkpoint.Stage,
    progress: Progress,
    watch: Watch,
) -> list[Epoch]:
    """Trains what takes gradients, a step a batch, from the last checkpoint on."""
    optimiser = torch.optim.AdamW(groups(encoder, config), betas=(0.9, 0.98))
    seen = upload(np.unique(prepared.data.rows[known]), prepared.device)
    whole = len(seen) <= 4 * config.negatives
    weights = torch.tensor([1.0, *weights_of(config.weights, prepared.event_types)], device=prepared.device)
    done = stage.restore(encoder, optimiser)
    for epoch in range(len(done), config.epochs):
        torch.manual_seed(config.seed * 10_007 + epoch)
        rng = np.random.default_rng((config.seed, epoch))
        windows = dataset.crops(prepared.data, config.capacity, known, rng)
        counts = dataset.sizes(prepared.data, windows, prepared.reader)
        batches = dataset.batches(windows, counts, config.batch_tokens, rng)
        steps = config.epochs * len(batches)
        encoder.train()
        losses = torch.zeros((), device=prepared.device)
        for number, chosen in enumerate(batches):
            step = epoch * len(batches) + number
            rate = min(1.0, (step + 1) / max(1.0, config.warmup * steps)) * max(0.05, 1 - step / steps)
            for group in optimiser.param_groups:
                group["lr"] = group["highest"] * rate
            negatives = seen if whole else seen[torch.randint(0, len(seen), (config.negatives,)).to(prepared.device)]
            value = loss(encoder, prepared, chosen, negatives, weights)
            optimiser.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
            optimiser.step()
            losses += value.detach()  # asked for its number, a GPU would be waited for
            progress(f"{stage.title}, epoch {epoch + 1} of {config.epochs}", step + 1, steps)
        if not all(weight.isfinite().all() for weight in encoder.parameters()):
            raise Diverged("the training diverged: lower --learning-rate and begin anew with --overwrite")
        done.append(Epoch(losses.item() / len(batches), watch(encoder)))
        stage.keep(encoder, optimiser, done)
    return done


def groups(encoder: UserEncoder, config: TrainConfig) -> list[dict[str, Any]]:
    """What takes gradients, with its weight decay (matrices alone) and highest learning rate."""
    chosen: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, weight in checkpoint.trained(encoder).items():
        pretrained = config.encoder.base is not None and name.startswith("body.")
        chosen.setdefault((weight.ndim >= 2, pretrained), []).append(weight)
    return [
        {
            "params": weights,
            "weight_decay": config.weight_decay if matrices else 0.0,
            "highest": config.learning_rate * (BACKBONE_RATE[config.tune] if pretrained else 1.0),
        }
        for (matrices, pretrained), weights in chosen.items()
    ]


def loss(
    encoder: UserEncoder, prepared: Prepared, chosen: Sequence[Slice], negatives: Tensor, weights: Tensor
) -> Tensor:
    """Cross-entropy of the next item among `negatives` and the batch's targets, by the `weights` (types,) of these."""
    states, places = states_of(encoder, prepared, chosen)
    targets = upload(prepared.data.rows[places], prepared.device)
    candidates, place = torch.unique(torch.cat([targets, negatives]), return_inverse=True)
    logits = encoder.score(states, encoder.items(prepared.vectors[candidates], encoder.residual(candidates)))
    losses = F.cross_entropy(logits, place[: len(targets)], reduction="none")
    counts = weights[upload(prepared.data.types[places], prepared.device)]
    return (losses * counts).sum() / counts.sum().clamp(min=SMALLEST)


def fit_heads(encoder: UserEncoder, prepared: Prepared, config: TrainConfig, known: NDArray[np.bool_]) -> None:
    """Fits what reads the finished encoder's states: the head for the next event's type, and that for the interest."""
    encoder.eval()
    windows = dataset.slices(prepared.data, config.capacity, config.stride, known)
    with torch.no_grad():
        with placed(encoder, prepared) as there:
            read = [states_of(encoder, there, chosen) for chosen in plan(prepared, windows, config)]
        outputs = outputs_of(encoder, prepared.vectors)
    states, places = torch.cat([states for states, _ in read]).cpu(), np.concatenate([places for _, places in read])
    users = users_of(encoder, prepared, states, places)
    fit_types(encoder, users, torch.from_numpy(prepared.data.types[places]))
    if config.goal is not None:
        goal_head.fit(encoder, goal_head.contacts(prepared, config.goal, users, places), outputs)


def users_of(encoder: UserEncoder, prepared: Prepared, states: Tensor, places: Numbers) -> Tensor:
    """Users before the events at `places` (n,), none of them a user's first, by their `states` (n, width)."""
    return encoder.users(states, torch.from_numpy(prepared.data.types[places - 1]))


def fit_types(encoder: UserEncoder, users: Tensor, types: Tensor) -> None:
    """Fits the head for the next event's type: a softmax regression of `types` (n,) on `users` (n, width + types)."""
    inputs = torch.cat([users, torch.ones(len(users), 1)], dim=1)

    def loss_of_types(weights: Tensor) -> Tensor:
        return F.cross_entropy(inputs @ weights.T, types) + TYPE_RIDGE * weights[:, : encoder.width].square().sum()

    found = minimise(loss_of_types, torch.zeros(encoder.next_type.out_features, inputs.shape[1]))
    with torch.no_grad():
        encoder.next_type.weight.copy_(found[:, :-1])
        encoder.next_type.bias.copy_(found[:, -1])


def states_of(encoder: UserEncoder, prepared: Prepared, chosen: Sequence[Slice]) -> tuple[Tensor, Numbers]:
    """User states (targets, width) before each target of a batch, and the targets' places (targets,)."""
    made = dataset.batch(prepared.data, chosen, prepared.reader)
    wanted = made.targets >= 0
    tokens = token_embedding_of(encoder, prepared.vectors)(upload(made.numbers, prepared.device))
    states: Tensor = encoder(tokens).flatten(0, 1)[upload(np.flatnonzero(wanted), prepared.device)]
    return states, made.targets[wanted]


def token_embedding_of(encoder: UserEncoder, vectors: Tensor) -> TokenEmbedding:
    """The tokens' vectors, of which an item's are as the item side is now; `vectors` (rows, dim)."""
    inputs = encoder.inputs
    if not isinstance(inputs, ItemInputs):
        return inputs

    def look(numbers: Tensor) -> Tensor:
        rows, types, gaps = numbers
        distinct, where = torch.unique(rows, return_inverse=True)
        items = encoder.items(vectors[distinct], encoder.residual(distinct))
        tokens: Tensor = inputs(inputs.norm(items)[where], types, gaps)
        return tokens

    return look


def outputs_of(encoder: UserEncoder, vectors: Tensor) -> Tensor:
    """The output vectors of the items whose `vectors` (rows, dim) those are, (rows, width)."""
    return encoder.outputs(encoder.items(vectors, encoder.residual.weight))


def plan(prepared: Prepared, windows: Sequence[Slice], config: TrainConfig) -> list[list[Slice]]:
    """Batches to compute without gradients."""
    counts = dataset.sizes(prepared.data, windows, prepared.reader)
    return dataset.batches(windows, counts, 4 * config.batch_tokens)
