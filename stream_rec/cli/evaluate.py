"""An evaluation as a person sees it: reads files, shows how far it is, prints tables, or one JSON object."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.table import Table

from stream_rec.config import Settings
from stream_rec.data import event_log, ids
from stream_rec.errors import UserError
from stream_rec.evaluation.metrics import QUALITIES, qualities
from stream_rec.evaluation.splits import Protocol
from stream_rec.runtime.progress import bars
from stream_rec.runtime.terminal import Terminal, print_json

BASKETS = {"auto": None, "yes": True, "no": False}
SEEN = {
    "keep": "seen items kept",
    "window": "items in the window left out, as exclude_seen does",
    "ever": "all items that the user has met left out",
}
SHOWN = ("hr_at_10", "ndcg_at_10", "mrr")


class EvaluateOptions(NamedTuple):
    """The options of `stream-rec evaluate`."""

    models: Sequence[Path]
    """Of several seeds."""
    events: Path
    protocol: Protocol = "prequential"
    columns: str = ""
    seen: Literal["served", "keep", "window", "ever"] = "served"
    """Served: what the setting `exclude_seen` says."""
    baskets: str = "auto"
    after: float = 0.0
    threads: int | None = None
    as_json: bool = False


def run(settings: Settings, plan: EvaluateOptions) -> int:
    """Evaluates each model; returns the exit code. Raises `UserError` for what a person can put right."""
    if not 0 <= plan.after < 1:
        raise UserError(f"--after is {plan.after}: give a share of the log, 0 or more and below 1")
    console = Terminal(stderr=True)
    with console.status("loading torch"):
        import torch

        from stream_rec.evaluation import evaluate
        from stream_rec.features.text_encoder import TextEncoder
        from stream_rec.models import model_store
        from stream_rec.serving import device as devices
    torch.set_num_threads(plan.threads or torch.get_num_threads())
    device = devices.find(settings.device)
    log = event_log.read_events(plan.events, event_log.parse_columns(plan.columns))
    for note in (*event_log.losses(log, str(plan.events)), f"{plan.events}: {log.period}"):
        console.say(note)
    served: evaluate.Seen = "window" if settings.exclude_seen else "keep"
    seen = served if plan.seen == "served" else plan.seen
    how = evaluate.EvaluationPlan(plan.protocol, settings.stride, seen, BASKETS[plan.baskets], plan.after)
    found: list[dict[str, Any]] = []
    for path in plan.models:
        model = model_store.load(path)
        if model.config.has_time != log.has_time:
            without, having = (f"the log {plan.events}", f"the model in {path}")[:: 1 if model.config.has_time else -1]
            raise UserError(f"{without} has no times and {having} goes by them: see --columns time=...")
        known = [item.item_id for item in model.items]
        frame = log.frame.with_columns(ids.joined(log.frame["item"], known))
        for line in ids.coverage(frame["item"], known):
            console.say(f"{path}: {line}")
        texts = TextEncoder(model.config.text_encoder, settings.cache_dir, str(device))
        with bars(console, stay=False, before=f"{path.name}: ") as progress:
            found.append(evaluate.run(model, frame, how, texts, progress, device))
    if plan.as_json:
        means = {name: round(statistics.mean(one[name] for one in found), 4) for name in ("hr_at_10", "ndcg_at_10")}
        first = found[0] | means | {"seeds": len(found), "protocol": plan.protocol}
        if len(found) > 1:
            first["each"] = [{name: one[name] for name in (*means, "probabilities")} for one in found]
        print_json(first)
    else:
        for path, one in zip(plan.models, found, strict=True):
            _show(path, one)
    return 0


def _probabilities(found: dict[str, dict[str, dict[str, float]]]) -> Table:
    view = Table(title="Probabilities, and what frequencies alone would have said")
    for heading in ("", *QUALITIES):
        view.add_column(heading, justify="right" if heading else "left")
    for what, rows in found.items():
        view.add_section()
        for name, figures in rows.items():
            view.add_row(f"{what}, {name}", *qualities(figures))
    return view


def _diversity(found: dict[str, Any]) -> Table:
    view = Table(title="What diversity costs: the setting, and the first 10 that it gives")
    for heading in ("diversity", "HR@10", "NDCG@10", "mean distance in a list", "coverage"):
        view.add_column(heading, justify="right")
    for strength, figures in {"0": found, **found["diversity"]}.items():
        shown = (f"{figures[key]:.4f}" for key in ("hr_at_10", "ndcg_at_10", "intra_list_diversity", "coverage"))
        view.add_row(strength, *shown)
    return view


def _show(path: Path, found: dict[str, Any]) -> None:
    console = Terminal()
    view = Table(title=f"{path}: {found['predictions']:,} predictions for {found['users']:,} users")
    for heading in ("", "HR@10", "NDCG@10", "MRR"):
        view.add_column(heading, justify="right" if heading else "left")

    def add(name: str, figures: dict[str, float]) -> None:
        view.add_row(name, *(f"{figures[key]:.4f}" for key in SHOWN))

    add("blend", found)
    for name, figures in found["floors"].items():
        add(name, figures)
    for name, figures in found["frozen"].items():
        add(f"{name}, memory frozen", figures)
    view.add_section()
    for name, figures in found["parts"].items():
        add(f"{name} alone", figures)
    for kind in ("event_type", "history", "item", "time"):
        view.add_section()
        for name, figures in found[f"by_{kind}"].items():
            add(f"{name} ({figures['predictions']:,})", figures)
    console.print(view)
    console.print(_probabilities(found["probabilities"]))
    console.print(_diversity(found))
    over = found["over_best_floor"]
    for key, name in (("hr_at_10", "HR@10"), ("ndcg_at_10", "NDCG@10")):
        mean, low, high = over[key]
        console.print(f"{name} over {over['floor']}: {mean:+.4f}, 95% of resampled users {low:+.4f} to {high:+.4f}")
    console.print(
        f"{SEEN[found['seen_items']]} ({found['repeats']:.1%} of the log's events repeat an item)"
        f"{', baskets predicted in one' if found['baskets'] else ''}; coverage {found['coverage']:.1%},"
        f" novelty {found['novelty_bits']} bits, intra-list diversity {found['intra_list_diversity']:.3f},"
        f" calibration error {found['calibration_error']:.4f}",
        highlight=False,
    )
