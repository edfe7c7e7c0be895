import asyncio
import contextlib
import socket
import ssl
import struct

import pytest
import trustme
from aiokafka import conn
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.admin import ApiVersionRequest

from stream_rec.pipeline import loop

ABORT = struct.pack("ii", 1, 0)
"""SO_LINGER for zero seconds: closing is a reset."""


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    (size,) = struct.unpack(">i", await reader.readexactly(4))
    correlation = (await reader.readexactly(size))[4:8]
    answer = correlation + struct.pack(">hi", 0, 0)  # no error, no versions
    writer.write(struct.pack(">i", len(answer)) + answer)


async def _answer_once_and_break(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await _answer(reader, writer)
    await asyncio.sleep(0.02)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
    writer.transport.abort()


async def _answer_once_and_hear_nothing_more(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await _answer(reader, writer)
    writer.transport.pause_reading()


async def _write_until_it_breaks() -> None:
    server = await asyncio.start_server(_answer_once_and_break, "127.0.0.1", 0)
    connection = await conn.create_conn(*server.sockets[0].getsockname())
    waiting = []
    try:
        while True:  # also in the moment between the transport's end and the reader's
            waiting.append(connection.send(ApiVersionRequest()))
            await asyncio.sleep(0)
    finally:
        await asyncio.gather(*waiting, return_exceptions=True)
        server.close()


def test_a_write_to_a_transport_that_has_just_closed_is_a_kafka_error() -> None:
    with pytest.raises(KafkaConnectionError, match="was closed"):
        loop.run(_write_until_it_breaks())


async def _close_over_tls() -> None:
    authority, given = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(given)
    server = await asyncio.start_server(_answer_once_and_hear_nothing_more, "127.0.0.1", 0, ssl=given)
    trusted = ssl.create_default_context()
    authority.configure_trust(trusted)
    address = server.sockets[0].getsockname()
    connection = await conn.create_conn(*address, ssl_context=trusted, security_protocol="SSL")
    async with asyncio.timeout(20):  # less than uvloop's 30
        await connection.close()
    server.close()


def test_closing_waits_for_no_goodbye_of_the_broker() -> None:
    loop.run(_close_over_tls())


async def _deaf_once() -> None:
    """Goes on after the first order to end, as aiokafka's task does while it lets partitions go."""
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(60)
    await asyncio.sleep(60)


async def _close_while_kafka_is_away() -> set[asyncio.Task[None]]:
    fetcher = loop.Fetcher.__new__(loop.Fetcher)
    fetcher._fetch_task = asyncio.create_task(_deaf_once())
    fetches = {asyncio.create_task(asyncio.sleep(60))}  # the pause before another attempt
    fetcher._pending_tasks, fetcher._fetch_waiters = set(fetches), set()
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await fetcher.close()
    return {*fetches, fetcher._fetch_task}


def test_a_fetcher_ends_though_its_fetches_wait_for_kafka_and_its_task_is_deaf() -> None:
    assert all(task.cancelled() for task in loop.run(_close_while_kafka_is_away()))
