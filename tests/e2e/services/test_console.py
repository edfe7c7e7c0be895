"""The console against the real pipeline, over real HTTP and in a real browser."""

import asyncio
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from shutil import which
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, async_playwright, expect

from stream_rec.config import Settings
from stream_rec.console.explain import command as explain
from stream_rec.kafka import topics
from stream_rec.kafka.publish import publish_items
from stream_rec.messages import Event, Item, encode, read_recommendation
from stream_rec.models import model_store
from tests.batches import UNREADABLE
from tests.e2e.kafka import Sent, produce, produce_batch, read_topic, sent, settings_for, until, waiting
from tests.e2e.process import Part
from tests.tiny import CAPACITY, STRIDE, TEXT_DIM, items, tiny_model

CHROMIUM = which("chromium")
pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]
browsing = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium")

SCRIPT = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
HOSTILE = (
    SCRIPT,
    "\u202eeman s'rotcetorp eht\u2066",
    "W" * 250,
    "a/b?c#d%2e%00\\'\"",
    "\u200b\ufeff\u0301\u0301\u0301",
)


class Running(NamedTuple):
    settings: Settings
    address: str
    read_only: str


async def drained(settings: Settings) -> None:
    """Returns when every event is answered."""

    async def done() -> bool:
        left = [
            await waiting(settings, settings.agents_group, settings.events_topic),
            await waiting(settings, settings.worker_group, settings.windows_topic),
        ]
        return left == [0, 0]

    await until(done)


@pytest.fixture(scope="module")
def running(bootstrap: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Agents, a worker and two consoles; some users with a past."""
    home = tmp_path_factory.mktemp("console")
    model_store.save(tiny_model(), home / "model")
    settings = settings_for(
        home,
        bootstrap_servers=bootstrap,
        model=home / "model",
        capacity=CAPACITY,
        stride=STRIDE,
        memory="own",
        coalesce=False,  # so that an answer knows the windows before it and no others
    )
    hostile = [
        Item(f"evil {at}", title=text, category=text, vector=[float(at == place) for place in range(TEXT_DIM)])
        for at, text in enumerate(HOSTILE)
    ]
    asyncio.run(topics.create(settings))
    asyncio.run(publish_items([*items(), *hostile], settings))
    commands = ("agents", "worker", "console --allow-events", "console")
    parts = [Part(command, settings, home / f"{number}.log") for number, command in enumerate(commands)]
    try:
        for part in parts:
            part.wait_for(r"\w+ ready")
        addresses = [part.wait_for(r"console on (http\S+)/")[1] for part in parts[2:]]
        now = time.time() - 3_600
        past = [sent(f"u{n % 3}", f"i{n * 7 % 40}", timestamp=now + 60 * n) for n in range(24)]
        past += [sent(user, f"evil {at}") for at, user in enumerate(HOSTILE)]
        past.append(Sent(b"u0", encode(Event("u0", SCRIPT[:60], time.time(), "i1"))))
        for topic in settings.topics[:4]:
            asyncio.run(produce_batch(settings, UNREADABLE, topic))
        asyncio.run(produce(settings, past))
        asyncio.run(drained(settings))
        yield Running(settings, *addresses)
    finally:
        for part in parts:
            part.kill()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        yield await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser, running: Running) -> AsyncIterator[Page]:
    """The page of the console that may send, with the stream there; a script's error fails the test."""
    context = await browser.new_context()
    opened = await context.new_page()
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("console", lambda said: errors.append(said.text) if "Security Policy" in said.text else None)
    await opened.goto(running.address)
    await expect(opened.locator("#state")).to_have_text("live")
    await expect(opened.locator("#rows tr")).to_have_count(14)
    yield opened
    await context.close()
    assert errors == []


def fetch(url: str) -> tuple[int, Any]:
    """Status and JSON."""
    try:
        with urllib.request.urlopen(url) as answer:  # noqa: S310 - our own
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


async def test_services_without_a_kafka_client_read_the_newest_answer(running: Running) -> None:
    records = await read_topic(running.settings, running.settings.recommendations_topic)
    newest = {record.key.decode(): json.loads(record.value) for record in records}
    assert fetch(f"{running.read_only}/recommendations/u1") == (200, newest["u1"])
    odd = HOSTILE[3]
    assert fetch(f"{running.read_only}/recommendations/{quote(odd, safe='')}") == (200, newest[odd])
    status, told = fetch(f"{running.read_only}/recommendations/nobody")
    assert (status, told) == (404, {"error": "there is no recommendation for this user"})
    assert fetch(f"{running.read_only}/healthz") == (200, {"status": "ok"})


async def test_explain_tells_why_the_published_answer_is_what_it_is(
    running: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        await asyncio.to_thread(explain.run, running.settings, explain.ExplainOptions("nobody", None, as_json=True))
        == 1
    )
    assert await asyncio.to_thread(explain.run, running.settings, explain.ExplainOptions("u2", None, as_json=True)) == 0
    told = json.loads(capsys.readouterr().out)
    records = await read_topic(running.settings, running.settings.recommendations_topic)
    published = [read_recommendation(record.value) for record in records if record.key == b"u2"][-1]
    assert [item["item_id"] for item in told["items"]] == [item.item_id for item in published.items]
    for item, theirs in zip(told["items"], published.items, strict=True):
        assert sum(item["parts"].values()) == pytest.approx(theirs.score, abs=2e-4)
    assert len(told["events"]) > 1
    assert "the published one's" in told["published"]
    assert told["words"][0].startswith("8 events in the window")


@browsing
async def test_a_sent_event_its_answer_and_why(page: Page) -> None:
    await page.get_by_role("tab", name="Send an event").click()
    for label, value in (("User id", "u1"), ("Item id", "i5")):
        await page.locator("#panel-send").get_by_label(label).fill(value)
    await page.locator("#panel-send select").select_option("cart")
    await page.get_by_role("button", name="Send", exact=True).click()
    await expect(page.locator("#sent .steps .done")).to_have_count(3, timeout=120_000)
    await expect(page.locator("#sent .steps")).to_contain_text("Answered after")
    await expect(page.locator("#rows tr").first).to_contain_text("item 5")
    await page.get_by_role("button", name="Look at the whole answer").click()
    await expect(page.locator("#user .name")).to_have_text("u1")
    await expect(page.locator("#ranked li")).to_have_count(20)
    await page.get_by_role("button", name="Explain this answer").click()
    await expect(page.locator("#why details").first).to_contain_text("sequence model", timeout=120_000)
    await expect(page.locator("#why")).to_contain_text("What moved this answer most")
    await expect(page.locator("#why .note")).to_contain_text("published")
    await page.locator("#ranked button").first.click()
    await expect(page.locator("#item h3")).to_have_count(6)
    await expect(page.locator("#item")).to_contain_text("Followed by")


@browsing
async def test_an_event_that_arrived_before_the_prediction_is_too_late(page: Page, running: Running) -> None:
    """Two events of a user in one batch: the answer to the first one can't be there before the second one is."""
    await produce(running.settings, [sent("u0", "i11"), sent("u0", "i12")])
    newest = page.locator("#rows tr").first
    await expect(newest).to_contain_text("item 12")
    await expect(newest.locator(".badge")).to_have_text("too late")
    await expect(newest).to_contain_text("came after the event:")
    await expect(page.locator("#accuracy")).to_contain_text("predicted too late")


@browsing
async def test_what_comes_from_topics_stays_text(page: Page, running: Running) -> None:
    await expect(page.locator("#rows")).to_contain_text("<script>document.title='owned'</script>")
    await expect(page.locator("#rows .refused")).to_have_count(1)
    for user in HOSTILE:
        await page.goto(f"{running.address}/#user/{quote(user, safe='')}")
        await expect(page.locator("#user .name")).to_have_text(user)
        await expect(page.locator("#ranked li")).not_to_have_count(0)
    assert await page.evaluate("document.querySelectorAll('img, main script').length") == 0
    assert await page.title() == "stream_rec"


@browsing
async def test_everything_is_reached_by_the_keyboard(page: Page) -> None:
    await page.keyboard.press("/")
    await page.keyboard.type("u2")
    await page.keyboard.press("Enter")
    await expect(page.locator("#user .name")).to_have_text("u2")
    await page.locator("#tab-user").focus()
    await page.keyboard.press("ArrowRight")
    await expect(page.locator("#tab-item")).to_be_focused()
    await expect(page.locator("#panel-item")).to_be_visible()
    await page.keyboard.press("ArrowLeft")
    await page.keyboard.press("p")
    await expect(page.locator("#pause")).to_have_text("Go on")
    await page.locator("#pause").focus()
    await page.keyboard.press("Tab")
    assert await page.evaluate("document.activeElement.closest('#rows') !== null")
    await page.keyboard.press("Enter")
    await expect(page.locator("#user .name")).not_to_have_text("u2")


@browsing
async def test_a_narrow_dark_phone_sees_everything_without_scrolling_aside(browser: Browser, running: Running) -> None:
    context = await browser.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark")
    page = await context.new_page()
    for address in ("", *(f"#user/{quote(user, safe='')}" for user in HOSTILE), "#item/evil 2"):
        await page.goto(f"{running.read_only}/{address}")
        await expect(page.locator("#state")).to_have_text("live")
        if address:
            await expect(page.locator("#item h3:visible, #user h3:visible").first).to_be_visible()
        assert await page.evaluate("document.documentElement.scrollWidth") == 390
    ground, ink = await page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    assert max(map(int, re.findall(r"\d+", ground))) < 60
    assert min(map(int, re.findall(r"\d+", ink))) > 200
    await page.get_by_role("tab", name="Send an event").click()
    await expect(page.locator("#sent")).to_contain_text("read-only")
    await expect(page.get_by_role("button", name="Send", exact=True)).to_be_disabled()
    await context.close()
