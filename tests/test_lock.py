"""Packages are installed from the lock files in `requirements`, by version and hash."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = {name: (ROOT / "requirements" / name).read_text() for name in ("all.txt", "build.txt")}
PINNED = r"(?m)^([\w.-]+)==(\S+)((?: ; .*?)?)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n"


def wanted() -> Iterator[tuple[str, Requirement]]:
    """Each lock file with the requirements that it must pin."""
    extras = PROJECT["project"]["optional-dependencies"]
    groups = PROJECT["dependency-groups"]
    installed = [
        *PROJECT["project"]["dependencies"],
        *(one for name, extra in extras.items() if name != "bench" for one in extra),
    ]
    for text in (*installed, *groups["models"], *groups["measure"]):
        if not text.startswith("stream-rec["):
            yield "all.txt", Requirement(text)
    for text in (*groups["build"], *PROJECT["build-system"]["requires"]):
        yield "build.txt", Requirement(text)


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize(("lock", "requirement"), list(wanted()), ids=str)
def test_each_requirement_is_pinned_to_a_version_that_it_accepts(lock: str, requirement: Requirement) -> None:
    versions = [version for name, version, *_ in re.findall(PINNED, LOCKS[lock]) if name == canonical(requirement.name)]
    assert versions, "run 'make lock'"
    assert all(requirement.specifier.contains(version) for version in versions), "run 'make lock'"


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_file_holds_pins_with_hashes_and_names_no_host(lock: str) -> None:
    rest = re.sub(PINNED, "", LOCKS[lock])
    assert all(line.startswith("    #") for line in rest.splitlines())
    assert "://" not in LOCKS[lock]


@pytest.mark.parametrize("path", ["Makefile", "Dockerfile", ".ci/run"])
def test_everything_that_is_installed_is_pinned(path: str) -> None:
    text = (ROOT / path).read_text().replace("\\\n", "")
    text = text.replace("$(INSTALL)", "uv pip install")
    for line in text.splitlines():
        if re.search(r"\bpip install\b", line) and not line.startswith("INSTALL :="):
            assert "--require-hashes" in line or "--no-deps --build-constraints" in line, line
