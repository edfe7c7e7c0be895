"""The options of `stream-rec train`: whether they go together, and the settings of a training that follow from them."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from msgspec import structs

from stream_rec.config import Settings
from stream_rec.data.source import Period
from stream_rec.errors import UserError
from stream_rec.evaluation.splits import Protocol
from stream_rec.features.event_template import EventTemplate
from stream_rec.training.config import parse_weights
from stream_rec.window import stride_of

if TYPE_CHECKING:
    from stream_rec.models.model_store import Model
    from stream_rec.models.user_encoder import EncoderConfig
    from stream_rec.training.config import Private, Size, TrainConfig, Tune

HEAD = 32
"""Width of an attention head of a decoder from scratch."""
PRETRAINED_DROPOUT = 0.1
"""On item tokens."""


class TrainOptions(NamedTuple):
    """The options; None is what nobody said."""

    events: Path | None
    items: Path | None
    out: Path
    from_topic: str | None = None
    since: str | None = None
    until: str | None = None
    continues: Path | None = None
    columns: str = ""
    first: float = 1.0
    epochs: int | None = None
    width: int | None = None
    layers: int | None = None
    base: str | None = None
    tune: str | None = None
    read: str = "items"
    template: str = EventTemplate().template
    event_tokens: int = EventTemplate().limit
    learning_rate: float | None = None
    validation: float = 0.1
    refit: bool = True
    goal: str | None = None
    weights: str = ""
    protocol: Protocol = "prequential"
    seed: int = 0
    seeds: int | None = None
    trials: int | None = None
    private_epsilon: float | None = None
    private_delta: float | None = None
    private_clip: float | None = None
    threads: int | None = None
    overwrite: bool = False


def check(plan: TrainOptions) -> None:
    """Raises `UserError` for what doesn't go together, a number out of range, and a folder that is in use."""
    _check_source(plan)
    for name, value, low, high in (
        ("--first", plan.first, 0.01, 1.0),
        ("--validation", plan.validation, 0.01, 0.5),
        ("--epochs", plan.epochs, 1, 10_000),
        ("--width", plan.width, 16, 8_192),
        ("--layers", plan.layers, 1, 512),
        ("--learning-rate", plan.learning_rate, 1e-6, 1.0),
        ("--seeds", plan.seeds, 1, 1_000),
        ("--trials", plan.trials, 1, 10_000),
        ("--private-epsilon", plan.private_epsilon, 0.1, 20.0),
        ("--private-delta", plan.private_delta, 1e-12, 0.1),
        ("--private-clip", plan.private_clip, 1e-6, 1e6),
    ):
        if value is not None and not low <= value <= high:
            raise UserError(f"{name} is {value}: give {low:g} to {high:g}")
    if plan.continues is not None:
        _check_continued(plan)
    elif plan.base is None and (plan.tune or plan.read != "items"):
        raise UserError("--tune and --read words are for a pre-trained language model: name one with --base")
    if plan.base is not None and plan.width is not None:
        raise UserError("--width does not go with --base: a pre-trained language model has a width of its own")
    _check_private(plan)
    if _words(plan) != EventTemplate() and plan.read != "words":
        raise UserError("--template and --event-tokens are for events in words: give --read words too")
    parse_weights(plan.weights)
    if plan.width is not None and plan.width % HEAD:
        raise UserError(f"--width is {plan.width}: give a multiple of {HEAD}")
    if plan.seeds is not None and plan.trials is not None:
        raise UserError("--trials and --seeds don't go together: search first, then train the best with --seeds")
    if plan.trials is not None and find_spec("optuna") is None:
        raise UserError("--trials needs optuna: pip install 'stream-rec[train]'")
    if plan.out.exists() and not plan.out.is_dir():
        raise UserError(f"--out {plan.out} is a file: name a folder")
    if not plan.overwrite and (plan.out / "config.json").exists():
        raise UserError(f"{plan.out} holds a model already: choose another --out, or say --overwrite")


def check_model(settings: Settings, plan: TrainOptions, before: "Model") -> None:
    """Raises `UserError` for what the model that is trained further has settled otherwise."""
    config = before.config
    if not config.has_time:
        raise UserError(f"the model in {plan.continues} learned from a log without times, and --continue goes by them")
    if plan.tune and config.encoder.base is None:
        raise UserError(f"--tune is for a pre-trained language model, and the one in {plan.continues} is none")
    for name, settled in (("capacity", config.capacity), ("text_encoder", config.text_encoder)):
        if name in settings.model_fields_set and (said := getattr(settings, name)) != settled:
            raise UserError(
                f"setting {name} is {said}, and of the model in {plan.continues} {settled}: leave it out, or set it so"
            )


def config_of(settings: Settings, plan: TrainOptions, events: int, before: "Model | None") -> "TrainConfig":
    """What nobody said follows from the number of `events`, and from the model that is trained further."""
    from stream_rec.training.config import CONTINUED_RATE, PRIVATE_RATE, Size, TrainConfig

    size = Size.of(events)
    if before is None:
        rate = TrainConfig().learning_rate if plan.private_epsilon is None else PRIVATE_RATE
        capacity, epochs, continues = settings.capacity, size.epochs, ""
        encoder = _scratch(plan, size) if plan.base is None else _pretrained(plan, plan.base)
    else:
        capacity, epochs, rate = before.config.capacity, size.epochs_continued, CONTINUED_RATE
        encoder, continues = before.config.encoder, before.version
    return TrainConfig(
        encoder=encoder,
        tune=cast("Tune", plan.tune or ("full" if encoder.base is None else "lora")),
        capacity=capacity,
        stride=stride_of(capacity, settings.stride),
        epochs=plan.epochs or epochs,
        batch_tokens=size.batch_tokens,
        learning_rate=plan.learning_rate or rate,
        validation=plan.validation,
        refit=plan.refit,
        goal=plan.goal,
        weights=parse_weights(plan.weights),
        protocol=plan.protocol,
        seed=plan.seed,
        private=_private(plan),
        continues=continues,
    )


def sized(shape: "EncoderConfig", width: int) -> "EncoderConfig":
    """A decoder from scratch of this width, with what goes with it; a pre-trained one brings its own."""
    heads = max(1, width // HEAD)
    return structs.replace(shape, width=width, heads=heads, kv_heads=heads, inner=2 * width)


def _check_source(plan: TrainOptions) -> None:
    if (plan.events is None) == (plan.from_topic is None):
        raise UserError("name what to train on: a file, EVENTS, or a topic, --from-topic TOPIC; not both")
    if plan.from_topic and plan.columns and plan.items is None:
        raise UserError(
            "--columns is for a file: the events of a topic have fields of their own names; leave it out, or name a "
            "catalogue with --items"
        )
    Period.parse(plan.since, plan.until)


def _check_continued(plan: TrainOptions) -> None:
    """Raises `UserError` for what a model that is trained further has settled already."""
    settled = {"--width": plan.width, "--layers": plan.layers, "--base": plan.base}
    settled |= {"--read words": plan.read != "items", "--template": plan.template != EventTemplate().template}
    settled["--event-tokens"] = plan.event_tokens != EventTemplate().limit
    if given := [option for option, value in settled.items() if value]:
        raise UserError(f"--continue goes on with what the model has settled: leave out {', '.join(given)}")
    if plan.protocol == "leave-one-out":
        raise UserError("--continue goes on in time, which --protocol leave-one-out can't measure: choose another")


def _check_private(plan: TrainOptions) -> None:
    """Raises `UserError` for what a private training can't do, or would tell more of users than it promises."""
    if plan.private_epsilon is None:
        if plan.private_delta is not None or plan.private_clip is not None:
            raise UserError("--private-delta and --private-clip are for a private training: give --private-epsilon too")
        return
    refused = {"--continue": plan.continues, "--trials": plan.trials, "--seeds": plan.seeds, "--goal": plan.goal}
    if given := [option for option, value in refused.items() if value is not None]:
        raise UserError(f"--private-epsilon is of one training of a new model: leave out {', '.join(given)}")
    if plan.events is not None and plan.items is None:
        raise UserError("--private-epsilon takes the items from the catalogue alone: name one with --items")
    if plan.base is not None and plan.tune == "full":
        raise UserError("--private-epsilon with --base takes --tune lora or frozen: each user has a gradient")
    if find_spec("opacus") is None:
        raise UserError("--private-epsilon needs opacus: pip install 'stream-rec[train]'")


def _private(plan: TrainOptions) -> "Private | None":
    from stream_rec.training.config import CLIP, Private

    if plan.private_epsilon is None:
        return None
    return Private(plan.private_epsilon, plan.private_delta, plan.private_clip or CLIP)


def _scratch(plan: TrainOptions, size: "Size") -> "EncoderConfig":
    from stream_rec.models.user_encoder import EncoderConfig

    shape = EncoderConfig(layers=plan.layers, dropout=size.dropout)
    return sized(shape, plan.width or shape.width)


def _pretrained(plan: TrainOptions, base: str) -> "EncoderConfig":
    """Little dropout: the body has learnt without any, and from far more than a log."""
    from stream_rec.models.user_encoder import EncoderConfig

    return EncoderConfig(
        base=base,
        layers=plan.layers,
        dropout=0.0 if plan.read == "words" else PRETRAINED_DROPOUT,
        residual_dropout=0.0,
        words=_words(plan) if plan.read == "words" else None,
    )


def _words(plan: TrainOptions) -> EventTemplate:
    try:
        return EventTemplate(plan.template, plan.event_tokens)
    except ValueError as error:
        raise UserError(f"--template, --event-tokens: {error}") from None
