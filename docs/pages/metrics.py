"""Every metric, from `telemetry.py`."""

from collections.abc import Iterator
from typing import NamedTuple

from prometheus_client import CollectorRegistry

from docs.pages import markdown
from docs.pages.markdown import code
from stream_rec.metrics import SECONDS, SIZES, AgentMetrics, WorkerMetrics


class Metric(NamedTuple):
    name: str
    """In code; a counter's samples end in `_total`."""
    kind: str
    labels: tuple[str, ...]
    help: str


def exported(by: type[AgentMetrics] | type[WorkerMetrics]) -> Iterator[Metric]:
    for collector in vars(by(CollectorRegistry())).values():
        (family,) = collector.describe()
        yield Metric(family.name, family.type, collector._labelnames, family.documentation)


INTRO = """\
# Metrics

Agents and workers serve them on `/metrics`; [../metrics.md](../metrics.md) says where, and which questions they answer.
A histogram `x` has the series `x_bucket`, `x_sum` and `x_count`.

"""


def page() -> str:
    return markdown.text(_lines())


def _lines() -> Iterator[str]:
    yield from INTRO.splitlines()
    for title, by in (("Agents", AgentMetrics), ("Worker", WorkerMetrics)):
        yield f"## {title}"
        yield ""
        rows = [[code(_sampled(one)), one.kind, code(*one.labels), one.help] for one in exported(by)]
        yield from markdown.table(["metric", "type", "labels", "meaning"], rows)
    yield "## Buckets"
    yield ""
    yield f"Seconds: {', '.join(f'{bound:g}' for bound in SECONDS)}. Windows in a step: {', '.join(map(str, SIZES))}."


def _sampled(metric: Metric) -> str:
    return metric.name + ("_total" if metric.kind == "counter" else "")
