"""A model beside the one that serves: a shadow worker on the same windows, and `replay --diff` on the same events."""

import asyncio
import json
import re
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from stream_rec.cli.main import cli
from stream_rec.config import Settings, environment
from stream_rec.evaluation.model_comparison import overlap
from stream_rec.kafka import topics
from stream_rec.messages import Event, Recommendation, Window, encode
from stream_rec.models import model_store
from stream_rec.serving.engine import Engine, Limits
from tests.e2e.kafka import Sent, produce, read_topic
from tests.e2e.process import Part
from tests.e2e.windows import all_done, answers, windows, write
from tests.tiny import CAPACITY, STRIDE, items, tiny_model

pytestmark = pytest.mark.e2e

OPERATIONS = Path(__file__).parents[3] / "docs/operations.md"
USERS, ROUNDS = 6, 2 * CAPACITY


def shadow_of(settings: Settings, model: Path) -> Settings:
    """The same with what docs/operations.md says, under names of this test's."""
    (said,) = re.findall(r"^cat > shadow.toml <<'END'\n(.*?)^END$", OPERATIONS.read_text(), re.DOTALL | re.MULTILINE)
    unique = settings.worker_group
    named = {name: f"{unique}-{text}" for name, text in tomllib.loads(said).items() if isinstance(text, str)}
    numbers = dict.fromkeys(tomllib.loads(said).keys() - named.keys(), 0)  # ports: any that is free
    return settings.model_copy(update=named | numbers | {"model": model})


def firsts(answers: list[Recommendation]) -> dict[tuple[str, int], list[str]]:
    return {(one.user_id, one.seq): [ranked.item_id for ranked in one.items[:10]] for one in answers}


def event_of(window: Window) -> Sent:
    last = window.events[-1]
    event = Event(window.user_id, last.event_type, last.timestamp, last.item_id)
    return Sent(window.user_id.encode(), encode(event))


async def test_a_shadow_answers_all_that_is_answered_beside_it_and_changes_nothing_there(
    make_settings: Callable[..., Settings], start: Callable[[str, Settings], Part], tmp_path: Path
) -> None:
    other = tiny_model()
    with torch.no_grad():
        for weight in other.encoder.parameters():
            weight.mul_(0.5)
    versions = model_store.save(tiny_model(), tmp_path / "model"), model_store.save(other, tmp_path / "newer")
    given = {"capacity": CAPACITY, "stride": STRIDE, "coalesce": False, "partitions": 1}
    settings = make_settings(model=tmp_path / "model", **given)
    shadow = shadow_of(settings, tmp_path / "newer")
    await topics.create(settings)
    assert set(await topics.create(shadow)) == {shadow.recommendations_topic, shadow.dead_letter_topic}
    made = windows(USERS, ROUNDS)
    half = len(made) // 2
    await write(settings, made[:half])
    serving = start("worker", settings)
    await all_done(settings)
    beside = start("worker", shadow)
    await write(settings, made[half:])
    for one in (settings, shadow):
        await all_done(one)

    said = [await answers(one) for one in (settings, shadow)]
    for version, mine in zip(versions, said, strict=True):
        assert Counter((one.user_id, one.seq) for one in mine) == Counter((one.user_id, one.n) for one in made)
        assert {one.model for one in mine} == {version}
    alone = Engine.load(settings.model, tmp_path, Limits(stride=STRIDE), "cpu")
    for got, window in zip(said[0], made, strict=True):
        want = alone.step([window]).recommendations[0]
        assert [ranked.score for ranked in got.items] == pytest.approx([r.score for r in want.items], abs=2e-3)
    for part in (serving, beside):
        assert part.metrics().get('stream_rec_transactions_total{outcome="failed"}', 0) == 0
        assert part.said.count("worker ready") == 1

    await produce(settings, [Sent(b"u0", None)], settings.windows_topic)  # an erasure
    for one in (settings, shadow):
        await all_done(one)
        last = (await read_topic(one, one.recommendations_topic))[-1]
        assert (last.key, last.value) == (b"u0", None)

    await produce(settings, [Sent(one.item_id.encode(), encode(one)) for one in items()], settings.items_topic)
    await produce(settings, map(event_of, made))
    models = ("--model", str(settings.model), "--model", str(shadow.model))
    command = ["replay", "--from-topic", settings.events_topic, *models, "--diff", "--json"]
    done = await asyncio.to_thread(CliRunner().invoke, cli, command, env=environment(settings))
    assert done.exit_code == 0, (done.output, done.exception)
    found = json.loads(done.stdout.splitlines()[-1])
    mine, theirs = map(firsts, said)
    shared = [overlap(mine[event], theirs[event]) for event in mine]
    assert (found["answers"], found["predictions"]) == (len(made), len(made) - USERS)
    assert found["overlap_at_10"] == pytest.approx(sum(shared) / len(shared), abs=5e-3)
    assert 0 < found["overlap_at_10"] < 1
