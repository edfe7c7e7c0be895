"""Whatever a panel or a rule asks, the running pipeline answers through the real Prometheus."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path

import pytest

from stream_rec.config import Settings
from stream_rec.kafka import topics
from stream_rec.messages import ERASE, Item, encode
from stream_rec.models import model_store
from stream_rec.ranking.ranker import FEWEST
from tests.e2e.kafka import Sent, produce, sent
from tests.e2e.process import Part
from tests.e2e.prometheus import prometheus
from tests.monitoring import DASHBOARDS, compared, questions, selectors
from tests.tiny import CAPACITY, ITEMS, PER_USER, STRIDE, items, tiny_model

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="Prometheus (Debian's package) is not installed"),
]

USERS = 12
NOTHING = {
    'absent(up{job="agents"})': "they are there",
    'absent(up{job="worker"})': "it is there",
    "sum(rate(stream_rec_events_total[1h] offset 1h))": "an hour ago there was nothing",
    "stream_rec_drift{}": "the model was never validated",
    "max by (of) (stream_rec_drift)": "the model was never validated",
    'stream_rec_transactions_total{outcome="failed"}': "no transaction fails",
    'sum(rate(stream_rec_transactions_total{outcome="failed"}[15m])) / sum(rate(stream_rec_transactions_total[15m]))': (
        "no transaction fails"
    ),
}
"""What may be without data in a run in which all goes well, and why."""


def asked() -> set[str]:
    """Every series that is selected, and every expression as far as it is no comparison."""
    parsed = [question.parsed for question in questions()]
    texts = [f"{one.name}{one.matchers}" for each in parsed for one in selectors(each)]
    texts += [one.prettify() for each in parsed for one in compared(each)]
    return {" ".join(text.split()) for text in texts}


def record(item: Item) -> Sent:
    return Sent(item.item_id.encode(), encode(item))


@asynccontextmanager
async def traffic(settings: Settings) -> AsyncIterator[None]:
    """Events and items, good and bad, as long as the context lasts. There is not room for all users in the cache."""

    async def go_on() -> None:
        for n in count():
            users = ("daily", f"u{n % USERS}", f"u{(n + 1) % USERS}")
            views = [sent(user, f"i{n * 7 % ITEMS}", event_type=("view", "cart")[n % 2]) for user in users]
            erasure = [sent("gone"), sent("gone", event_type=ERASE, item_id=None)]
            await produce(settings, [*views, *erasure, sent("lost", "nobody knows it"), Sent(b"u1", b"{")])
            item = Item("another each time", title=f"edition {n}", vector=items()[n % ITEMS].vector)
            await produce(settings, [record(item), Sent(b"x", b"{")], settings.items_topic)
            await asyncio.sleep(0.1)

    writing = asyncio.create_task(go_on())
    yield
    assert not writing.done()
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)


async def test_all_that_panels_and_rules_ask_has_an_answer(
    make_settings: Callable[..., Settings], start: Callable[[str, Settings], Part], tmp_path: Path
) -> None:
    model = tmp_path / "model"
    model_store.save(tiny_model(), model)
    cache = {"kv_cache_gb": USERS // 2 * PER_USER / 1e9}
    compare = {"audit_share": 1, "index": "ann", "recall_share": 1}
    settings = make_settings(model=model, watch_model_s=0.1, capacity=CAPACITY, stride=STRIDE, **cache, **compare)
    await topics.create(settings)
    await produce(settings, map(record, items(ITEMS + FEWEST)[ITEMS:]), settings.items_topic)
    parts = {name: start(name, settings) for name in ("agents", "worker")}
    targets = {name: part.wait_for(r"metrics on http://(\S+)/metrics")[1] for name, part in parts.items()}
    for name, part in parts.items():
        part.wait_for(f"{name} ready")
    pending = asked()
    assert NOTHING.keys() <= pending
    async with prometheus(tmp_path, targets) as running, traffic(settings):
        model.rename(tmp_path / "elsewhere")  # which is refused, and an alert fires
        with suppress(TimeoutError):
            async with asyncio.timeout(120):
                while not pending <= NOTHING.keys():
                    answers = {text: await running.values(text) for text in pending}
                    pending = {text for text, values in answers.items() if not values}
        assert pending <= NOTHING.keys()
        rules = [rule for group in (await running.get("rules"))["groups"] for rule in group["rules"]]
        assert {rule["name"]: rule.get("lastError") for rule in rules if rule["health"] != "ok"} == {}
        for variable in (one for dashboard in DASHBOARDS.values() for one in dashboard["templating"]["list"]):
            series = variable["query"]["query"].removeprefix("label_values(").removesuffix(f", {variable['name']})")
            assert await running.get(f"label/{variable['name']}/values", **{"match[]": series}) == [
                targets[variable["label"]]
            ]
