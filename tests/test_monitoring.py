import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import promql_parser
import pytest
import yaml
from prometheus_client import CollectorRegistry

from stream_rec.config import Settings
from stream_rec.telemetry import AgentMetrics, WorkerMetrics

ROOT = Path(__file__).parents[1]
MONITORING = ROOT / "monitoring"
ALERTS = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"][0]["rules"]
DASHBOARDS = [json.loads(path.read_text()) for path in (MONITORING / "grafana/dashboards").glob("*.json")]
PANELS = [panel for dashboard in DASHBOARDS for panel in dashboard["panels"]]
SAMPLES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


def read(path: str) -> str:
    return (ROOT / path).read_text()


class Metric(NamedTuple):
    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


def telemetry() -> Iterator[Metric]:
    for metrics in (AgentMetrics(CollectorRegistry()), WorkerMetrics(CollectorRegistry())):
        for collector in vars(metrics).values():
            (family,) = collector.describe()
            yield Metric(family.name, family.type, collector._labelnames, family.documentation)


def labels_of_samples() -> dict[str, set[str]]:
    samples = {
        metric.name + suffix: {*metric.labels, *({"le"} if suffix == "_bucket" else ())}
        for metric in telemetry()
        for suffix in SAMPLES[metric.kind]
    }
    return {"up": {"job", "instance"}, **samples}


def expressions() -> Iterator[object]:
    for alert in ALERTS:
        yield pytest.param(alert["expr"], id=alert["alert"])
    for panel in PANELS:
        for target in panel["targets"]:
            yield pytest.param(target["expr"], id=f"{panel['title']} {target['refId']}")
    for question, expression in re.findall(r"^\| (.*\?) \| `(.*)` \|$", read("docs/metrics.md"), re.MULTILINE):
        yield pytest.param(expression, id=question)


def nodes(expression: promql_parser.Expr) -> list[promql_parser.Expr]:
    found: list[promql_parser.Expr] = []
    promql_parser.walk(expression, found.append)
    return found


def selectors(expression: promql_parser.Expr) -> list[promql_parser.VectorSelector]:
    return [node for node in nodes(expression) if isinstance(node, promql_parser.VectorSelector)]


@pytest.mark.parametrize("text", list(expressions()))
def test_an_expression_reads_metrics_and_labels_that_exist(text):
    known = labels_of_samples()
    expression = promql_parser.parse(text.replace("$__rate_interval", "1m"))
    assert selectors(expression)
    for selector in selectors(expression):
        assert selector.name in known
        assert {matcher.name for matcher in selector.matchers.matchers} <= known[selector.name]
    for node in nodes(expression):
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier:
            assert set(node.modifier.labels) <= set.union(*(known[one.name] for one in selectors(node.expr)))


def test_the_table_in_docs_metrics_is_what_telemetry_exports():
    rows = re.findall(r"^\| `(stream_rec_\w+)` \| (\w+) \|(.*?)\| (.*) \|$", read("docs/metrics.md"), re.MULTILINE)
    documented = [Metric(name, kind, tuple(re.findall(r"`(\w+)`", labels)), text) for name, kind, labels, text in rows]
    exported = [
        metric._replace(name=metric.name + ("_total" if metric.kind == "counter" else "")) for metric in telemetry()
    ]
    assert documented == exported


def test_panels_have_ids_titles_and_a_datasource_of_their_own():
    source = yaml.safe_load((MONITORING / "grafana/provisioning/datasources/prometheus.yml").read_text())
    assert len({panel["id"] for panel in PANELS}) == len({panel["title"] for panel in PANELS}) == len(PANELS) > 0
    assert {panel["datasource"]["uid"] for panel in PANELS} == {source["datasources"][0]["uid"]}


def test_prometheus_reads_the_services_at_the_ports_of_the_settings():
    compose = yaml.safe_load(read("docker-compose.yml"))["services"]
    scraped = {
        (target["names"][0], target["port"])
        for job in yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]
        for target in job["dns_sd_configs"]
    }
    ports = {name: Settings.model_fields[f"{name}_metrics_port"].default for name in ("agents", "worker")}
    assert scraped == set(ports.items())
    for service, port in ports.items():
        assert f":{port}/readyz" in compose[service]["healthcheck"]["test"][-1]


def test_every_alert_has_a_test_in_which_it_fires_and_one_in_which_it_is_silent():
    cases = [
        case
        for test in yaml.safe_load((MONITORING / "alerts_test.yml").read_text())["tests"]
        for case in test["alert_rule_test"]
    ]
    alerts = {alert["alert"] for alert in ALERTS}
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == alerts
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == alerts


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool, which comes with Prometheus, is not installed")
@pytest.mark.parametrize("command", ["check config prometheus.yml", "test rules alerts_test.yml"])
def test_promtool_accepts(command):
    run = subprocess.run(["promtool", *command.split()], cwd=MONITORING, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
