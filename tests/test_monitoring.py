import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as schema
from grafana_foundation_sdk.models import units

from monitoring.dashboards import __main__ as source
from stream_rec.config import Settings
from tests.monitoring import (
    ALERTS,
    DASHBOARDS,
    MONITORING,
    OF_A_TARGET,
    RECORDS,
    SAMPLES,
    Question,
    nodes,
    panels,
    questions,
    selectors,
    telemetry,
)

ROOT = Path(__file__).parents[1]
PANELS = [
    pytest.param(panel, id=f"{name}: {panel['title']}")
    for name, dashboard in DASHBOARDS.items()
    for panel in panels(dashboard)
]


def read(path: str) -> str:
    return (ROOT / path).read_text()


def labels_of_samples() -> dict[str, set[str]]:
    """Every name that an expression may read, with the labels that it has."""
    samples = {
        metric.name + suffix: {*metric.labels, *OF_A_TARGET, *({"le"} if suffix == "_bucket" else ())}
        for metric in telemetry()
        for suffix in SAMPLES[metric.kind]
    }
    records = {rule["record"]: grouped_by(promql_parser.parse(rule["expr"])) for rule in RECORDS}
    return {"up": OF_A_TARGET, "ALERTS": {"alertname", "alertstate", "severity"}, **samples, **records}


def grouped_by(expression: promql_parser.Expr) -> set[str]:
    """The labels that aggregations keep."""
    kept = [node.modifier for node in nodes(expression) if isinstance(node, promql_parser.AggregateExpr)]
    return {label for modifier in kept if modifier for label in modifier.labels}


ASKED = [
    *questions(),
    *(Question(*found) for found in re.findall(r"^\| (.*\?) \| `(.*)` \|$", read("docs/metrics.md"), re.MULTILINE)),
]


@pytest.mark.parametrize("question", [pytest.param(one, id=one.asker) for one in ASKED])
def test_an_expression_reads_metrics_and_labels_that_exist(question):
    known = labels_of_samples()
    assert selectors(question.parsed)
    for selector in selectors(question.parsed):
        assert selector.name in known
        assert {matcher.name for matcher in selector.matchers.matchers} <= known[selector.name]
    for node in nodes(question.parsed):
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier:
            assert set(node.modifier.labels) <= set.union(*(known[one.name] for one in selectors(node.expr)))


def test_every_metric_is_read_by_a_panel_or_a_rule():
    asked = {selector.name for question in questions() for selector in selectors(question.parsed)}
    for metric in telemetry():
        assert asked & {metric.name + suffix for suffix in SAMPLES[metric.kind]}, metric.name
    assert {rule["record"] for rule in RECORDS} <= asked


@pytest.mark.parametrize("path", [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")], ids=lambda path: path.name)
def test_a_document_names_metrics_that_exist(path):
    known = {metric.name for metric in telemetry()} | labels_of_samples().keys()
    assert set(re.findall(r"`(stream_rec_\w+)`", path.read_text())) <= known


def test_grafana_loads_what_the_code_of_the_dashboards_says():
    written = {one.name: source.text_of(one) for one in source.DASHBOARDS}
    assert {path.stem: path.read_text() for path in source.FOLDER.iterdir()} == written, "run 'make dashboards'"


OF_THE_PROMETHEUS_PLUGIN = {
    f"annotations.list.{field}"
    for field in ("target.refId", "target.expr", "titleFormat", "textFormat", "useValueForTime")
}
"""What Grafana's schema leaves to the source of the data."""


@pytest.mark.parametrize("name", DASHBOARDS)
def test_grafanas_schema_knows_every_field(name):
    plugins.register_default_plugins()
    understood = json.loads(JSONEncoder().encode(schema.Dashboard.from_json(DASHBOARDS[name])))
    assert set(not_in(understood, DASHBOARDS[name])) <= OF_THE_PROMETHEUS_PLUGIN


def not_in(understood: Any, written: Any, path: str = "") -> list[str]:
    """The paths of what was written and not understood, or otherwise."""
    if isinstance(written, dict) and isinstance(understood, dict):
        pairs = [(understood.get(key), value, f"{path}.{key}".strip(".")) for key, value in written.items()]
    elif isinstance(written, list) and isinstance(understood, list) and len(written) == len(understood):
        pairs = [(*both, path) for both in zip(understood, written, strict=True)]
    else:
        return [] if understood == written else [path]
    return [found for one in pairs for found in not_in(*one)]


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_says_what_it_shows_and_what_to_do(panel):
    shows, remedy = panel["description"].split("\n\n**When it looks bad:** ")
    assert panel["title"]
    assert all(text.endswith(".") and len(text) > 10 for text in (shows, remedy))
    assert panel["fieldConfig"]["defaults"]["unit"] in vars(units).values()


@pytest.mark.parametrize("panel", PANELS)
def test_a_legend_names_labels_that_the_series_have(panel):
    known = labels_of_samples()
    for target in panel["targets"]:
        parsed = promql_parser.parse(target["expr"].replace("$__rate_interval", "1m"))
        every = set.union(*(known[selector.name] for selector in selectors(parsed)))
        aggregated = any(isinstance(node, promql_parser.AggregateExpr) for node in nodes(parsed))
        held = grouped_by(parsed) if aggregated else every
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= held


@pytest.mark.parametrize("dashboard", DASHBOARDS.values(), ids=DASHBOARDS)
def test_a_dashboard_has_one_source_and_no_two_panels_alike(dashboard):
    config = yaml.safe_load((MONITORING / "grafana/provisioning/datasources/prometheus.yml").read_text())
    asked = [*panels(dashboard), *dashboard["annotations"]["list"], *dashboard["templating"]["list"]]
    assert {one["datasource"]["uid"] for one in asked} == {config["datasources"][0]["uid"]}
    ids, titles = [one["id"] for one in dashboard["panels"]], [panel["title"] for panel in panels(dashboard)]
    assert (len(set(ids)), len(set(titles))) == (len(ids), len(titles))
    chosen = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert set(re.findall(r"\$(\w+)", json.dumps(panels(dashboard)))) - {"__rate_interval"} == chosen


def test_the_home_dashboard_is_there_and_dashboards_have_ids_of_their_own():
    home = yaml.safe_load(read("docker-compose.yml"))["services"]["grafana"]["environment"]
    assert Path(home["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]).stem in DASHBOARDS
    assert len({dashboard["uid"] for dashboard in DASHBOARDS.values()}) == len(DASHBOARDS)


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


def test_prometheus_finds_its_rules_in_the_container():
    mounts = [
        mount.split(":") for mount in yaml.safe_load(read("docker-compose.yml"))["services"]["prometheus"]["volumes"]
    ]
    mounted = {inside: outside for outside, inside, *_ in mounts}
    for name in yaml.safe_load((MONITORING / "prometheus.yml").read_text())["rule_files"]:
        assert mounted[f"/etc/prometheus/{name}"] == f"./monitoring/{name}"


def test_every_alert_has_a_test_in_which_it_fires_and_one_in_which_it_is_silent():
    cases = [
        case
        for test in yaml.safe_load((MONITORING / "rules_test.yml").read_text())["tests"]
        for case in test["alert_rule_test"]
    ]
    alerts = {alert["alert"] for alert in ALERTS}
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == alerts
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == alerts


def test_every_alert_leads_to_its_section_in_docs_operations_and_every_section_to_an_alert():
    sections = re.findall(r"^### (\w+)$", read("docs/operations.md"), re.MULTILINE)
    assert sections == [alert["alert"] for alert in ALERTS]
    for alert in ALERTS:
        assert alert["annotations"]["runbook"] == f"docs/operations.md#{alert['alert'].lower()}"
        assert alert["labels"]["severity"] in ("critical", "warning")


def test_docs_operations_tells_of_every_dashboard():
    rows = re.findall(r"^\| \*\*(\w+)\*\* \|", read("docs/operations.md"), re.MULTILINE)
    assert rows == [dashboard.title for dashboard in source.DASHBOARDS]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool, which comes with Prometheus, is not installed")
@pytest.mark.parametrize("command", ["check config prometheus.yml", "test rules rules_test.yml"])
def test_promtool_accepts(command):
    run = subprocess.run(["promtool", *command.split()], cwd=MONITORING, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
