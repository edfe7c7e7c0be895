"""`python -m tests.chaos`: see docs/guarantees.md."""

import asyncio
import json
import logging
import shutil
import sys
import tempfile
from pathlib import Path

import click
from rich.console import Console

from stream_rec.errors import UserError
from stream_rec.runtime.progress import bars
from tests.chaos.bugs import BUGS
from tests.chaos.log import logged, simulated
from tests.chaos.plan import plan
from tests.chaos.run import run


@click.command()
@click.option("--kills", default=20, show_default=True, help="how many processes are killed; the rest in proportion")
@click.option("--seed", default=0, show_default=True, help="of the log, of what spoils it, and of the plan")
@click.option("--events", type=click.Path(path_type=Path), help="a log to feed  [default: a simulated shop's]")
@click.option("--columns", default="", help="what its columns are, like those of 'stream-rec train'")
@click.option("--rate", default=25.0, show_default=True, help="events a second")
@click.option("--bug", type=click.Choice(sorted(BUGS)), help="puts this into the processes: it must be caught")
@click.option("--keep", type=click.Path(path_type=Path), help="folder for Kafka's data and what the processes say")
def main(
    kills: int, seed: int, events: Path | None, columns: str, rate: float, bug: str | None, keep: Path | None
) -> None:
    """Disturbs the pipeline in every way and compares what it leaves with a calm run; exit code 1 for any fault."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # it tells of every attempt while the broker is away
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    console = Console(stderr=True)
    home = keep or Path(tempfile.mkdtemp(prefix="stream-rec-chaos-"))
    try:
        log = simulated(seed) if events is None else logged(events, columns)
        with bars(console, stay=True) as say:
            summary = asyncio.run(
                run(log, plan(seed, kills), home, seed=seed, rate=rate, say=say, bug=BUGS.get(bug or ""))
            )
    except UserError as error:
        raise click.ClickException(str(error)) from None
    finally:
        if keep is None:
            shutil.rmtree(home, ignore_errors=True)
    click.echo(json.dumps(summary._asdict()))
    sys.exit(bool(summary.lost + summary.duplicated + summary.wrong + summary.out_of_order))


if __name__ == "__main__":
    main()
