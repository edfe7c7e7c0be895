"""A training in one picture: its loss and held-out figures by epoch, what each part is worth, its calibration."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stream_rec.training.model_card import Measured

NAME = "training.svg"
SHOWN = "ndcg_at_10"


def draw(measured: "Measured", folder: Path) -> str | None:
    """Writes the picture; returns its name, None where matplotlib is not installed (it is optional)."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        (folder / NAME).unlink(missing_ok=True)
        return None
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "", "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(11, 8), layout="constrained")
        ((losses, gains), (parts, chances)) = figure.subplots(2, 2)
        _losses(losses, measured)
        _gains(gains, measured)
        _parts(parts, measured)
        _chances(chances, measured)
        figure.savefig(folder / NAME, metadata={"Date": None})
    return NAME


def _losses(axes: Any, measured: "Measured") -> None:
    axes.set(title="Cross-entropy by epoch", xlabel="epoch")
    _curve(axes, [epoch.loss for epoch in measured.epochs], "training, among its negatives")
    _curve(axes, [epoch.held_out["loss"] for epoch in measured.epochs if epoch.held_out], "held out, among all items")
    _curve(axes, measured.refit_losses, "training on the whole log")
    axes.legend(frameon=False)


def _gains(axes: Any, measured: "Measured") -> None:
    axes.set(title="The decoder alone on held-out predictions, by epoch", xlabel="epoch")
    for name, label in (("hr_at_10", "HR@10"), (SHOWN, "NDCG@10")):
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
    axes.barh([at - 0.2 for at in places], [measured.alone[name][SHOWN] for name in names], 0.4, label="alone")
    axes.barh([at + 0.2 for at in places], [measured.left_out[name][SHOWN] for name in names], 0.4, label="left out")
    axes.axvline(measured.blend[SHOWN], color="black", linewidth=1, label="the blend")
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
