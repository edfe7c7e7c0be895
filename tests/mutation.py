"""`python -m tests.mutation MODULE`: changes one place of a module at a time and runs its tests, which should fail.

The mutations are Cosmic Ray's. Tests run in forks of a process that has torch imported, on a copy of the tree; a module
with functions that numba compiles is run without its compiler. The operator `|` is left alone: it stands in annotations
most of the time.
"""

import itertools
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import click
import cosmic_ray.plugins
import pytest
from cosmic_ray.ast import ast_nodes, get_ast_from_path
from cosmic_ray.mutating import use_mutation
from rich.console import Console

from stream_rec.runtime.progress import bars

ROOT = Path(__file__).parents[1]
MODULES = {
    "window": ("window.py", ["test_window.py", "test_examples_in_docstrings.py", "pipeline/test_keeper.py"]),
    "kv_cache": ("serving/kv_cache.py", ["serving/test_kv_cache.py"]),
    "scheduler": ("serving/scheduler.py", ["serving/test_scheduler.py"]),
    "online_statistics": (
        "features/online_statistics.py",
        ["features/test_online_statistics.py", "serving/test_statistics_snapshot.py"],
    ),
    "forward_decay": (
        "features/forward_decay.py",
        ["features/test_forward_decay.py", "features/test_online_statistics.py"],
    ),
    "candidate_features": (
        "ranking/candidate_features.py",
        ["ranking/test_candidate_features.py", "ranking/test_blend.py"],
    ),
    "metrics": ("evaluation/metrics.py", ["evaluation/test_metrics.py"]),
    "evaluate": ("evaluation/evaluate.py", ["evaluation/test_evaluation_report.py", "evaluation/test_evaluate.py"]),
    "keeper": ("pipeline/keeper.py", ["pipeline/test_keeper.py", "evaluation/test_prequential.py"]),
}
"""Each module, below stream_rec, and its tests, below tests."""
TIMEOUT_S = 300
"""After which a mutation counts as noticed: it loops."""
CONTEXT = multiprocessing.get_context("forkserver")
PRELOADED = ["torch", "pytest", "hypothesis", "polars", "scipy.sparse", "transformers", "numba", "prometheus_client"]


class Mutation(NamedTuple):
    operator: str
    occurrence: int
    line: int


def mutations(path: Path) -> list[Mutation]:
    tree = get_ast_from_path(path)
    found = []
    for name in cosmic_ray.plugins.operator_names():
        operator = cosmic_ray.plugins.get_operator(name)
        if operator.arguments() or "BinaryOperator_BitOr" in name:
            continue
        places = (place for node in ast_nodes(tree) for place in operator().mutation_positions(node))
        found += [Mutation(name, number, place[0][0]) for number, place in enumerate(places)]
    return found


def fails(copy: Path, tests: list[str]) -> bool:
    """Whether the tests fail on the tree at `copy`."""
    process = CONTEXT.Process(target=_test, args=(copy, tests))
    process.start()
    process.join(TIMEOUT_S)
    if process.is_alive():
        process.kill()
        process.join()
        return True
    return process.exitcode != 0


def _test(copy: Path, tests: list[str]) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in ("stream_rec", "tests")]:
        del sys.modules[name]  # of the tree itself: this module's own imports
    os.chdir(copy)
    sys.path.insert(0, str(copy))
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    sys.exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *(f"tests/{name}" for name in tests)]))


@click.command()
@click.argument("module", type=click.Choice(sorted(MODULES)))
@click.option("--sample", default=0, help="how many mutations, drawn at random  [default: all]")
@click.option("--seed", default=0, show_default=True, help="of the sample")
def main(module: str, sample: int, seed: int) -> None:
    """Prints the mutations of MODULE that no test notices, and the score as a JSON object in the last line."""
    name, tests = MODULES[module]
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    if "@_compiled" in (ROOT / "stream_rec" / name).read_text():
        os.environ["NUMBA_DISABLE_JIT"] = "1"  # it would be compiled anew for each mutation
    CONTEXT.set_forkserver_preload(PRELOADED)
    copy = Path(tempfile.mkdtemp(prefix="stream-rec-mutation-"))
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for file in filter(None, listed.split("\0")):
            (copy / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, copy / file)
        path = copy / "stream_rec" / name
        if fails(copy, tests):
            raise click.ClickException(f"the tests of {module} fail without a mutation")
        every = mutations(path)
        drawn = random.Random(seed).sample(every, min(sample, len(every))) if sample else every
        source, survived = path.read_text().splitlines(), 0
        with bars(Console(stderr=True), stay=True) as say:
            for number, mutation in enumerate(sorted(drawn, key=lambda one: one.line), 1):
                operator = cosmic_ray.plugins.get_operator(mutation.operator)()
                with use_mutation(path, operator, mutation.occurrence) as (_, mutated):
                    noticed = fails(copy, tests)
                if not noticed:
                    survived += 1
                    changed = [
                        new.strip()
                        for old, new in itertools.zip_longest(source, mutated.splitlines(), fillvalue="")
                        if old != new
                    ]
                    click.echo(f"{name}:{mutation.line}: {source[mutation.line - 1].strip()}  ->  {changed[:1]}")
                say(f"{survived} of {number} survived", number, len(drawn))
    finally:
        shutil.rmtree(copy)
    score = round(1 - survived / len(drawn), 3)
    click.echo(
        json.dumps(
            {"module": module, "mutations": len(every), "tried": len(drawn), "survived": survived, "score": score}
        )
    )


if __name__ == "__main__":
    main()
