"""What Prometheus and Grafana are told to ask, read from the files that they load."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import promql_parser
import yaml

from docs.pages.metrics import Metric, exported
from stream_rec.metrics import AgentMetrics, WorkerMetrics

MONITORING = Path(__file__).parents[1] / "monitoring"
FILES = sorted((MONITORING / "grafana/dashboards").glob("*.json"))
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in FILES}
RULES = [
    rule
    for path in ("recording.yml", "alerts.yml")
    for group in yaml.safe_load((MONITORING / path).read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = [rule for rule in RULES if "alert" in rule]
RECORDS = [rule for rule in RULES if "record" in rule]
SAMPLES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
OF_A_TARGET = {"job", "instance"}


def telemetry() -> Iterator[Metric]:
    yield from exported(AgentMetrics)
    yield from exported(WorkerMetrics)


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


class Question(NamedTuple):
    asker: str
    text: str
    """PromQL, with nothing left for Grafana to fill in."""

    @property
    def parsed(self) -> promql_parser.Expr:
        return promql_parser.parse(self.text)


def questions() -> Iterator[Question]:
    """What the rules, the panels and the marks on them ask."""
    for rule in RULES:
        yield Question(rule.get("alert") or rule["record"], rule["expr"])
    for name, dashboard in DASHBOARDS.items():
        for mark in dashboard["annotations"]["list"]:
            yield Question(f"{name}: {mark['name']}", filled_in(mark["target"]["expr"]))
        for panel in panels(dashboard):
            for target in panel["targets"]:
                asker = f"{name}: {panel['title']}: {target['legendFormat']}"
                yield Question(asker, filled_in(target["expr"]))


def filled_in(text: str) -> str:
    """As Grafana would with the smallest interval that shows anything, and all instances chosen."""
    return text.replace("$__rate_interval", "10s").replace("$instance", ".*")


def nodes(expression: promql_parser.Expr) -> list[promql_parser.Expr]:
    found: list[promql_parser.Expr] = []
    promql_parser.walk(expression, found.append)
    return found


def selectors(expression: promql_parser.Expr) -> list[promql_parser.VectorSelector]:
    return [node for node in nodes(expression) if isinstance(node, promql_parser.VectorSelector)]


COMPARISONS = {"==", "!=", ">", "<", ">=", "<="}
SETS = {"and", "or", "unless"}


def compared(expression: promql_parser.Expr) -> Iterator[promql_parser.Expr]:
    """What an expression compares, or puts together or takes apart: an alert that is silent has no data of its own."""
    if isinstance(expression, promql_parser.ParenExpr):
        yield from compared(expression.expr)
    elif isinstance(expression, promql_parser.BinaryExpr) and str(expression.op) in COMPARISONS | SETS:
        yield from compared(expression.lhs)
        yield from compared(expression.rhs)
    elif selectors(expression):
        yield expression
