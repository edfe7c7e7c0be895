"""How a panel, a row and a dashboard are written down, and what Grafana's JSON of them is.

A panel must say what it shows and what to do when it looks bad. One name has one colour on all dashboards.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

SOURCE = {"type": "prometheus", "uid": "prometheus"}
WIDTH, HEIGHT, LOW = 24, 8, 4
"""Of a row, of a panel and of a panel of numbers, in Grafana's units."""

GOOD, FAIR, BAD, PLAIN = "green", "yellow", "red", "blue"
COLOURS = {"p50": GOOD, "p90": FAIR, "p99": "orange", "events": PLAIN, "answers": GOOD, "tolerance": BAD}
COLOURS_OF_VALUES = {
    "outcome": {"committed": GOOD, "loaded": GOOD, "failed": BAD, "refused": BAD},
    "result": {"hit": GOOD, "miss": "orange"},
    "kind": {"append": GOOD, "prefill": "orange"},
    "use": {"needed": GOOD, "padding": "orange"},
    "floor": {"markov": "purple", "popularity": "light-purple", "recent": "dark-purple"},
}
"""Of the values of a label, where a legend holds one. Other names get a colour from Grafana, each always the same."""

CHOSEN = 'instance=~"$instance"'
"""Matches the processes that are chosen on a dashboard with a `job`."""


class Series(NamedTuple):
    """A line, or a number: `legend` may hold labels, as in `{{event_type}}`."""

    legend: str
    expr: str


class Limit(NamedTuple):
    """Where it gets bad: at and above `value`, or below it."""

    value: float
    below: bool = False


class Panel(NamedTuple):
    title: str
    about: str
    remedy: str
    """What to do when it looks bad."""
    unit: str
    series: Sequence[Series]
    limit: Limit | None = None
    kind: str = "timeseries"
    interval: str | None = None
    """The least that a rate is taken over, for what is rare."""


class Row(NamedTuple):
    title: str
    panels: Sequence[Panel]


class Dashboard(NamedTuple):
    name: str
    title: str
    about: str
    rows: Sequence[Row]
    job: str | None = None
    """The processes that can be chosen among, as `$instance`."""


def rate(metric: str, by: str = "", of: str = "") -> str:
    """How much a counter grows a second: a sum, or one for each value of `by`; `of` matches labels."""
    grouping = f" by ({by}) " if by else ""
    matchers = f"{{{of}}}" if of else ""
    return f"sum{grouping}(rate({metric}{matchers}[$__rate_interval]))"


def ratio(part: str, whole: str, of: str = "") -> str:
    """How much one counter grows by how much another does."""
    return f"{rate(part, of=of)} / {rate(whole, of=of)}"


def quantiles(histogram: str, of: str = "") -> list[Series]:
    """p50, p90 and p99."""
    buckets = rate(f"{histogram}_bucket", "le", of)
    return [Series(f"p{percent}", f"histogram_quantile({percent / 100:g}, {buckets})") for percent in (50, 90, 99)]


def write(dashboard: Dashboard) -> dict[str, Any]:
    """Grafana's JSON."""
    return {
        "uid": f"stream-rec-{dashboard.name}",
        "title": f"stream_rec: {dashboard.title}",
        "description": dashboard.about,
        "tags": ["stream_rec"],
        "schemaVersion": 41,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "links": [_links()],
        "annotations": {"list": [_models()]},
        "templating": {"list": [_instances(dashboard.job)] if dashboard.job else []},
        "panels": list(_placed(dashboard.rows)),
    }


def _links() -> dict[str, Any]:
    """The way to the other dashboards, at the same time."""
    plain = {"url": "", "icon": "dashboard", "tooltip": "", "asDropdown": False, "targetBlank": False}
    return {"type": "dashboards", "title": "", "tags": ["stream_rec"], "keepTime": True, "includeVars": False, **plain}


def _models() -> dict[str, Any]:
    """A mark where a worker took a model into service: the metric's value is the time."""
    return {
        "name": "Models",
        "datasource": SOURCE,
        "enable": True,
        "hide": False,
        "iconColor": "purple",
        "target": {"refId": "Anno", "expr": "1000 * stream_rec_model_loaded_timestamp_seconds"},
        "titleFormat": "a model was read",
        "textFormat": "by {{instance}}",
        "useValueForTime": True,
    }


def _instances(job: str) -> dict[str, Any]:
    return {
        "type": "query",
        "name": "instance",
        "label": job,
        "datasource": SOURCE,
        "query": {"qryType": 1, "query": f'label_values(up{{job="{job}"}}, instance)', "refId": "instance"},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def _placed(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """The panels row by row, those of a row equally wide; ids in reading order."""
    number = down = 0
    for row in rows:
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "gridPos": {"x": 0, "y": down, "w": WIDTH, "h": 1},
            "panels": [],
        }
        down += 1
        width = WIDTH // len(row.panels)
        height = LOW if all(panel.kind == "stat" for panel in row.panels) else HEIGHT
        for at, panel in enumerate(row.panels):
            number += 1
            place = {"x": at * width, "y": down, "w": width, "h": height}
            yield {"id": number, "gridPos": place, **_panel(panel)}
        down += height


def _panel(panel: Panel) -> dict[str, Any]:
    written = {
        "type": panel.kind,
        "title": panel.title,
        "description": f"{panel.about}\n\n**When it looks bad:** {panel.remedy}",
        "datasource": SOURCE,
        "fieldConfig": {"defaults": _look(panel), "overrides": list(_overrides(panel.series))},
        "options": OPTIONS[panel.kind],
        "targets": [
            {"refId": chr(ord("A") + at), "expr": one.expr, "legendFormat": one.legend}
            for at, one in enumerate(panel.series)
        ],
    }
    return written if panel.interval is None else {**written, "interval": panel.interval}


OPTIONS: dict[str, dict[str, Any]] = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "background",
        "graphMode": "none",
        "justifyMode": "auto",
        "textMode": "auto",
        "wideLayout": True,
        "showPercentChange": False,
        "percentChangeColorMode": "standard",
        "orientation": "auto",
    },
    "state-timeline": {
        "showValue": "never",
        "rowHeight": 0.9,
        "mergeValues": True,
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False, "calcs": []},
        "tooltip": {"mode": "single", "sort": "none"},
    },
}


def _look(panel: Panel) -> dict[str, Any]:
    """Numbers are coloured by the limit alone; lines by their names, with the limit as a dashed line."""
    limit, lines = panel.limit, panel.kind == "timeseries"
    below, above = (GOOD, BAD) if limit is None or not limit.below else (BAD, GOOD)
    steps: list[dict[str, Any]] = [{"value": None, "color": below if limit else PLAIN}]
    if limit is not None:
        steps.append({"value": limit.value, "color": above})
    look: dict[str, Any] = {
        "unit": panel.unit,
        "color": {"mode": "palette-classic-by-name" if lines else "thresholds"},
        "thresholds": {"mode": "absolute", "steps": steps},
    }
    if lines:
        look["min"] = 0
        look["custom"] = {"fillOpacity": 10, "thresholdsStyle": {"mode": "dashed" if limit else "off"}}
    return look


def _overrides(series: Sequence[Series]) -> Iterator[dict[str, Any]]:
    for name, colour in (named for one in series for named in _colours(one.legend)):
        fixed = {"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}
        yield {"matcher": {"id": "byName", "options": name}, "properties": [fixed]}


def _colours(legend: str) -> Iterator[tuple[str, str]]:
    """The names that a legend takes, with their colours; the first label decides."""
    if legend in COLOURS:
        yield legend, COLOURS[legend]
    label = re.search(r"{{(\w+)}}", legend)
    if label:
        for value, colour in COLOURS_OF_VALUES.get(label[1], {}).items():
            yield legend.replace(label[0], value), colour
