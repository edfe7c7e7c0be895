"""`stream-rec train --from-topic`: what stands in real topics becomes a model."""

import asyncio
import json
import math
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import msgspec
import pytest
from aiokafka import AIOKafkaProducer
from click.testing import CliRunner, Result

from stream_rec.cli.main import cli
from stream_rec.config import Settings, environment
from stream_rec.data import event_log
from stream_rec.data.simulator.storefront import Storefront
from stream_rec.data.source import Period
from stream_rec.errors import UserError
from stream_rec.kafka import topics
from stream_rec.kafka.publish import publish_items
from stream_rec.messages import ERASE, Event, Item, encode
from stream_rec.replay import kafka_source
from stream_rec.replay.kafka_source import read_catalogue
from stream_rec.training import lbfgs, model_card, train
from tests.batches import UNREADABLE
from tests.e2e.kafka import Sent, produce, produce_batch

pytestmark = pytest.mark.e2e

FRONT = Storefront(seed=1, products=312, shoppers=40)
EVENTS = list(islice(FRONT.events(), 400))
UNTIL = EVENTS[350].timestamp
ERASED = EVENTS[0].user_id
SMALL = ("--epochs", "1", "--width", "32", "--layers", "1", "--capacity", "8", "--threads", "1", "--no-refit")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few validation predictions, coarse weights, no picture: what they are worth is another test's."""
    monkeypatch.setattr(train, "VALIDATION_PREDICTIONS", 20)
    monkeypatch.setattr(lbfgs, "ITERATIONS", 3)
    monkeypatch.setattr(model_card, "draw_picture", lambda *_: None)


async def write(settings: Settings) -> None:
    """The topics of a shop, with what is no event, an erasure, a withdrawn item, and what was never committed."""
    await topics.create(settings)
    items = [
        Sent(item.item_id.encode(), encode(msgspec.structs.replace(item, vector=[float(len(item.title)), 1.0])))
        for item in FRONT.items
    ]
    await produce(settings, [*items, Sent(items[0].key, None)], settings.items_topic)
    erased = Event(ERASED, ERASE, EVENTS[-1].timestamp)
    good = [Sent(event.user_id.encode(), encode(event)) for event in [*EVENTS, erased]]
    await produce(settings, [*good, Sent(b"ann", b"{"), Sent(b"ann", None)])
    for topic in (settings.events_topic, settings.items_topic):
        await produce_batch(settings, UNREADABLE, topic)
    async with AIOKafkaProducer(
        bootstrap_servers=settings.bootstrap_servers, transactional_id=settings.events_topic
    ) as one:
        await one.begin_transaction()
        for user in ("ann", "bob", "cy", "dan"):  # both partitions end with what is no record
            await one.send_and_wait(settings.events_topic, encode(Event(user, "view", 1.0, "tea")), user.encode())
        await one.abort_transaction()


def test_a_topic_becomes_a_model(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    settings = make_settings()
    asyncio.run(write(settings))

    def trained(*more: str) -> Result:
        given = ("--from-topic", settings.events_topic, "--out", str(tmp_path / "m"), *SMALL, *more)
        return CliRunner().invoke(cli, ["train", *given], env=environment(settings))

    nothing = trained("--since", "2100-01-01")
    assert f"topic {settings.events_topic} holds no event" in str(nothing.exception)
    done = trained("--until", str(UNTIL))
    assert done.exit_code == 0, (done.output, done.exception)
    told = done.output.replace("\n", " ")
    assert "3 records of it can't be used and are left out" in told
    assert "1 unreadable record" in told
    assert "items that can't be used and are left out: 1 unreadable record" in told
    assert "1 users of it were erased" in told
    kept = [event for event in EVENTS if event.timestamp < UNTIL and event.user_id != ERASED]
    card = (tmp_path / "m" / "README.md").read_text()
    assert f"topic {settings.events_topic}, offsets by partition 0: 0 to " in card
    assert f": {len(kept)} events of {len({event.user_id for event in kept})} users" in card
    found = {item.item_id: item for item in event_log.read_items(tmp_path / "m" / "items.jsonl")}
    assert len(found) == len(FRONT.items)
    assert not found[FRONT.items[0].item_id].available
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["trained_until"] == max(event.timestamp for event in kept)


async def test_items_that_workers_would_refuse_are_named_and_the_others_of_the_file_published(
    make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    settings = make_settings(partitions=1, max_item_bytes=400)
    await topics.create(settings)
    rows = [Item("small", title="tea"), Item("large", title="x" * 400), Item("last", vector=[0.0, 1.0])]
    catalogue = tmp_path / "items.jsonl"
    catalogue.write_bytes(b"".join(encode(item) + b"\n" for item in rows))
    arguments = ["items", str(catalogue)]
    done = await asyncio.to_thread(CliRunner().invoke, cli, arguments, env=environment(settings), standalone_mode=False)
    assert done.return_value == 1, (done.output, done.exception)
    assert "item 'large' is left out: too large: 4" in done.output
    assert "at most 400 are read" in done.output
    assert f"2 items written to topic {settings.items_topic}" in done.output
    refused: list[str] = []
    more = [Item("", title="x"), Item("nowhere", vector=[0.0, 0.0]), Item("odd", vector=[math.nan]), Item("x" * 300)]
    more += [Item("good", vector=[1.0, 0.0]), Item("cheap", price=-1.0)]
    assert await publish_items(more, settings, lambda item, _: refused.append(item.item_id)) == 1
    assert refused == ["", "nowhere", "odd", "x" * 300, "cheap"]
    stored = await read_catalogue(settings)
    assert sorted(stored.items) == ["good", "last", "small"]
    assert not stored.refused


async def test_a_topic_s_catalogue_file_is_read_by_the_columns_that_are_named(
    make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    settings = make_settings(partitions=1)
    await topics.create(settings)
    event = Event("u", "view", 1_700_000_000.0, "tea")
    await produce(settings, [Sent(b"u", encode(event))])
    catalogue = tmp_path / "items.csv"
    catalogue.write_text("ref,called\ntea,green tea\n")
    given = settings, settings.events_topic, Period(), catalogue, "item=ref,title=called", lambda *_: None
    source = await asyncio.to_thread(kafka_source.read, *given)
    assert source.items == [Item("tea", title="green tea")]
    with pytest.raises(UserError, match="a catalogue has no user"):
        await asyncio.to_thread(kafka_source.read, *given[:4], "user=ref", given[-1])
