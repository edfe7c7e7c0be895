"""What keeps other sites out of the page, and what came from topics from becoming anything but text."""

import base64
import hashlib
import ipaddress
import re

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from yarl import URL

from stream_rec.errors import UserError

BODY = 1 << 16
"""Largest body of a request, bytes."""

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
    is refused. What changes something must come from the page itself. A person's mistake further in is told as JSON.
    """
    local = _local(host)

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        if local and not _local(URL(f"//{request.host}").host or ""):
            return refusal(403, "this console answers only to the name of this machine")
        if request.method not in ("GET", "HEAD") and not _same_origin(request):
            return refusal(403, "this request did not come from the console's own page")
        try:
            return await handler(request)
        except UserError as error:
            return refusal(503, str(error))
        except web.HTTPException as error:
            return refusal(error.status, error.reason)

    return guarded


def refusal(status: int, reason: str, **more: object) -> web.Response:
    return web.json_response({"error": reason, **more}, status=status)


async def dress(_request: web.Request, response: web.StreamResponse) -> None:
    """Gives each response its headers."""
    response.headers.update(HEADERS)
    response.headers.setdefault("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")


def _same_origin(request: web.Request) -> bool:
    origin = request.headers.get("Origin", "")
    return URL(origin).authority == request.host and request.content_type == "application/json"


def _local(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
