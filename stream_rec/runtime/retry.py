"""Waiting for what may come right by itself: a broker that is away, work that ended by an error."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeVar

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    stop_never,
    wait_exponential,
)

from stream_rec.errors import NoBrokerError

log = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_S, LONGEST_S = 1.0, 15.0
"""The pause before the second attempt, and the longest one."""


async def retry_until_available(ask: Callable[[], Awaitable[T]], stop: asyncio.Event, *, fail_fast: bool) -> T | None:
    """What `ask` returns; asked again, with longer and longer pauses, while no broker answers. None: `stop` was set.

    Raises what else `ask` raises, and with `fail_fast` that no broker answers, too.
    """
    again = AsyncRetrying(
        retry=retry_if_exception_type(NoBrokerError),
        wait=wait_exponential(multiplier=FIRST_S, max=LONGEST_S),
        stop=stop_after_attempt(1) if fail_fast else stop_never,
        before_sleep=_say,
        reraise=True,
    )
    return await run_until_stopped(again(ask), stop)


async def run_until_stopped(work: Awaitable[T], stop: asyncio.Event) -> T | None:
    """What `work` gives; None, and an end to it, if `stop` is set before."""
    working: asyncio.Future[T] = asyncio.ensure_future(work)
    both: set[asyncio.Future[Any]] = {working, asyncio.ensure_future(stop.wait())}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        return await working if working.done() else None
    finally:
        for task in both:
            task.cancel()
        await asyncio.gather(*both, return_exceptions=True)


async def start_with_retry(make: Callable[[], AIOKafkaConsumer]) -> AIOKafkaConsumer:
    """A consumer that has started. Tries again as long as Kafka refuses it, with longer and longer pauses."""
    again = AsyncRetrying(
        retry=retry_if_exception_type(KafkaError),
        wait=wait_exponential(multiplier=FIRST_S, max=LONGEST_S),
        before_sleep=_say,
    )
    return await again(_started, make)


async def _started(make: Callable[[], AIOKafkaConsumer]) -> AIOKafkaConsumer:
    consumer = make()
    try:
        await consumer.start()
    except BaseException:
        await consumer.stop()
        raise
    return consumer


async def keep_running(work: Callable[[], Awaitable[None]], failed: Callable[[Exception], None]) -> NoReturn:
    """Runs `work`, which ends only by an error, and begins it again after longer and longer pauses.

    `failed` is called with each error; what it raises ends the running.
    """
    pause_s = FIRST_S
    while True:
        began = time.monotonic()
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - `failed` decides which errors end it
            failed(error)
        if time.monotonic() - began > LONGEST_S:
            pause_s = FIRST_S
        await asyncio.sleep(pause_s)
        pause_s = min(LONGEST_S, 2 * pause_s)


def _say(state: RetryCallState) -> None:
    if state.outcome is not None and state.next_action is not None:
        log.warning("%s; trying again in %.0f s", state.outcome.exception(), state.next_action.sleep)
