"""The real Prometheus, with the repository's rules, reading processes that a test has started."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from socket import socket
from typing import Any

import aiohttp
import yaml

from tests.e2e.kafka import until
from tests.monitoring import MONITORING

PACE = "500ms"
"""Of scraping and of evaluating rules."""


class Prometheus:
    """Asks a running Prometheus over its HTTP interface."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url = url
        self._session = session

    async def get(self, path: str, **given: str) -> Any:
        """What `/api/v1/PATH` answers."""
        async with self._session.get(f"{self._url}/api/v1/{path}", params=given) as response:
            answer = await response.json()
        assert answer["status"] == "success", (given, answer)
        return answer["data"]

    async def values(self, expression: str) -> list[float]:
        """The numbers of an expression's result; what is no number (0 by 0) shows nothing and is left out."""
        result = (await self.get("query", query=expression))["result"]
        numbers = [float(series["value"][1]) for series in result]
        return [number for number in numbers if number == number]

    async def ready(self) -> bool:
        try:
            async with self._session.get(f"{self._url}/-/ready") as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False


@asynccontextmanager
async def prometheus(folder: Path, targets: Mapping[str, str]) -> AsyncIterator[Prometheus]:
    """Runs Prometheus in `folder`; `targets` are host:port of each job of the repository's configuration."""
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    configure(folder, targets)
    with (folder / "prometheus.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            "prometheus",
            "--config.file=prometheus.yml",
            "--storage.tsdb.path=data",
            f"--web.listen-address={address}",
            cwd=folder,
            stderr=log,
        )
    try:
        async with aiohttp.ClientSession() as session:
            running = Prometheus(f"http://{address}", session)
            async with asyncio.timeout(120):
                await until(running.ready)
            yield running
    finally:
        process.kill()
        await process.wait()


def configure(folder: Path, targets: Mapping[str, str]) -> None:
    """The repository's configuration at the test's pace, with the test's processes for those that DNS would name."""
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": PACE, "evaluation_interval": PACE}
    assert {job["job_name"] for job in config["scrape_configs"]} == targets.keys()
    config["scrape_configs"] = [
        {"job_name": job, "static_configs": [{"targets": [target]}]} for job, target in targets.items()
    ]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    for name in config["rule_files"]:
        rules = yaml.safe_load((MONITORING / name).read_text())
        for group in rules["groups"]:
            group.pop("interval", None)
        (folder / name).write_text(yaml.safe_dump(rules))
