import asyncio

import pytest
from aiokafka.errors import KafkaConnectionError, TopicAuthorizationFailedError

from stream_rec.errors import NoBrokerError, UserError
from stream_rec.runtime import retry
from stream_rec.runtime.retry import retry_until_available, start_with_retry


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_S", 0.01)


async def test_a_broker_that_comes_later_is_found_and_each_attempt_is_told(caplog: pytest.LogCaptureFixture) -> None:
    answers = iter([NoBrokerError("no broker"), NoBrokerError("no broker"), 7])

    async def ask() -> int:
        answer = next(answers)
        if isinstance(answer, NoBrokerError):
            raise answer
        return answer

    assert await retry_until_available(ask, asyncio.Event(), fail_fast=False) == 7
    assert [record.getMessage() for record in caplog.records] == ["no broker; trying again in 0 s"] * 2


async def test_who_is_told_to_end_waits_no_longer() -> None:
    stop = asyncio.Event()

    async def ask() -> int:
        stop.set()
        raise NoBrokerError("no broker")

    async with asyncio.timeout(5):
        assert await retry_until_available(ask, stop, fail_fast=False) is None


async def test_what_waiting_does_not_mend_is_raised_at_once() -> None:
    async def ask() -> int:
        raise UserError("the password is wrong")

    with pytest.raises(UserError, match="password"):
        await retry_until_available(ask, asyncio.Event(), fail_fast=False)


async def test_who_is_not_to_wait_hears_at_once_that_no_broker_answers() -> None:
    async def ask() -> int:
        raise NoBrokerError("no broker")

    with pytest.raises(NoBrokerError, match="no broker"):
        await retry_until_available(ask, asyncio.Event(), fail_fast=True)


async def test_a_consumer_that_kafka_refuses_is_started_once_kafka_takes_it_and_each_refused_one_is_stopped() -> None:
    refusals: list[Exception] = [TopicAuthorizationFailedError(), KafkaConnectionError()]
    stopped = []

    class Consumer:
        async def start(self) -> None:
            if refusals:
                raise refusals.pop()

        async def stop(self) -> None:
            stopped.append(self)

    consumer = await start_with_retry(Consumer)
    assert len(stopped) == 2
    assert consumer not in stopped
