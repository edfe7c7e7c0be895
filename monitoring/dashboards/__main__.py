"""Writes every dashboard to the folder that Grafana loads; a test holds the files to this."""

import json
from pathlib import Path

from monitoring.dashboards.accuracy import ACCURACY
from monitoring.dashboards.agents import AGENTS
from monitoring.dashboards.engine import ENGINE
from monitoring.dashboards.overview import OVERVIEW
from monitoring.dashboards.panels import Dashboard, write

FOLDER = Path(__file__).parents[1] / "grafana" / "dashboards"
DASHBOARDS = (OVERVIEW, ACCURACY, ENGINE, AGENTS)


def text_of(dashboard: Dashboard) -> str:
    return json.dumps(write(dashboard), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for one in DASHBOARDS:
        (FOLDER / f"{one.name}.json").write_text(text_of(one))
