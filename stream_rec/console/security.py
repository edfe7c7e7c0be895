"""What keeps other sites out of the page, and what came from topics from becoming anything but text."""

import asyncio
import base64
import contextlib
import hashlib
import ipaddress
import logging
import re
import traceback
from collections.abc import AsyncIterator

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from stream_rec.errors import UserError

log = logging.getLogger(__name__)

BODY = 1 << 16
"""Largest body of a request, bytes."""
SEND_S = 10.0
"""How long a client may take to read a response, or a frame of the stream, seconds."""
HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")
"""A Host header (RFC 9110, section 7.2)."""

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def policy(page: str) -> str:
    """The Content-Security-Policy of a page whose one script and one style stand in it: nothing else may run or load.

    Text becomes markup nowhere: the browser itself refuses (trusted types).
    """
    script, style = (_digest(page, tag) for tag in ("script", "style"))
    return (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )


def _digest(page: str, tag: str) -> str:
    found = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    if found is None:
        raise ValueError(f"the page has no <{tag}>")
    return f"'sha256-{base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()}'"


def guard(host: str) -> Middleware:
    """A middleware for a server that listens on `host`.

    On this machine alone, a request must name this machine: a foreign name that was made to point here (DNS rebinding)
    is refused. What changes something must come from the page itself. Every error is told as JSON. A client that does
    not read its response loses the connection.
    """
    local = _local(host)

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        response = _refused(request, local=local) or await _handled(request, handler)
        with contextlib.suppress(ConnectionError):  # aiohttp notices it again
            async with sending(request):
                await response.prepare(request)
                await response.write_eof()
        return response

    return guarded


def _refused(request: web.Request, *, local: bool) -> web.Response | None:
    """Why a request is not handled. `local`: it must name this machine."""
    if not request.raw_path.startswith("/"):
        return error_response(400, "the request must name a path of this console, without a host")
    hosts = request.headers.getall("Host", [])
    named = HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
    if named is None and (hosts or request.version >= (1, 1)):
        return error_response(400, "the request has no Host header, several or a malformed one")
    if local and not _local(named["name"] if named else ""):
        return error_response(403, "this console answers only to the name of this machine")
    if request.method not in ("GET", "HEAD") and not (named and _same_origin(request, named[0])):
        return error_response(403, "this request did not come from the console's own page")
    return None


async def _handled(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except UserError as error:
        return error_response(503, str(error))
    except web.HTTPException as error:
        return error_response(error.status, error.reason)
    except Exception as error:  # noqa: BLE001 - aiohttp would log the error's text, which may hold an id
        frames = "".join(traceback.format_tb(error.__traceback__))
        log.error("%s: a request fails with status 500\n%s", type(error).__name__, frames)
        return error_response(500, "internal error: the console's log names the place in the code")


@contextlib.asynccontextmanager
async def sending(request: web.Request) -> AsyncIterator[None]:
    """Ends the connection of a client that does not read within `SEND_S`. Raises `ConnectionError`."""
    try:
        async with asyncio.timeout(SEND_S):
            yield
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionAbortedError from None


def error_response(status: int, reason: str, **more: object) -> web.Response:
    return web.json_response({"error": reason, **more}, status=status)


async def add_security_headers(_request: web.Request, response: web.StreamResponse) -> None:
    """Gives each response its headers."""
    response.headers.update(HEADERS)
    response.headers.setdefault("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")


def _same_origin(request: web.Request, host: str) -> bool:
    origins = [f"{scheme}://{host}" for scheme in ("http", "https")]
    sent = request.headers.getall("Origin", [])
    return len(sent) == 1 and sent[0] in origins and request.content_type == "application/json"


def _local(host: str) -> bool:
    """Whether a name or an address is this machine's own, whatever a resolver says."""
    name = host.lower().strip("[]")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
