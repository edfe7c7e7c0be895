"""`stream-rec console`: follows the topics and serves the page until it is told to end."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator
from functools import partial

import uvloop
from aiohttp import web

from stream_rec.config import Settings
from stream_rec.console.handlers import app
from stream_rec.console.sse import busiest
from stream_rec.console.state import ConsoleState
from stream_rec.errors import UserError
from stream_rec.kafka import access_control
from stream_rec.kafka.access_control import check_access
from stream_rec.kafka.connection import access
from stream_rec.runtime.retry import retry_until_available

log = logging.getLogger(__name__)

CONNECTIONS = 256
"""Connections at a time. One more takes the place of the oldest one of the address that has the most."""
IDLE_S = 15.0
"""How long a connection may wait for a whole request, seconds: a new one, a kept one, and one that sends slowly."""
LINGER_S = 1.0
"""How long the rest of a body is read after the response, seconds."""


def run(settings: Settings, allow_events: bool) -> int:
    """Serves until SIGTERM or Ctrl-C; returns the exit code. Raises `UserError`."""
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if settings.log_level != "debug":
        logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
        logging.getLogger("aiohttp.access").setLevel(logging.WARNING)  # addresses hold user ids
    uvloop.run(_run(settings, allow_events))
    return 0


async def _run(settings: Settings, allow_events: bool) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    sending = access_control.on("Write", settings.events_topic) if allow_events else ()
    needed = partial(check_access, access(settings), *access_control.console(settings), *sending)
    if await retry_until_available(needed, stop, fail_fast=settings.fail_fast) is None:
        return
    following = ConsoleState(settings)
    made = app(settings, following, allow_events)
    async with serving(made, settings.console_host, settings.console_port) as port:
        log.info("console on http://%s:%d/", settings.console_host, port)
        work, told = asyncio.create_task(following.run(), name="console"), asyncio.create_task(stop.wait(), name="stop")
        try:
            await asyncio.wait({work, told}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                await work  # raises what ended it
        finally:
            for task in (work, told):
                task.cancel()
            await asyncio.gather(work, told, return_exceptions=True)
    log.info("console ended")


@contextlib.asynccontextmanager
async def serving(application: web.Application, host: str, port: int) -> AsyncIterator[int]:
    """Serves `application`; gives the port, which differs from `port` where that is 0.

    Raises `UserError` when the port is taken.
    """
    quiet = logging.getLogger(f"{__name__}.http")
    quiet.addFilter(_without_request)
    runner = web.AppRunner(
        application,
        access_log=None,
        logger=quiet,
        keepalive_timeout=IDLE_S,
        lingering_time=LINGER_S,
        shutdown_timeout=1.0,
    )
    await runner.setup()
    if runner.server is None:
        raise RuntimeError("the runner has no server")
    try:
        listening = await asyncio.get_running_loop().create_server(partial(_accept, runner.server), host, port)
    except OSError as error:
        await runner.cleanup()
        raise UserError(
            f"cannot serve the console on {host}:{port} ({error.strerror}): choose another port with --port"
        ) from None
    try:
        yield int(listening.sockets[0].getsockname()[1])
    finally:
        listening.close()
        await runner.cleanup()


def _accept(server: web.Server) -> asyncio.Protocol:
    """Makes room for a connection, and its protocol."""
    connections = [one for one in server.connections if one.transport is not None]
    if len(connections) >= CONNECTIONS:
        addresses = [str((one.peername or ("",))[0]) for one in connections]
        oldest = connections[addresses.index(busiest(addresses))]
        transport = oldest.transport
        oldest.force_close()
        if transport is not None:
            transport.abort()  # a client that does not read would keep it open
    return server()


def _without_request(record: logging.LogRecord) -> bool:
    """Makes one line of what aiohttp logs of a malformed request: its text and traceback hold the request's bytes."""
    kind = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else "error"
    record.msg, record.args, record.exc_info = "a request is refused: %s", (kind,), None
    return True
