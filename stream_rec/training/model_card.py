"""What training measured, as a model card and as one picture: losses and figures by epoch, parts, calibration."""

from pathlib import Path
from typing import Any, NamedTuple

from msgspec import Struct, to_builtins

from stream_rec.data.times import DAY
from stream_rec.evaluation.metrics import QUALITIES, qualities
from stream_rec.evaluation.splits import ABOUT as PROTOCOL
from stream_rec.evaluation.splits import Protocol
from stream_rec.features.event_template import EventTemplate
from stream_rec.models.model_store import Model, ModelConfig
from stream_rec.ranking.candidate_features import PARTS
from stream_rec.training.checkpoint import Epoch
from stream_rec.training.config import TUNE_ABOUT, Tune
from stream_rec.training.goal_head import Scaling

PICTURE = "training.svg"
PICTURE_FIGURE = "ndcg_at_10"


CARD = """# A stream_rec model

Predicts the next item of a user from the user's recent events. Version `{version}`{continues}.

| | |
|---|---|
| body | {body}, {layers} layers of width {width}, {parameters:,} parameters in all |
| reads | {reads} |
| trained | {trained}; the item side, the output and the next event's type |
| item texts | {text_encoder} |
| catalogue | {items:,} items |
| training log | {log}: {events:,} events of {users:,} users, types {event_types} |
| times | {times} |
| window | {capacity} events |
| blend | {blend} |

## Measured on held-out time

{protocol}. {predictions:,} predictions by a model that had not seen them, which fitted no weight; the whole catalogue
is ranked, seen items are not filtered, a tie counts against the prediction.

| score | HR@10 | NDCG@10 | MRR |
|---|---|---|---|
{rows}
{plot}
Log loss of the next event's type: {type_log_loss:.4f}; of the types' frequency alone: {type_log_loss_of_frequency:.4f}.

{interest}

## Privacy

{privacy}

## Limits

Probabilities are those of a softmax over the blend, whose weights were fitted on held-out time; their expected
calibration error there is {calibration_error:.4f}. Trained on one shop's log, the model knows nothing of another's.
"""
PRIVATE = """Trained with differential privacy: epsilon {epsilon:.2f}, delta {delta:.1e}, for a user with all that the
user did. DP-SGD: in each of {steps:,} steps a user took part with a chance of {rate:g}, by one window; the user's
gradient was clipped to a norm of {clip:g}, and noise of {noise:.3f} times that was added to the step's sum. There were
{users:,} users.

- Covered: all weights of the encoder, `encoder.safetensors`.
- Of the catalogue alone: item texts, vectors, terms and likeness.
- Left out: the online memory, which is empty, what drift is measured against, and interest.
- **Not covered**: in `config.json` the blend's weights, the half-lives and the time of the last event; and all figures,
  here, in `metrics.json` and in its picture. They are sums and means over all users.
- Taken as public: how many events and users there are, the event types, and the time from which on events were held
  out."""
NOT_PRIVATE = "Trained without differential privacy: the weights may tell that a user was in the log."
INTEREST = """Interest, the probability that a contact with an item is a {goal}: on the items that came next in the same
predictions, {goals} of them a {goal}.

| | {headings} |
|---|---|---|---|
{rows}"""
TIMES = "counts lose half of their weight in {lasting:,.1f} days, recent ones in {recent:,.1f}"
NO_TIMES = "the log had none: counts never decay, and neither gaps between events nor recency count"
NO_INTEREST = "It tells no interest: no goal was learned."


def draw_picture(measured: "Measured", folder: Path) -> str | None:
    """Writes the picture; returns its name, None where matplotlib is not installed (it is optional)."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        (folder / PICTURE).unlink(missing_ok=True)
        return None
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "", "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(11, 8), layout="constrained")
        ((losses, gains), (parts, chances)) = figure.subplots(2, 2)
        _losses(losses, measured)
        _gains(gains, measured)
        _parts(parts, measured)
        _chances(chances, measured)
        figure.savefig(folder / PICTURE, metadata={"Date": None})
    return PICTURE


def _losses(axes: Any, measured: "Measured") -> None:
    axes.set(title="Cross-entropy by epoch", xlabel="epoch")
    _curve(axes, [epoch.loss for epoch in measured.epochs], "training, among its negatives")
    _curve(axes, [epoch.held_out["loss"] for epoch in measured.epochs if epoch.held_out], "held out, among all items")
    _curve(axes, measured.refit_losses, "training on the whole log")
    axes.legend(frameon=False)


def _gains(axes: Any, measured: "Measured") -> None:
    axes.set(title="The decoder alone on held-out predictions, by epoch", xlabel="epoch")
    for name, label in (("hr_at_10", "HR@10"), (PICTURE_FIGURE, "NDCG@10")):
        _curve(axes, [epoch.held_out[name] for epoch in measured.epochs if epoch.held_out], label)
    axes.legend(frameon=False)


def _curve(axes: Any, values: list[float], label: str) -> None:
    if values:
        axes.plot(range(1, len(values) + 1), values, marker=".", label=label)
        axes.xaxis.get_major_locator().set_params(integer=True)


def _parts(axes: Any, measured: "Measured") -> None:
    names = list(measured.alone)
    places = range(len(names))
    axes.set(title="NDCG@10 of each part alone, and of the blend without it")
    axes.barh([at - 0.2 for at in places], [measured.alone[name][PICTURE_FIGURE] for name in names], 0.4, label="alone")
    axes.barh(
        [at + 0.2 for at in places], [measured.left_out[name][PICTURE_FIGURE] for name in names], 0.4, label="left out"
    )
    axes.axvline(measured.blend[PICTURE_FIGURE], color="black", linewidth=1, label="the blend")
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=3)


def _chances(axes: Any, measured: "Measured") -> None:
    said, came = [one[0] for one in measured.reliability], [one[1] for one in measured.reliability]
    most = max([*said, *came, 1e-6])
    axes.set(
        title=f"Calibration, expected error {measured.calibration_error:.4f}", xlabel="promised", ylabel="came true"
    )
    axes.plot([0, most], [0, most], color="grey", linewidth=1)
    axes.plot(said, came, marker="o")


class MeasuredInterest(Struct, frozen=True):
    """How well the interest tells, of the items that came next, which event was the goal."""

    goal: str
    goals: int
    """Among the predictions."""
    scaling: Scaling
    """Of the log-odds, by the other half."""
    figures: dict[str, dict[str, float]]
    """Of the model and of what needs no training."""


class Measured(Struct, frozen=True):
    """metrics.json: figures on validation, of each part alone and of the blend."""

    predictions: int
    blend: dict[str, float]
    """As `metrics.figures` names them."""
    alone: dict[str, dict[str, float]]
    """Each part by itself."""
    left_out: dict[str, dict[str, float]]
    """The blend fitted without it."""
    type_log_loss: float
    type_log_loss_of_frequency: float
    calibration_error: float
    """Expected, of the probabilities of the first 20 items of each prediction."""
    reliability: list[tuple[float, float, int]]
    """The same in bins: what was promised, what came true, how many."""
    interest: MeasuredInterest | None = None
    """None: the model has no goal."""
    epochs: list[Epoch] = []
    """Of the training whose predictions these figures are of."""
    refit_losses: list[float] = []
    """By epoch, of the training on the whole log."""
    fingerprint: str = ""
    """Of the settings, the events and the items."""

    def rows(self) -> dict[str, dict[str, float]]:
        """All figures by the name of what they are of."""
        return {
            "blend": self.blend,
            **{f"{part} alone": found for part, found in self.alone.items()},
            **{f"without {part}": found for part, found in self.left_out.items()},
        }


class Origin(NamedTuple):
    """Where a model comes from."""

    log: str
    """What it was trained on, in words."""
    events: int
    users: int
    continues: str = ""
    """The model that was trained further, in words."""
    plot: str | None = None
    """Name of the picture in the folder."""


def card(model: Model, measured: Measured, tune: Tune, protocol: Protocol, origin: Origin) -> str:
    """The model card, as Markdown; `tune` says what of the body was trained."""
    body = model.encoder.body.config
    row = "| {} | {hr_at_10:.4f} | {ndcg_at_10:.4f} | {mrr:.4f} |"
    rows = "\n".join(row.format(name, **found) for name, found in measured.rows().items())
    return CARD.format(
        version=model.version,
        body=model.config.encoder.base or f"{body.model_type} from scratch",
        layers=body.num_hidden_layers,
        width=body.hidden_size,
        parameters=sum(weight.numel() for weight in model.encoder.parameters()),
        reads=_reads(model.config.encoder.words),
        trained=TUNE_ABOUT[tune],
        text_encoder=model.config.text_encoder,
        items=len(model.items),
        log=origin.log,
        plot=f"\n![Loss and held-out figures by epoch, parts, calibration]({origin.plot})\n" if origin.plot else "",
        continues=f", {origin.continues} trained further" if origin.continues else "",
        times=_times(model.config),
        events=origin.events,
        users=origin.users,
        event_types=", ".join(model.config.event_types),
        capacity=model.config.capacity,
        protocol=PROTOCOL[protocol].capitalize(),
        predictions=measured.predictions,
        rows=rows,
        type_log_loss=measured.type_log_loss,
        type_log_loss_of_frequency=measured.type_log_loss_of_frequency,
        calibration_error=measured.calibration_error,
        blend=", ".join(f"{part} {getattr(model.config.blend, part):.2f}" for part in PARTS),
        interest=NO_INTEREST if measured.interest is None else _interest(measured.interest),
        privacy=NOT_PRIVATE if (spent := model.config.privacy) is None else PRIVATE.format(**to_builtins(spent)),
    )


def _interest(measured: MeasuredInterest) -> str:
    rows = "\n".join(f"| {name} | {' | '.join(qualities(found))} |" for name, found in measured.figures.items())
    return INTEREST.format(headings=" | ".join(QUALITIES), goal=measured.goal, goals=measured.goals, rows=rows)


def _times(config: ModelConfig) -> str:
    if not config.has_time:
        return NO_TIMES
    return TIMES.format(lasting=config.horizons.lasting / DAY, recent=config.horizons.recent / DAY)


def _reads(words: EventTemplate | None) -> str:
    if words is None:
        return "an event as one token: its item, its type and the time since the event before"
    return f"an event as its words, at most {words.limit} tokens: `{words.template}`"
