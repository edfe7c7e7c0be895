import asyncio
import socket
import ssl
import struct

import pytest
import trustme
import uvloop
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.admin import ApiVersionRequest

from stream_rec.kafka.aiokafka_compat import create_conn, with_globals

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
    connection = await create_conn(*server.sockets[0].getsockname())
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
        uvloop.run(_write_until_it_breaks())


async def _close_over_tls() -> None:
    authority, given = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(given)
    server = await asyncio.start_server(_answer_once_and_hear_nothing_more, "127.0.0.1", 0, ssl=given)
    trusted = ssl.create_default_context()
    authority.configure_trust(trusted)
    address = server.sockets[0].getsockname()
    connection = await create_conn(*address, ssl_context=trusted, security_protocol="SSL")
    async with asyncio.timeout(20):  # less than uvloop's 30
        await connection.close()
    server.close()


def test_closing_waits_for_no_goodbye_of_the_broker() -> None:
    uvloop.run(_close_over_tls())


GREETING = "hello"


def greet(name: str, mark: str = "!", *, twice: bool = False) -> str:
    return (GREETING + " " + name + mark) * (2 if twice else 1)


def test_a_copy_of_a_function_uses_other_globals_and_the_function_its_own() -> None:
    copy = with_globals(greet, GREETING="good evening")
    assert copy("you", twice=True) == "good evening you!good evening you!"
    assert greet("you") == "hello you!"


def test_a_global_that_a_function_no_longer_uses_is_an_error() -> None:
    with pytest.raises(AttributeError, match="greet uses no FAREWELL"):
        with_globals(greet, FAREWELL="bye")
