"""Logins, certificates and rights, on a Kafka that insists on them."""

import asyncio
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from stream_rec import erasure
from stream_rec.client import Recommendations, latest, titles
from stream_rec.config import Settings
from stream_rec.data.source import Period
from stream_rec.errors import UserError
from stream_rec.evaluation.baselines import Baselines
from stream_rec.kafka import topics
from stream_rec.kafka.access_control import PARTS, AclBinding, check_access, examine, on
from stream_rec.kafka.connection import access, connect
from stream_rec.kafka.publish import publish_items
from stream_rec.messages import Event, Item
from stream_rec.models import model_store
from stream_rec.replay import kafka_source
from stream_rec.replay.evaluation_consumer import following
from stream_rec.replay.producer import feed
from tests.e2e.kafka import settings_for, until
from tests.e2e.process import Part
from tests.e2e.secured import HOST, Secured, give, password_of, secured, take
from tests.tiny import CAPACITY, STRIDE, items, tiny_model

pytestmark = pytest.mark.e2e

Start = Callable[[str, Settings], Part]
USERS = 5
EVENTS = 40


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    with secured(tmp_path_factory.mktemp("secured")) as one:
        yield one


@pytest.fixture(scope="module")
def settings(kafka: Secured) -> Settings:
    """Of the administrator; each part has its rights, and the topics are there."""
    own = {"model": kafka.folder / "model", "capacity": CAPACITY, "stride": STRIDE, "coalesce": False}
    made = settings_for(kafka.folder, bootstrap_servers=kafka.plain, **own)
    asyncio.run(prepare(made))
    asyncio.run(topics.create(kafka.as_user(made, "operator")))
    return made


async def prepare(settings: Settings) -> None:
    async with connect(access(settings)) as admin:
        for part, needs in PARTS.items():
            await give(admin, part, *needs(settings))


async def test_all_parts_do_their_work_over_tls_as_users_with_no_more_than_their_rights(
    kafka: Secured, settings: Settings, start: Start, tmp_path: Path
) -> None:
    model_store.save(tiny_model(), settings.model)
    user = {part: kafka.as_user(settings, part) for part in PARTS}
    password = tmp_path / "password"
    password.write_text(password_of("worker") + "\n")
    in_a_file = {"kafka_password": None, "kafka_password_file": password, "kafka_sasl_mechanism": "PLAIN"}
    started = [
        start("agents", kafka.as_user(settings, "agents", log_level="debug", kafka_sasl_mechanism="PLAIN")),
        start("worker", kafka.as_user(settings, "worker", log_level="debug", **in_a_file)),
        start("console", user["console"]),
    ]
    assert await topics.check(user["operator"]) == []
    await publish_items([Item("new", title="a new one", vector=items()[1].vector)], user["catalogue"])
    events = [Event(f"u{n % USERS}", "view", 1_000.0 + n, f"i{n % 20}") for n in range(EVENTS)]
    async with following(user["report"], Baselines(())) as follower:
        await feed(events, user["shop"])
        await follower.drain(60)
        summary = follower.summary()
    assert (summary["events"], summary["lost"]) == (EVENTS, 0)
    names = {"topic": settings.recommendations_topic, "group": "home-page"}
    async with Recommendations(**names, **access(user["service"])) as recommendations:
        heard = [await anext(recommendations) for _ in range(EVENTS)]
    assert {(answer.user_id, answer.seq) for answer in heard} == {
        (f"u{n}", seq) for n in range(USERS) for seq in range(1, EVENTS // USERS + 1)
    }
    assert (await latest("u0", user["recommend"])).seq == EVENTS // USERS
    assert (await titles(["new"], user["recommend"]))["new"].title == "a new one"
    page = started[2].wait_for(r"console on (http\S+)/")[1]
    assert (await asyncio.to_thread(urllib.request.urlopen, f"{page}/recommendations/u0")).status == 200
    log = await asyncio.to_thread(
        kafka_source.read, user["train"], settings.events_topic, Period(None, None), None, "", quiet
    )
    assert len(log.log.frame) == EVENTS
    assert await erasure.run("u1", user["eraser"], 30) == 0
    for part in started:
        listening = [one.laddr.ip for one in psutil.Process(part.pid).net_connections("inet") if one.status == "LISTEN"]
        assert set(listening) == {HOST}
        assert part.stop() == 0
        assert "Traceback" not in part.said
        assert "secret-of-" not in part.said


def quiet(*_: Any) -> None:
    """No progress."""


async def test_a_part_without_one_of_its_rights_says_which(kafka: Secured, settings: Settings) -> None:
    async with connect(access(settings)) as admin:
        for part, needs in PARTS.items():
            async with connect(access(kafka.as_user(settings, part))) as own:
                rights = needs(settings)
                for right in rights:
                    await take(admin, part, right)
                    await until(lambda own=own, rights=rights: denied(own, rights))
                    with pytest.raises(UserError) as raised:
                        await examine(own, *rights)
                    assert str(raised.value) == (
                        f"Kafka does not grant user {part!r}: {right}; see 'stream-rec topics acls'"
                    )
                    await give(admin, part, right)
                    await until(lambda own=own, rights=rights: granted(own, rights))


async def test_what_nobody_granted_is_refused(kafka: Secured, settings: Settings) -> None:
    with pytest.raises(UserError, match=f"does not grant user 'worker': Write on topic {settings.events_topic}"):
        await feed([Event("u", "view", 1_000.0, "i1")], kafka.as_user(settings, "worker"))
    with pytest.raises(UserError, match=f"does not grant user 'shop': Read on topic {settings.recommendations_topic}"):
        await latest("u", kafka.as_user(settings, "shop"))
    with pytest.raises(UserError, match="does not grant user 'service': Read on group another"):
        async with Recommendations(
            topic=settings.recommendations_topic, group="another", **access(kafka.as_user(settings, "service"))
        ):
            pass


async def test_a_worker_without_its_transactions_ends_in_one_line(
    kafka: Secured, settings: Settings, start: Start
) -> None:
    async with connect(access(settings)) as admin:
        transactions = PARTS["worker"](settings)[-1]
        await take(admin, "worker", transactions)
        worker = start("worker", kafka.as_user(settings, "worker"))
        assert await asyncio.to_thread(worker.wait) == 2
        await give(admin, "worker", transactions)
    assert worker.said.splitlines() == [
        f"stream-rec: Kafka does not grant user 'worker': {transactions}; see 'stream-rec topics acls'"
    ]


@pytest.mark.parametrize("command", ["agents", "worker", "recommend u"])
def test_a_wrong_password_is_one_line_without_it_and_exit_code_2(
    kafka: Secured, settings: Settings, start: Start, command: str
) -> None:
    user = command.split()[0]
    part = start(command, kafka.as_user(settings, user, kafka_password="not-the-secret", log_level="debug"))
    assert part.wait() == 2
    (line,) = [line for line in part.said.splitlines() if " DEBUG " not in line]
    assert f"refuses user '{user}': check the user, the password and STREAM_REC_KAFKA_SASL_MECHANISM" in line
    assert "not-the-secret" not in part.said


MUTUAL = {"kafka_security_protocol": "SSL"}
MISTAKES = {
    "a wrong password": ("sasl", {"kafka_password": "wrong", "kafka_sasl_mechanism": "PLAIN"}, "refuses user 'shop'"),
    "nobody": ("sasl", {"kafka_username": "nobody"}, "refuses user 'nobody'"),
    "another mechanism": ("sasl", {"kafka_sasl_mechanism": "SCRAM-SHA-256"}, "does not take SCRAM-SHA-256: set "),
    "another authority": (
        "sasl",
        {"kafka_ca_file": "another-ca.pem"},
        "certificate that is not trusted (unable to get",
    ),
    "the system's authorities": ("sasl", {"kafka_ca_file": None}, "certificate that is not trusted (unable to get"),
    "another name": ("localhost", {}, "certificate that is not trusted (Hostname mismatch"),
    "no TLS": ("sasl", {"kafka_security_protocol": "SASL_PLAINTEXT"}, "PROTOCOL=SASL_PLAINTEXT suit it?"),
    "neither TLS nor login": ("sasl", {"kafka_security_protocol": "PLAINTEXT"}, "PROTOCOL=PLAINTEXT suit it?"),
    "no login": ("sasl", {"kafka_security_protocol": "SSL"}, "PROTOCOL=SSL suit it?"),
    "TLS where there is none": ("plain", {}, "PROTOCOL=SASL_SSL suit it?"),
    "no certificate": ("mutual", MUTUAL, "wants a certificate that it trusts from us: set STREAM_REC_KAFKA_CERT_FILE"),
}


@pytest.mark.parametrize(("where", "changes", "says"), MISTAKES.values(), ids=MISTAKES.keys())
async def test_what_keeps_us_out_is_one_line(
    kafka: Secured, tmp_path: Path, where: str, changes: dict[str, Any], says: str
) -> None:
    address = kafka.sasl.replace(HOST, "localhost") if where == "localhost" else getattr(kafka, where)
    placed = {name: kafka.folder / value if str(value).endswith(".pem") else value for name, value in changes.items()}
    outside = kafka.as_user(settings_for(tmp_path), "shop", bootstrap_servers=address, **placed)
    with pytest.raises(UserError) as raised:
        await check_access(access(outside), *on("Write", outside.events_topic))
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


async def test_a_certificate_of_our_own_is_a_login(kafka: Secured, settings: Settings) -> None:
    own = {"kafka_cert_file": kafka.folder / "client.pem", "kafka_key_password_file": kafka.folder / "key-password"}
    changes = {"bootstrap_servers": kafka.mutual, "kafka_security_protocol": "SSL", **own}
    assert await topics.check(kafka.as_user(settings, "nobody", **changes)) == []


async def granted(admin: Any, rights: tuple[AclBinding, ...]) -> bool:
    try:
        await examine(admin, *rights)
    except UserError:
        return False
    return True


async def denied(admin: Any, rights: tuple[AclBinding, ...]) -> bool:
    return not await granted(admin, rights)
