"""`stream-rec console`: follows the topics and serves the page until it is told to end."""

import asyncio
import logging
import signal
from functools import partial

import uvloop
from aiohttp import web

from stream_rec.config import Settings
from stream_rec.console.following import Following
from stream_rec.console.requests import app
from stream_rec.errors import UserError
from stream_rec.pipeline import rights
from stream_rec.pipeline.connection import access
from stream_rec.pipeline.granted import require
from stream_rec.pipeline.patience import patiently

log = logging.getLogger(__name__)


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
    sending = rights.on("Write", settings.events_topic) if allow_events else ()
    needed = partial(require, access(settings), *rights.console(settings), *sending)
    if await patiently(needed, stop, fail_fast=settings.fail_fast) is None:
        return
    following = Following(settings)
    runner = web.AppRunner(app(settings, following, allow_events), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    work, told = asyncio.create_task(following.run(), name="console"), asyncio.create_task(stop.wait(), name="stop")
    try:
        log.info("console on http://%s:%d/", settings.console_host, await _listen(runner, settings))
        await asyncio.wait({work, told}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            await work  # raises what ended it
    finally:
        for task in (work, told):
            task.cancel()
        await asyncio.gather(work, told, return_exceptions=True)
        await runner.cleanup()
    log.info("console ended")


async def _listen(runner: web.AppRunner, settings: Settings) -> int:
    """Returns the port."""
    site = web.TCPSite(runner, settings.console_host, settings.console_port)
    try:
        await site.start()
    except OSError as error:
        raise UserError(
            f"cannot serve the console on {settings.console_host}:{settings.console_port} ({error.strerror}): "
            "choose another port with --port"
        ) from None
    return int(runner.addresses[0][1])
