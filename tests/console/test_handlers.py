"""The console over real HTTP, beside no broker: what is refused before Kafka is asked."""

import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from stream_rec import config
from stream_rec.config import Settings
from stream_rec.console.handlers import app
from stream_rec.console.state import ConsoleState

CLICK = {"user_id": "u1", "item_id": "i2", "event_type": "view"}
NOWHERE = "127.0.0.1:1"
Client = TestClient[Any, Any]


@pytest.fixture
def settings() -> Settings:
    return config.load_settings(bootstrap_servers=NOWHERE)


@pytest.fixture(params=[True], ids=["may send"])
async def client(settings: Settings, request: pytest.FixtureRequest) -> AsyncIterator[Client]:
    following = ConsoleState(settings)
    following._feed.ready.set()
    async with TestClient(TestServer(app(settings, following, request.param))) as made:
        yield made


def own(client: Client) -> dict[str, str]:
    """The headers of a request by the page itself."""
    return {"Origin": str(client.make_url("/"))[:-1], "Content-Type": "application/json"}


async def refused(client: Client, status: int, headers: dict[str, str], event: Any = None) -> str:
    """Why an event is refused."""
    async with client.post("/api/events", json=CLICK if event is None else event, headers=headers) as answer:
        assert answer.status == status
        return str((await answer.json())["error"])


@pytest.mark.parametrize("client", [False], indirect=True, ids=["read-only"])
async def test_a_read_only_console_sends_nothing(client: Client) -> None:
    assert "--allow-events" in await refused(client, 403, own(client))


async def test_nothing_is_sent_for_another_site(client: Client) -> None:
    good = own(client)
    for wrong in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Content-Type": "text/plain"}):
        assert "own page" in await refused(client, 403, good | wrong)
    del good["Origin"]
    await refused(client, 403, good)


FOREIGN = (
    *("evil.example", "evillocalhost", "localhost.evil.example", "127.0.0.1.evil.example", "127.0.0.1.nip.io"),
    *("10.0.0.1", "192.168.1.1", "169.254.169.254", "[fe80::1]", "[fc00::1]", "2130706433"),
)
OURS = ("localhost", "LOCALHOST:8090", "me.localhost", "127.0.0.1", "127.9.9.9:80", "[::1]", "[::1]:8090")
NO_HOST = (
    *("[::1", "[", "]", ":", "", " ", "a:b", "localhost:99999999", "localhost:", "localhost/x", "evil@localhost"),
    *("localhost, evil.example", "localhost#", "localhost?", "[localhost]", "%00", "\u00e9.localhost", "//localhost"),
)


async def test_a_foreign_name_that_points_here_is_refused(client: Client) -> None:
    for path in ("/", "/api/user?id=u1", "/recommendations/u1"):
        async with client.get(path, headers={"Host": "evil.example"}) as answer:
            assert answer.status == 403
    for host in FOREIGN:
        async with client.get("/healthz", headers={"Host": host}) as answer:
            assert answer.status == 403, host
    for host in OURS:
        async with client.get("/healthz", headers={"Host": host}) as answer:
            assert answer.status == 200, host


async def test_a_malformed_host_or_origin_is_refused_without_a_traceback(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    for host in NO_HOST:
        async with client.get("/healthz", headers={"Host": host}) as answer:
            assert answer.status == 400, host
    good = own(client)
    for origin in ("http://[", "http://a:b", "://", "[", "", good["Origin"] + "/", good["Origin"][:-1] + "x", "%"):
        await refused(client, 403, good | {"Origin": origin})
    assert caplog.text == ""


async def test_an_error_of_ours_is_one_json_and_no_text_of_the_request_in_the_log(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(name: str, *_: object) -> None:
        raise ArithmeticError(name)

    monkeypatch.setattr("stream_rec.console.handlers.held", fail)
    async with client.get("/api/user?id=secret-user") as answer:
        assert (answer.status, "internal error" in (await answer.json())["error"]) == (500, True)
    assert "ArithmeticError: a request fails with status 500" in caplog.text
    assert "secret-user" not in caplog.text


async def test_an_id_that_is_no_text_is_refused(client: Client) -> None:
    for path in (
        "/api/user?id=%FF%FE",
        "/api/item?id=%ED%A0%80",
        "/recommendations/%ED%A0%80",
        f"/recommendations/{'x' * 300}",
    ):
        async with client.get(URL(path, encoded=True)) as answer:
            assert answer.status in (400, 404, 503), path  # some of these are text with the sign for what is none
            assert "error" in await answer.json()


async def test_other_methods_are_refused_as_json(client: Client) -> None:
    for path, status in (("/healthz", 200), ("/stream", 405)):
        async with client.head(path) as answer:
            assert answer.status == status
    for method in ("OPTIONS", "PUT", "DELETE", "TRACE"):
        async with client.request(method, "/healthz") as answer:
            assert (answer.status, "own page" in (await answer.json())["error"]) == (403, True)
        async with client.request(method, "/healthz", headers=own(client)) as answer:
            assert (answer.status, (await answer.json())["error"]) == (405, "Method Not Allowed")


@pytest.mark.parametrize(
    "event", [{}, CLICK | {"event_type": "erase"}, CLICK | {"item_id": ""}, CLICK | {"more": 1}, "text", [[]]]
)
async def test_only_an_event_of_a_known_type_is_sent(client: Client, event: Any) -> None:
    await refused(client, 400, own(client), event)


async def test_a_dead_broker_is_told_in_words(client: Client) -> None:
    assert "no Kafka broker answers" in await refused(client, 503, own(client))
    async with client.get("/recommendations/u1") as answer:
        assert (answer.status, "no Kafka broker answers" in (await answer.json())["error"]) == (503, True)


async def test_questions_without_sense_are_refused(client: Client) -> None:
    for path in ("user", "user?id=", f"user?id={'x' * 257}", "why", "item", "answer?partition=x&offset=1"):
        async with client.get(f"/api/{path}") as answer:
            assert answer.status == 400


async def test_why_needs_a_model(client: Client) -> None:
    async with client.get("/api/why?id=u1") as answer:
        assert (answer.status, "--model" in (await answer.json())["error"]) == (503, True)


async def test_headers_let_no_script_in_but_the_pages_own(client: Client) -> None:
    async with client.get("/") as answer:
        policy, page = answer.headers["Content-Security-Policy"], await answer.text()
    assert "default-src 'none'" in policy
    assert "'unsafe" not in policy
    assert "require-trusted-types-for 'script'" in policy
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)
    async with client.get("/healthz") as answer:
        assert (answer.status, answer.headers["X-Content-Type-Options"]) == (200, "nosniff")


async def test_while_it_starts_only_the_page_is_there(settings: Settings) -> None:
    async with TestClient(TestServer(app(settings, ConsoleState(settings), allow_events=False))) as client:
        for path, status in (("/", 200), ("/healthz", 503), ("/stream", 503), ("/recommendations/u", 503)):
            async with client.get(path) as answer:
                assert answer.status == status
