"""Feeding: events of a log to the events topic, each user's in the log's order, at a chosen pace."""

import asyncio
import math
import time
from collections.abc import Callable, Iterable
from itertools import islice
from typing import NamedTuple

from aiokafka.structs import RecordMetadata
from msgspec.structs import replace

from stream_rec.config import Settings
from stream_rec.errors import UserError
from stream_rec.kafka.publish import Publisher
from stream_rec.messages import Event, encode

RatePolicy = Callable[[int, float], float]
"""When an event is due, in seconds after the start: of its number (from 0) and of the seconds of the log before it."""

TimestampPolicy = Callable[[float, float], float]
"""The timestamp an event is sent with: of its timestamp in the log and of the moment of sending, both since 1970."""

TICK_S = 0.001
"""Shorter waits are not worth a sleep."""
BREATH = 256
"""Events after which others on the event loop get their turn."""


def at_once(_number: int, _log_s: float) -> float:
    """As fast as Kafka takes them."""
    return 0.0


def faster(factor: float) -> RatePolicy:
    """The log's own gaps, divided by `factor`."""
    return lambda _number, log_s: log_s / factor


def steady(events_per_s: float) -> RatePolicy:
    """Evenly, whatever the log's gaps."""
    return lambda number, _log_s: number / events_per_s


def speed(text: str) -> RatePolicy:
    """The pace that `--speed` names: `max`, or how many times faster than the log. Raises `UserError`."""
    if text == "max":
        return at_once
    try:
        factor = float(text)
    except ValueError:
        factor = math.nan
    if not 0 < factor < math.inf:
        raise UserError(f"speed {text!r}: give 'max', or how many times faster than the log, such as 60")
    return faster(factor)


def keep(timestamp: float, _sending: float) -> float:
    """The log's own timestamps: what the model learned about gaps stays true at any pace."""
    return timestamp


def now(_timestamp: float, sending: float) -> float:
    """The moment of sending: the first event is now, and the gaps are the log's divided by the speed."""
    return sending


class Fed(NamedTuple):
    """What a feeding did; every event counted here was acknowledged by Kafka."""

    events: int
    seconds: float
    finished: bool
    """False when it was told to stop before the last event."""


async def feed(
    events: Iterable[Event],
    settings: Settings,
    *,
    pace: RatePolicy = at_once,
    stamp: TimestampPolicy = keep,
    limit: int | None = None,
    stop: asyncio.Event | None = None,
    on_sent: Callable[[int], None] = lambda _sent: None,
    on_stored: Callable[[RecordMetadata], None] = lambda _stored: None,
) -> Fed:
    """Sends events, at most `limit`, until they end or `stop` is set; what was sent is flushed in any case.

    `on_sent` hears now and then how many went out so far, `on_stored` where each event stands. Raises `UserError` like
    `Publisher`.
    """
    stop = stop or asyncio.Event()
    began = time.monotonic()
    first: float | None = None
    finished = False
    async with Publisher(settings, settings.events_topic, on_stored) as publisher:
        for number, event in enumerate(islice(events, limit)):
            first = event.timestamp if first is None else first
            wait = began + pace(number, event.timestamp - first) - time.monotonic()
            if wait > TICK_S or number % BREATH == 0:
                on_sent(number)
                await _pause(stop, wait)
            if stop.is_set():
                break
            stamped = replace(event, timestamp=stamp(event.timestamp, time.time()))
            await publisher.send(event.user_id, encode(stamped))
        else:
            finished = True
    on_sent(publisher.acknowledged)
    return Fed(publisher.acknowledged, time.monotonic() - began, finished)


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    """Others get their turn; ends early when `stop` is set."""
    if seconds <= 0:
        await asyncio.sleep(0)
        return
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        pass
