"""The prequential report: accuracy by event type beside the floors, latency, counts; as a dict for JSON, as a table."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.table import Table

from stream_rec.evaluation.prequential import Outcome, Prequential, Tally
from stream_rec.metrics import CUTOFFS


class Scores:
    """Ranks of the same events by the predictor and by each floor; events whose prediction was too late are counted."""

    def __init__(self) -> None:
        self.too_late = 0
        """Events that arrived before the answer to an earlier event of their user did."""
        self.predictor = Tally()
        self.popularity = Tally()
        self.markov = Tally()

    def add(self, outcome: Outcome) -> None:
        if outcome.too_late:
            self.too_late += 1
            return
        self.predictor.add(outcome.rank)
        self.popularity.add(outcome.floors.popularity)
        self.markov.add(outcome.floors.markov)

    def as_dict(self) -> dict[str, Any]:
        return {
            "evaluated": self.predictor.n,
            "too_late": self.too_late,
            **{f"hit_rate_at_{k}": self.predictor.hit_rate(k) for k in CUTOFFS},
            "ndcg_at_10": self.predictor.ndcg(10),
            "mrr": self.predictor.mrr(),
            "floors": {"popularity": self.popularity.hit_rate(10), "markov": self.markov.hit_rate(10)},
        }


class Report:
    """Sums over outcomes. Kafka's timestamps count milliseconds, so a count for each one gives exact percentiles."""

    def __init__(self) -> None:
        self.overall = Scores()
        self.by_event_type: dict[str, Scores] = {}
        self.first_events = 0
        """Covered events without an answer to an earlier event of their user: neither evaluated nor too late."""
        self._milliseconds: Counter[int] = Counter()

    def add(self, outcomes: Iterable[Outcome]) -> None:
        for outcome in outcomes:
            self._milliseconds[round(1_000 * outcome.latency_s)] += 1
            if outcome.evaluated or outcome.too_late:
                self.overall.add(outcome)
                self.by_event_type.setdefault(outcome.event_type, Scores()).add(outcome)
            else:
                self.first_events += 1

    def latency_ms(self, share: float) -> int | None:
        """The latency that `share` of the covered events did not exceed (nearest rank), milliseconds."""
        left = share * self._milliseconds.total()
        for milliseconds in sorted(self._milliseconds):
            left -= self._milliseconds[milliseconds]
            if left <= 0:
                return milliseconds
        return None

    def summary(self, prequential: Prequential) -> dict[str, Any]:
        """The report for JSON. Rates are shares of the evaluated events, which leave out `too_late` and
        `first_events`; a measure of no events is None."""
        return {
            "events": prequential.events,
            "recommendations": prequential.recommendations,
            "repeated": prequential.repeated,
            "lost": prequential.lost(),
            "dead_letters": prequential.dead_letters,
            "refused": prequential.refused,
            "first_events": self.first_events,
            "updates_per_s": prequential.updates_per_s,
            "latency_ms": {"p50": self.latency_ms(0.5), "p99": self.latency_ms(0.99)},
            **self.overall.as_dict(),
            "by_event_type": {name: scores.as_dict() for name, scores in sorted(self.by_event_type.items())},
        }


def table(summary: dict[str, Any], uncovered: str = "lost") -> Table:
    """The summary as a table, one line for each event type; the caption holds the counts and the latency.

    `uncovered` is what to call events without an answer: while events flow, they are only on their way.
    """
    latency = summary["latency_ms"]
    view = Table(
        title="What users did next, in the newest earlier answer (right: hit@10 of the floors)",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        caption=(
            f"{summary['events']:,} events, {summary['recommendations']:,} recommendations "
            f"({summary['updates_per_s']:,.0f}/s), {summary['lost']:,} {uncovered}, "
            f"{refusals(summary['refused'])}; "
            f"latency p50 {_number(latency['p50'])} ms, p99 {_number(latency['p99'])} ms"
        ),
    )
    view.add_column("event type")
    headings = ("compared", "too late", *(f"hit@{k}" for k in CUTOFFS), "NDCG@10", "MRR", "popular", "Markov")
    for heading in headings:
        view.add_column(heading, justify="right")
    for name, scores in summary["by_event_type"].items():
        view.add_row(name, *_cells(scores))
    view.add_section()
    view.add_row("all", *_cells(summary), style="bold")
    return view


def refusals(by_reason: Mapping[str, int]) -> str:
    """How many events were refused, and why.

    >>> refusals({"duplicate event_id": 50, "unknown event type": 3})
    '53 refused (50 duplicate event_id, 3 unknown event type)'
    """
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in by_reason.items())
    return f"{sum(by_reason.values()):,} refused" + (f" ({reasons})" if reasons else "")


def _cells(scores: dict[str, Any]) -> list[str]:
    rates = [scores[f"hit_rate_at_{k}"] for k in CUTOFFS]
    floors = scores["floors"]
    shares = (*rates, scores["ndcg_at_10"], scores["mrr"], floors["popularity"], floors["markov"])
    counts = (f"{scores['evaluated']:,}", f"{scores['too_late']:,}")
    return [*counts, *("-" if share is None else f"{share:.3f}" for share in shares)]


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"
