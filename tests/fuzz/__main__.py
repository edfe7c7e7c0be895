"""`python -m tests.fuzz`: see docs/development.md."""

import json
import logging
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import click
from rich.console import Console

from stream_rec.local.broker import Broker
from stream_rec.runtime.progress import bars
from tests.fuzz import files, folders, records
from tests.fuzz.broker import Pipeline
from tests.fuzz.lane import BAD, Lane, Result

KINDS = {"records": 0.2, "files": 0.15, "folders": 0.3, "broker": 0.35}
"""Share of the time."""
PREPARE = {"records": records.prepare, "files": files.prepare, "folders": folders.prepare}


def tried(kind: str, seed: int, numbers: Iterator[int], keep: Path) -> Iterator[tuple[Result, int]]:
    """The results of cases, and how many records, files or folders each was."""
    if kind == "broker":
        with tempfile.TemporaryDirectory(prefix="stream-rec-fuzz-") as home, Broker() as broker:
            pipeline = Pipeline(Path(home), keep, broker.bootstrap)
            yield from (pipeline.run(seed, number) for number in numbers)
        return
    multiprocessing.set_forkserver_preload(["tests.fuzz.warm"])
    lane = Lane(kind, PREPARE[kind], keep, apart=kind == "folders")
    try:
        yield from ((lane.run(seed, number), 1) for number in numbers)
    finally:
        lane.close()


@click.command()
@click.option("--seconds", default=600.0, show_default=True, help="how long")
@click.option("--seed", default=0, show_default=True, help="of all cases")
@click.option("--only", type=click.Choice(sorted(KINDS)), help="one kind of case")
@click.option("--case", "case", help="one case alone, by the name under which it was kept: KIND-SEED-NUMBER")
@click.option("--keep", default="fuzz", show_default=True, type=click.Path(path_type=Path), help="where bad cases go")
def main(seconds: float, seed: int, only: str | None, case: str | None, keep: Path) -> None:
    """Feeds mutated records, files and model folders to their readers; exit code 1 for any that does harm."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    counts: Counter[str] = Counter()
    if case is not None:
        kind, written, number = case.split("-")
        for result, size in tried(kind, int(written), iter([int(number)]), keep):
            _count(counts, kind, result, size)
    else:
        shares = KINDS if only is None else {only: 1.0}
        with bars(Console(stderr=True), stay=True) as say:
            for kind, share in shares.items():
                began = time.monotonic()
                for result, size in tried(kind, seed, count(), keep):
                    _count(counts, kind, result, size)
                    spent = time.monotonic() - began
                    bad = sum(counts[outcome] for outcome in BAD)
                    say(f"{kind}: {counts[kind]} tried, {bad} bad in all", min(spent, share * seconds), share * seconds)
                    if spent > share * seconds:
                        break
    summary = {"records": counts["records"] + counts["broker"]}
    summary |= {name: counts[name] for name in ("folders", "files", *BAD)}
    click.echo(json.dumps(summary))
    sys.exit(any(counts[outcome] for outcome in BAD))


def _count(counts: Counter[str], kind: str, result: Result, size: int) -> None:
    counts[kind] += size
    counts[result.outcome] += 1
    if result.outcome in BAD:
        reason = result.detail.strip().splitlines()[-1][:200] if result.detail else ""
        click.echo(f"{result.case}: {result.outcome}: {reason}", err=True)


if __name__ == "__main__":
    main()
