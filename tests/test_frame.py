"""What stands outside the package keeps to what stands inside: names, versions, reasons, commands, links."""

import ast
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml
from check_jsonschema import main as check_jsonschema
from click.testing import CliRunner

from stream_rec.config import PREFIX, Settings, environment_name, load_settings
from stream_rec.kafka.access_control import PARTS, AclBinding
from stream_rec.kafka.record_batches import UNREADABLE_BATCH, UNREADABLE_RECORD
from stream_rec.local.java import KAFKA_VERSION

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
FRAME = [
    *DOCUMENTS,
    *(path for path in (ROOT / "monitoring").rglob("*") if path.is_file() and path.suffix != ".pyc"),
    *(ROOT / "deploy").rglob("*.yaml"),
    *(ROOT / name for name in ("Dockerfile", "docker-compose.yml", "Makefile", ".ci/run")),
]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]
README = (ROOT / "README.md").read_text()


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FRAME, ids=relative)
def test_every_variable_that_is_named_is_a_setting(path):
    known = {environment_name(setting) for setting in Settings.model_fields} | {PREFIX + "CONFIG"}
    assert set(re.findall(rf"{PREFIX}[A-Z][A-Z0-9_]*", path.read_text())) <= known


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_every_test_that_is_named_is_there(path):
    for file, name in re.findall(r"`(tests/\S+\.py)::(\w+)`", path.read_text()):
        assert re.search(rf"^(async )?def {name}\(", (ROOT / file).read_text(), re.MULTILINE), name


def test_containers_run_the_kafka_that_is_tested():
    assert SERVICES["kafka"]["image"] == f"apache/kafka:{KAFKA_VERSION}"


def test_images_that_are_not_built_here_are_pinned():
    for service in SERVICES.values():
        assert "build" in service or re.search(r":v?\d+\.\d+\.\d+$", service["image"])


def compose_is_valid(path: Path) -> bool:
    return CliRunner().invoke(check_jsonschema, ["--builtin-schema", "vendor.compose-spec", str(path)]).exit_code == 0


def test_the_schema_of_compose_accepts_the_file_and_would_see_a_slip(tmp_path):
    path = ROOT / "docker-compose.yml"
    assert compose_is_valid(path)
    slip = tmp_path / path.name
    slip.write_text(path.read_text().replace("start_period", "start_perod", 1))
    assert not compose_is_valid(slip)


def test_hadolint_has_nothing_to_say_about_the_dockerfile():
    hadolint = Path(sys.executable).with_name("hadolint")
    run = subprocess.run([hadolint, "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_services_wait_only_for_services_and_mount_only_what_there_is():
    for service in SERVICES.values():
        assert set(service.get("depends_on", {})) <= set(SERVICES)
        for mount in service.get("volumes", ()):
            source = mount.split(":")[0]
            assert source in COMPOSE["volumes"] or source == "./model" or (ROOT / source).exists(), mount


def test_metrics_in_a_container_can_be_read_from_outside_it():
    assert "STREAM_REC_METRICS_HOST=0.0.0.0" in (ROOT / "Dockerfile").read_text()


def reasons_in_the_code() -> Iterator[str]:
    """The fixed phrases in `Rejected("...", ...)`, `self._to_dead_letter(record, "...", ...)` and the like."""
    yield from (UNREADABLE_RECORD, UNREADABLE_BATCH)
    for path in (ROOT / "stream_rec").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Name(id="Rejected"), args=[ast.Constant(value=reason), *_]):
                    yield reason
                case ast.Call(
                    func=ast.Attribute(attr="_to_dead_letter" | "refuse"), args=[_, ast.Constant(value=reason), *_]
                ):
                    yield reason
                case ast.AnnAssign(target=ast.Name(id="reason"), value=ast.Constant(value=str(reason))):
                    yield reason


def test_docs_bad_input_lists_the_reasons_of_dead_letters():
    page = (ROOT / "docs/bad-input.md").read_text()
    assert set(re.findall(r"^\| `(.*?)` \|", page, re.MULTILINE)) == set(reasons_in_the_code())


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_links_lead_to_files_of_the_repository(path):
    for target, place in re.findall(r"\]\((?!https?://)([^)#]*)#?([^)]*)\)", path.read_text()):
        led_to = path.parent / target if target else path
        assert led_to.exists(), target
        assert not place or place in places(led_to), f"{target}#{place}"


def places(path: Path) -> list[str]:
    """What a link may name behind its #: the headings of a document, as GitHub writes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


def clients_of_kafka() -> Iterator[tuple[str, list[ast.keyword]]]:
    """Where the package makes one, and with which arguments."""
    for path in (ROOT / "stream_rec").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Name(id="AIOKafkaConsumer" | "AIOKafkaProducer" | "AIOKafkaAdminClient")):
                    yield f"{relative(path)}:{node.lineno}", node.keywords
                case ast.Call(func=ast.Name(id="make_consumer"), args=[login, *_]):
                    yield f"{relative(path)}:{node.lineno}", [ast.keyword(None, login), *node.keywords]
                case ast.Call(func=ast.Attribute(value=ast.Name(id="faust"), attr="App")):
                    (login,) = [one for one in node.keywords if one.arg == "broker_credentials"]
                    yield f"{relative(path)}:{node.lineno}", [ast.keyword(None, login.value)]


def test_every_consumer_is_made_by_make_consumer():
    made = [
        relative(path)
        for path in (ROOT / "stream_rec").rglob("*.py")
        if re.search(r"\bAIOKafkaConsumer\(\*?", path.read_text().replace("class Consumer(AIOKafkaConsumer)", ""))
    ]
    assert made == ["stream_rec/kafka/consumer.py"]


def test_every_client_of_kafka_takes_its_login_from_the_settings():
    clients = dict(clients_of_kafka())
    assert len(clients) >= 15
    for place, arguments in clients.items():
        spread = [ast.unparse(one.value) for one in arguments if one.arg is None]
        assert any("access" in one for one in spread), place
        assert "bootstrap_servers" not in [one.arg for one in arguments], place


def test_the_documented_rights_are_those_that_are_asked_for(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    table = re.findall(
        r"^\| `(\w+)` \| ([\w, ]+) \| (topic|group|transactional-id) (`.*`) \|$",
        (ROOT / "docs/security.md").read_text(),
        re.MULTILINE,
    )
    documented = {
        (part, AclBinding(operation, kind, name.rstrip("*"), name.endswith("*")))
        for part, operations, kind, names in table
        for operation in operations.split(", ")
        for name in re.findall(r"`([^`]+)`", names)
    }
    assert documented == {(part, right) for part, needs in PARTS.items() for right in needs(load_settings())}


EXAMPLES = [
    pytest.param(code, id=path.name)
    for path in DOCUMENTS
    for code in re.findall(r"^```python\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)
]


@pytest.mark.parametrize("code", EXAMPLES)
def test_examples_in_python_import_what_there_is(code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, name.name) for name in node.names)


def command_and_rest(words: list[str]) -> tuple[click.Command, list[str]]:
    command: click.Command = importlib.import_module("stream_rec.cli.main").cli
    while isinstance(command, click.Group):
        name, *words = words
        command = command.commands[name]
    return command, words


def test_containers_run_commands_that_there_are():
    for service in SERVICES.values():
        if "build" in service:
            assert command_and_rest(service["command"])[1] == []


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A checkout whose environment is there already, with stand-ins for the two programs that make calls."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    write_program(programs / "uv", 'echo "$@" >> installed; echo chatter; echo noise >&2')
    write_program(programs / "stream-rec", """printf '{"given": "%s"}\\n' "$*"; exit "${CODE:-0}" """)
    return tmp_path


def write_program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def make(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(["make", *words], cwd=folder, env=clean | environment, capture_output=True, text=True)


def test_make_demo_passes_its_options_on_and_prints_only_what_the_demo_prints(checkout):
    run = make(checkout, "demo", "ARGS=--seconds 45 --json")
    assert json.loads(run.stdout) == {"given": "demo --seconds 45 --json"}
    assert "chatter" in run.stderr
    assert run.returncode == 0


@pytest.mark.parametrize("changed", ["pyproject.toml", "requirements/all.txt"])
def test_make_demo_installs_again_only_when_what_is_needed_has_changed(checkout, changed):
    make(checkout, "demo")
    once = (checkout / "installed").read_text()
    make(checkout, "demo")
    assert (checkout / "installed").read_text() == once
    stamp = (checkout / ".venv/local.stamp").stat().st_mtime
    os.utime(checkout / changed, (stamp + 1, stamp + 1))
    make(checkout, "demo")
    assert (checkout / "installed").read_text() == once * 2


def test_make_demo_needs_no_installation_after_that_of_the_tests(checkout):
    make(checkout, "environment")
    make(checkout, "demo")
    assert re.findall(r"--extra (\w+)", (checkout / "installed").read_text()) == ["test"]


def test_make_demo_fails_when_the_demo_fails(checkout):
    assert make(checkout, "demo", CODE="3").returncode != 0


def test_ctrl_c_reaches_the_demo_whose_last_words_are_the_last(checkout):
    # The stand-in takes a moment to end, as the demo does: make itself stumbles over a child that ends at once.
    script = "trap 'sleep 0.5; echo the end; exit 0' INT; echo running; while :; do sleep 0.05; done"
    write_program(checkout / ".venv/bin/stream-rec", script)
    process = subprocess.Popen(
        ["make", "demo"], cwd=checkout, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
    )
    assert process.stdout.readline() == "running\n"
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does: to make and the demo alike
    stdout, stderr = process.communicate(timeout=30)
    assert stdout == "the end\n"
    assert "***" not in stderr


def test_an_interpreter_that_is_too_old_is_refused_in_one_line(checkout):
    shutil.rmtree(checkout / ".venv")
    write_program(checkout / "python3.10", "exit 1")
    run = make(checkout, "demo", "PYTHON=./python3.10")
    assert run.returncode != 0
    assert "Python 3.11 or later, and ./python3.10 is none" in run.stderr
    assert not (checkout / ".venv").exists()


def test_make_help_names_every_target(checkout):
    targets = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[0].split()
    assert all(f"make {target} " in make(checkout, "help").stdout for target in targets)


def test_ci_runs_the_tests_of_the_readme():
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text()
    assert "make test" in README
