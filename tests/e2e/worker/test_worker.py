import asyncio
import os
import signal
import time
from asyncio.subprocess import PIPE
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from socket import socket
from typing import NamedTuple

import msgspec
import pytest
from aiokafka import ConsumerRecord
from msgspec.structs import replace

from stream_rec.config import Settings, environment
from stream_rec.kafka import topics
from stream_rec.kafka.publish import publish_items
from stream_rec.messages import Item, Recommendation, encode, read_recommendation
from stream_rec.models import model_store
from stream_rec.serving.engine import Engine, Limits
from tests.batches import UNREADABLE
from tests.e2e.kafka import BOMB, Sent, alter, produce, produce_batch, read_topic, settings_for, until
from tests.e2e.process import COMMAND, Part
from tests.e2e.windows import all_done, answers, stream, windows, write
from tests.tiny import CAPACITY, STRIDE, TEXT_DIM, items, tiny_model, window

pytestmark = pytest.mark.e2e

Start = Callable[[str, Settings], Part]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    model_store.save(tiny_model(), path)
    return path


@pytest.fixture
async def settings(make_settings: Callable[..., Settings], model: Path) -> Settings:
    made = make_settings(model=model, capacity=CAPACITY, stride=STRIDE, coalesce=False)
    await topics.create(made)
    return made


class Serving(NamedTuple):
    settings: Settings
    part: Part


@pytest.fixture(scope="module")
def serving(bootstrap: str, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A worker that the tests of single records share; each test has users of its own."""
    folder = tmp_path_factory.mktemp("worker")
    settings = settings_for(folder, bootstrap_servers=bootstrap, model=model, capacity=CAPACITY, stride=STRIDE)
    asyncio.run(topics.create(settings))
    part = Part("worker", settings, folder / "worker.log")
    part.wait_for("worker ready: 2 partitions")
    yield Serving(settings, part)
    part.kill()


async def newest(settings: Settings, user: str) -> Recommendation | None:
    """The newest committed answer to a user, once everything written is answered; None after an erasure."""
    await all_done(settings)
    records = await read_topic(settings, settings.recommendations_topic)
    value = [record.value for record in records if record.key == user.encode()][-1]
    return None if value is None else read_recommendation(value)


async def dead_from(settings: Settings, topic: str) -> list[ConsumerRecord]:
    records = await read_topic(settings, settings.dead_letter_topic)
    return [record for record in records if dict(record.headers)["topic"] == topic.encode()]


async def test_every_window_has_one_answer_and_it_is_the_engines(
    make_settings: Callable[..., Settings], model: Path, start: Start, tmp_path: Path
) -> None:
    limits = {"capacity": CAPACITY, "stride": STRIDE, "batch_windows": 8}
    settings = make_settings(model=model, coalesce=False, partitions=1, audit_share=1, **limits)
    await topics.create(settings)
    made = windows(users=7, rounds=2 * CAPACITY)
    await write(settings, made)
    part = start("worker", settings)
    await all_done(settings)
    engine = Engine.load(model, tmp_path, Limits(stride=STRIDE), "cpu")
    want = [engine.step([one]).recommendations[0] for one in made]
    got = await answers(settings)
    assert [(one.user_id, one.seq, one.offset) for one in got] == [(one.user_id, one.seq, one.offset) for one in want]
    for one, other in zip(got, want, strict=True):
        assert one.model == engine.version
        assert [ranked.score for ranked in one.items] == pytest.approx([r.score for r in other.items], abs=2e-3)
    metrics = part.metrics()
    assert metrics["stream_rec_windows_read_total"] == len(made)
    assert metrics[f'stream_rec_recommendations_total{{model="{engine.version}"}}'] == len(made)
    assert metrics['stream_rec_tokens_total{kind="append"}'] > 0
    assert metrics["stream_rec_latency_seconds_count"] == len(made)
    assert metrics["stream_rec_audited_windows_total"] == len(made)
    assert metrics["stream_rec_audit_changed_total"] == 0
    assert 0 < metrics["stream_rec_audit_largest_difference"] < 1e-4

    def compared() -> tuple[float, float]:
        """Events that were compared with a prediction, and those that it was too late for."""
        names = ("stream_rec_evaluated_events_total{", "stream_rec_too_late_events_total{")
        evaluated, too_late = (sum(n for key, n in part.metrics().items() if key.startswith(name)) for name in names)
        return evaluated, too_late

    assert compared() == (0, len(made) - 7)  # all of them had arrived before the worker began
    last = islice(stream(users=7), len(made), len(made) + 7)
    await write(settings, [msgspec.structs.replace(window, arrived=time.time() + 60) for window in last])
    await all_done(settings)
    assert compared() == (7, len(made) - 7)
    assert part.stop() == 0


async def test_a_killed_worker_loses_and_doubles_nothing(settings: Settings, start: Start) -> None:
    made = windows(users=20, rounds=30)
    await write(settings, made[:300])
    part = start("worker", settings)

    async def some() -> bool:
        return len(await answers(settings)) > 50

    await until(some)
    writing = asyncio.create_task(write(settings, made[300:]))
    part.kill()
    await writing
    start("worker", settings)
    await all_done(settings)
    seen = Counter((one.user_id, one.seq) for one in await answers(settings))
    assert seen == Counter((one.user_id, one.n) for one in made)


async def test_with_next_to_nothing_to_spend_a_step_costs_no_more_and_nothing_is_lost(
    make_settings: Callable[..., Settings], model: Path, start: Start
) -> None:
    limits = {"capacity": CAPACITY, "stride": STRIDE, "token_budget": CAPACITY + 1, "batch_windows": 50}
    settings = make_settings(model=model, coalesce=False, **limits)
    await topics.create(settings)
    made = windows(users=20, rounds=2 * CAPACITY)
    await write(settings, made)
    part = start("worker", settings)

    async def some() -> bool:
        return len(await answers(settings)) > 50

    await until(some)
    part.kill()
    second = start("worker", settings)
    await all_done(settings)
    seen = Counter((one.user_id, one.seq) for one in await answers(settings))
    assert seen == Counter((one.user_id, one.n) for one in made)
    metrics = second.metrics()
    tokens = sum(value for name, value in metrics.items() if name.startswith("stream_rec_tokens_total"))
    assert tokens <= (CAPACITY + 1) * metrics["stream_rec_step_seconds_count"]


async def test_partitions_move_when_a_second_worker_joins_and_leaves(settings: Settings, start: Start) -> None:
    made = windows(users=20, rounds=30)
    first = start("worker", settings)
    first.wait_for("worker ready: 2 partitions")
    await write(settings, made[:200])
    second = start("worker", settings)
    second.wait_for("worker ready: 1 partitions")
    await write(settings, made[200:400])
    await all_done(settings)
    assert second.stop() == 0
    await write(settings, made[400:])
    await all_done(settings)
    seen = Counter((one.user_id, one.seq) for one in await answers(settings))
    assert seen == Counter((one.user_id, one.n) for one in made)


async def test_a_worker_that_slept_through_its_session_publishes_nothing_more(settings: Settings, start: Start) -> None:
    made = windows(users=20, rounds=30)
    sleeper = start("worker", settings)
    sleeper.wait_for("worker ready")
    writing = asyncio.create_task(write(settings, made[:300]))
    await writing
    sleeper.signal(signal.SIGSTOP)
    other = start("worker", settings)
    other.wait_for("worker ready: 2 partitions")
    await all_done(settings)
    sleeper.signal(signal.SIGCONT)
    await write(settings, made[300:])
    await all_done(settings)
    seen = Counter((one.user_id, one.seq) for one in await answers(settings))
    assert seen == Counter((one.user_id, one.n) for one in made)


async def test_a_burst_may_be_answered_by_its_newest_window_never_by_none(
    make_settings: Callable[..., Settings], model: Path, start: Start
) -> None:
    settings = make_settings(model=model, capacity=CAPACITY, stride=STRIDE)
    await topics.create(settings)
    made = windows(users=3, rounds=40)
    await write(settings, made)
    part = start("worker", settings)
    await all_done(settings)
    got = await answers(settings)
    assert len(got) < len(made)
    assert {one.user_id: one.seq for one in got} == {"u0": 40, "u1": 40, "u2": 40}
    assert part.metrics()["stream_rec_windows_coalesced_total"] == len(made) - len(got)


async def test_an_erased_user_has_a_tombstone(serving: Serving) -> None:
    settings, _ = serving
    await write(settings, [window("goes", 1, ["i1"]), window("stays", 1, ["i1"])])
    await produce(settings, [Sent(b"goes", None)], settings.windows_topic)
    assert await newest(settings, "goes") is None
    assert await newest(settings, "stays") is not None


async def test_what_is_no_window_becomes_a_dead_letter_and_the_stream_goes_on(serving: Serving) -> None:
    settings, _ = serving
    good = window("good", 1, ["i1"])
    wrong = encode(good).replace(b'"n":1', b'"n":9')
    bad = [Sent(b"good", value) for value in (b"{", wrong, b"\xff")] + [Sent(b"other", encode(good)), Sent(b"", b"x")]
    await produce(settings, [*bad, Sent(b"good", encode(good))], settings.windows_topic)
    answer = await newest(settings, "good")
    assert answer is not None
    assert answer.seq == 1
    dead = await dead_from(settings, settings.windows_topic)
    assert Counter((one.key, one.value) for one in dead) == Counter(bad)
    assert {dict(one.headers)["reason"] for one in dead} == {b"unreadable window"}


async def test_an_event_of_an_unknown_item_is_answered_and_counted(serving: Serving) -> None:
    settings, part = serving
    await write(settings, [window("curious", 2, ["i1", "nobody knows it"])])
    answer = await newest(settings, "curious")
    assert answer is not None
    assert len(answer.items) == 20
    assert part.metrics()["stream_rec_unknown_item_events_total"] == 1
    assert part.page("/readyz") == part.page("/healthz") == (200, "ok\n")


async def test_items_are_added_changed_and_withdrawn_while_it_serves(serving: Serving) -> None:
    settings, part = serving

    async def names(seq: int) -> set[str]:
        await write(settings, [window("shopper", seq, ["i1"] * seq)])
        answer = await newest(settings, "shopper")
        return {ranked.item_id for ranked in answer.items} if answer else set()

    async def metric(name: str, value: float) -> None:
        async def reached() -> bool:
            return part.metrics().get(name) == value

        await until(reached)

    await publish_items([Item("new", title="a new thing", category="c1", vector=items()[1].vector)], settings)
    await metric("stream_rec_item_upserts_total", 1)
    assert "new" in await names(1)
    await produce(settings, [Sent(b"new", None)], settings.items_topic)
    await metric('stream_rec_items{available="no"}', 1)
    assert "new" not in await names(2)
    bad = [
        Sent(b"x", b"{"),
        Sent(b"x", encode(Item("y", title="key and id differ"))),
        Sent(b"z", encode(Item("z", vector=[1.0]))),
        Sent(b"", encode(Item("n"))),
    ]
    await produce(settings, bad, settings.items_topic)

    async def buried() -> bool:
        return len(await dead_from(settings, settings.items_topic)) == len(bad)

    await until(buried)
    dead = await dead_from(settings, settings.items_topic)
    assert Counter((one.key, one.value) for one in dead) == Counter(bad)
    reasons = ("unreadable item", "key is not the item_id", "invalid field", "empty key")
    counted = [part.metrics()[f'stream_rec_worker_dead_letters_total{{reason="{reason}"}}'] for reason in reasons]
    assert counted == [1, 1, 1, 1]


@pytest.mark.parametrize("topic", ["windows_topic", "items_topic"])
async def test_a_record_that_kafkas_client_cannot_read_is_a_dead_letter(serving: Serving, topic: str) -> None:
    settings, part = serving
    name = getattr(settings, topic)
    offset = await produce_batch(settings, UNREADABLE, name)

    async def letters() -> list[ConsumerRecord]:
        reason = ("reason", b"unreadable record")
        return [letter for letter in await dead_from(settings, name) if reason in letter.headers]

    async def buried() -> bool:
        return bool(await letters())

    await until(buried)
    (letter,) = await letters()
    assert (letter.key, letter.value, dict(letter.headers)["offset"]) == (b"u", b"v", b"%d" % offset)
    await write(settings, [window(f"behind it in {topic}", 1, ["i1"])])
    assert await newest(settings, f"behind it in {topic}") is not None
    assert part.page("/readyz") == (200, "ok\n")


@pytest.mark.parametrize("topic", ["windows_topic", "items_topic"])
async def test_a_batch_that_unfolds_to_more_than_kafka_takes_is_a_dead_letter_cut_to_size(
    serving: Serving, topic: str
) -> None:
    settings, part = serving
    name = getattr(settings, topic)
    await produce(settings, [BOMB], name, compression_type="gzip")

    async def letters() -> list[ConsumerRecord]:
        return [letter for letter in await dead_from(settings, name) if letter.key == BOMB.key]

    async def buried() -> bool:
        return bool(await letters())

    await until(buried)
    (letter,) = await letters()
    assert letter.value == BOMB.value[: settings.max_message_bytes - len(BOMB.key)]
    assert dict(letter.headers)["truncated"] == b"from 4 and %d bytes" % len(BOMB.value)
    await write(settings, [window(f"after {topic}", 1, ["i1"])])
    assert await newest(settings, f"after {topic}") is not None
    assert part.page("/readyz") == (200, "ok\n")


async def test_dead_letters_of_items_that_kafka_refuses_end_nothing(
    make_settings: Callable[..., Settings], model: Path, start: Start
) -> None:
    settings = make_settings(model=model, capacity=CAPACITY, stride=STRIDE)
    await topics.create(settings)
    part = start("worker", settings)
    part.wait_for("worker ready")
    await alter(settings, settings.dead_letter_topic, max_message_bytes="4000")
    await produce(settings, [Sent(b"large", b"{" * 5_000), Sent(b"small", b"{")], settings.items_topic)

    async def buried() -> bool:
        return len(await dead_from(settings, settings.items_topic)) == 2

    await until(buried)
    letters = await dead_from(settings, settings.items_topic)
    cut = {(letter.key, letter.value): dict(letter.headers).get("truncated") for letter in letters}
    assert cut == {(None, b""): b"from 5 and 5000 bytes", (b"small", b"{"): None}
    await publish_items([Item("after", vector=items()[1].vector)], settings)

    async def added() -> bool:
        return part.metrics()["stream_rec_item_upserts_total"] == 1

    await until(added)


async def test_an_item_of_impossible_numbers_is_a_dead_letter_and_changes_nobodys_answer(serving: Serving) -> None:
    settings, part = serving
    known = items()[2]

    async def answered(user: str) -> dict[str, float]:
        """The same for each user: an item that the catalogue does not know teaches nothing."""
        await write(settings, [window(user, 1, ["nobody knows it"])])
        answer = await newest(settings, user)
        return {ranked.item_id: ranked.score for ranked in answer.items} if answer else {}

    calm = await answered("before")
    vectors = [[1e300] * TEXT_DIM, [1e39] + [0.0] * (TEXT_DIM - 1), [0.0] * TEXT_DIM, [1e-300] * TEXT_DIM]
    bad = [Sent(b"poison", encode(Item("poison", vector=vector))) for vector in vectors]
    bad += [Sent(b"i2", encode(replace(known, vector=vectors[0]))), Sent(b"dear", b'{"item_id":"dear","price":1e300}')]
    await produce(settings, bad, settings.items_topic)

    async def refused() -> list[ConsumerRecord]:
        return [one for one in await dead_from(settings, settings.items_topic) if Sent(one.key, one.value) in bad]

    async def all_refused() -> bool:
        return len(await refused()) == len(bad)

    await until(all_refused)
    assert await answered("after") == pytest.approx(calm, abs=2e-3)
    assert len(calm) == 20
    assert Counter((one.key, one.value) for one in await refused()) == Counter(bad)
    said = {dict(one.headers)["error"].decode() for one in await refused()}
    assert any("vector has the length" in one for one in said)
    assert any("price" in one for one in said)
    assert part.page("/readyz") == part.page("/healthz") == (200, "ok\n")


@pytest.mark.parametrize("topic", ["recommendations_topic", "dead_letter_topic"])
async def test_a_topic_that_takes_less_than_it_may_be_given_is_named(
    make_settings: Callable[..., Settings], model: Path, start: Start, topic: str
) -> None:
    settings = make_settings(model=model)
    await topics.create(settings)
    await alter(settings, getattr(settings, topic), max_message_bytes="100000")
    part = start("worker", settings)
    assert part.wait() == 2
    assert f"topic {getattr(settings, topic)} takes records of up to 100000 bytes" in part.said
    assert len(part.said.splitlines()) == 1


async def test_an_answer_that_kafka_has_come_to_refuse_is_a_dead_letter_and_the_others_are_given(
    make_settings: Callable[..., Settings], model: Path, start: Start
) -> None:
    settings = make_settings(model=model, capacity=CAPACITY, stride=STRIDE, coalesce=False, partitions=1)
    await topics.create(settings)
    part = start("worker", settings)
    await write(settings, [window("a", 1, ["i1"])])
    await all_done(settings)
    (answer,) = await read_topic(settings, settings.recommendations_topic)
    usual = len(answer.key) + len(answer.value)
    long = "l" * 256  # twice in a record: in its key and its value
    await alter(settings, settings.recommendations_topic, max_message_bytes=str(usual + 400))
    await write(settings, [window(user, 1, ["i1"]) for user in ("b", long, "c")])
    await all_done(settings)
    assert {one.user_id for one in await answers(settings)} == {"a", "b", "c"}
    (letter,) = await dead_from(settings, settings.windows_topic)
    assert letter.key == long.encode()
    assert dict(letter.headers)["reason"] == b"answer too large"
    assert part.metrics()['stream_rec_transactions_total{outcome="failed"}'] >= 1
    assert part.page("/readyz") == (200, "ok\n")


async def test_an_item_that_the_model_cannot_take_is_a_dead_letter_and_others_go_on(serving: Serving) -> None:
    """It was trained on vectors of another length than its text encoder gives; the other one is too large."""
    settings, part = serving
    large = Item("large", vector=items()[1].vector, attributes={"text": "x" * settings.max_item_bytes})
    bad = [Sent(b"plain", encode(Item("plain", title="an ordinary shoe"))), Sent(b"large", encode(large))]
    await produce(settings, bad, settings.items_topic)

    async def refused() -> dict[bytes | None, bytes]:
        dead = [one for one in await dead_from(settings, settings.items_topic) if Sent(one.key, one.value) in bad]
        return {one.key: dict(one.headers)["error"] for one in dead}

    async def all_refused() -> bool:
        return len(await refused()) == len(bad)

    await until(all_refused)
    said = await refused()
    assert said[b"plain"].startswith(
        b"invalid field: vector is missing: the model was trained on vectors of 12 numbers"
    )
    assert said[b"large"].startswith(b"too large")
    await write(settings, [window("patient", 1, ["i1"])])
    assert await newest(settings, "patient") is not None
    assert part.page("/readyz") == (200, "ok\n")


async def test_a_worker_without_its_text_encoder_and_cache_serves_and_says_so(
    make_settings: Callable[..., Settings], start: Start, tmp_path: Path
) -> None:
    made = tiny_model()
    lost = replace(made.config, text_encoder=str(tmp_path / "no encoder"))
    model_store.save(made._replace(config=lost), tmp_path / "model")
    (tmp_path / "file").write_text("")
    places = {"model": tmp_path / "model", "cache_dir": tmp_path / "file" / "cache"}
    settings = make_settings(capacity=CAPACITY, stride=STRIDE, **places)
    await topics.create(settings)
    new = Item("new", title="a new thing", vector=items()[1].vector)
    await publish_items([Item("plain", title="an ordinary shoe"), new], settings)
    part = start("worker", settings)
    part.wait_for("worker ready")
    await write(settings, [window("u", 1, ["i1"])])
    answer = await newest(settings, "u")
    assert answer is not None
    assert "new" in {ranked.item_id for ranked in answer.items}

    async def told() -> bool:
        """At its turn of a second."""
        return "encoded" in part.page("/readyz")[1]

    await until(told)
    says = "ok, but the cache of text vectors can't be used; the texts of 1 items can't be encoded\n"
    assert part.page("/readyz") == (200, says)
    metrics = part.metrics()
    assert metrics['stream_rec_failures_total{part="text encoder"}'] >= 1
    assert metrics['stream_rec_failures_total{part="text cache"}'] >= 1
    assert part.stop() == 0
    assert part.said.count("cache of text vectors") == 1
    assert "Traceback" not in part.said


async def test_the_memory_is_rebuilt_after_a_restart(
    make_settings: Callable[..., Settings], model: Path, start: Start, tmp_path: Path
) -> None:
    settings = make_settings(model=model, capacity=CAPACITY, stride=STRIDE, coalesce=False, partitions=1)
    await topics.create(settings)
    made = windows(users=5, rounds=6)
    await write(settings, made[:-1])
    part = start("worker", settings)
    await all_done(settings)
    part.kill()
    await write(settings, made[-1:])
    start("worker", settings)
    await all_done(settings)
    engine = Engine.load(model, tmp_path, Limits(stride=STRIDE), "cpu")
    want = [engine.step([one]).recommendations[0] for one in made][-1]
    got = (await answers(settings))[-1]
    assert [ranked.score for ranked in got.items] == pytest.approx([r.score for r in want.items], abs=2e-3)


async def test_the_memory_goes_on_from_the_snapshot_of_a_clean_end_until_somebody_is_erased(
    make_settings: Callable[..., Settings], model: Path, start: Start, tmp_path: Path
) -> None:
    settings = make_settings(model=model, capacity=CAPACITY, stride=STRIDE, coalesce=False, partitions=1)
    await topics.create(settings)
    made, kept = windows(users=5, rounds=6), tmp_path / "memory.safetensors"
    await write(settings, made[:-1])
    first = start("worker", settings)
    await all_done(settings)
    assert first.stop() == 0
    assert kept.stat().st_mode & 0o077 == 0
    await write(settings, made[-1:])
    second = start("worker", settings)
    await all_done(settings)
    assert "goes on from a snapshot" in second.said
    assert second.metrics()["stream_rec_windows_learned_total"] == 0
    engine = Engine.load(model, tmp_path, Limits(stride=STRIDE), "cpu")
    want = [engine.step([one]).recommendations[0] for one in made][-1]
    got = (await answers(settings))[-1]
    assert [ranked.score for ranked in got.items] == pytest.approx([r.score for r in want.items], abs=2e-3)
    await produce(settings, [Sent(b"u0", None)], settings.windows_topic)
    await all_done(settings)
    assert not kept.exists()
    assert second.stop() == 0
    assert b"u0" not in kept.read_bytes()
    assert b"u1" in kept.read_bytes()


async def test_with_a_memory_a_partition_an_answer_is_a_function_of_its_partition(
    make_settings: Callable[..., Settings], model: Path, start: Start, tmp_path: Path
) -> None:
    """Though the worker that gave the first ones was killed, whatever it had learned and not committed."""
    settings = make_settings(model=model, capacity=CAPACITY, stride=STRIDE, coalesce=False, memory="own")
    await topics.create(settings)
    made = windows(users=9, rounds=20)
    part = start("worker", settings)
    part.wait_for("worker ready")
    await write(settings, made[:90])

    async def some() -> bool:
        return len(await answers(settings)) > 20

    await until(some)
    part.kill()
    await write(settings, made[90:])
    start("worker", settings)
    await all_done(settings)
    engine = Engine.load(model, tmp_path, Limits(stride=STRIDE), "cpu")
    named = {(one.user_id, one.n): one for one in made}
    records = await read_topic(settings, settings.recommendations_topic)
    assert len(records) == len(made)
    assert len({record.partition for record in records}) > 1
    for record in sorted(records, key=lambda record: (record.partition, record.offset)):
        got = read_recommendation(record.value)
        want = engine.step([named[got.user_id, got.seq]], [record.partition]).recommendations[0]
        assert [ranked.score for ranked in got.items] == pytest.approx([r.score for r in want.items], abs=2e-4)


async def test_a_worker_learns_from_what_others_serve(settings: Settings, start: Start) -> None:
    made = windows(users=9, rounds=10)
    await write(settings, made[:30])
    parts = [start("worker", settings), start("worker", settings)]
    for part in parts:
        part.wait_for("worker ready: 1 partitions")
    await write(settings, made[30:])
    await all_done(settings)

    async def learned() -> bool:
        """Answered here, or only learned: both count what was answered before the partitions were shared out."""
        said = [part.metrics() for part in parts]
        return all(
            one["stream_rec_windows_read_total"] + one["stream_rec_windows_learned_total"] >= len(made) for one in said
        )

    await until(learned)
    assert all(part.metrics()["stream_rec_windows_learned_total"] > 0 for part in parts)


async def test_what_a_person_can_put_right_is_one_line_and_exit_code_2(
    settings: Settings, model: Path, tmp_path: Path
) -> None:
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "config.json").write_text('{"format": 99}')
    with socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        mistakes = {
            f"no model in {tmp_path}": {"model": tmp_path},
            f"has format 99, this version reads 3 to {model_store.FORMAT}": {"model": strange},
            f"cannot serve metrics on 127.0.0.1:{port}": {"worker_metrics_port": port},
            "does not exist: run 'stream-rec topics create'": {"items_topic": "never-created"},
        }
        for says, changes in mistakes.items():
            wrong = settings.model_copy(update=changes)
            given = os.environ | environment(wrong)
            running = await asyncio.create_subprocess_exec(*COMMAND, "worker", env=given, stderr=PIPE)
            _, said = await running.communicate()
            lines = [line for line in said.decode().splitlines() if " INFO " not in line]
            assert (running.returncode, len(lines)) == (2, 1), said.decode()
            assert says in lines[0]
