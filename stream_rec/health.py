"""The pages of a process: /metrics, /healthz (does it live?) and /readyz (does it do its work?)."""

import asyncio
import contextlib
import io
import logging
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer, choose_encoder

from stream_rec.errors import UserError

log = logging.getLogger(__name__)

CONNECTIONS = 64
"""Connections at a time, each with a thread. One more takes the place of the oldest one."""
SILENT_S = 10.0
"""How long a client may send or read nothing, seconds."""
HUNG_S = 30.0
"""After how long without a turn of its event loop a process counts as dead, seconds."""

REBALANCING, BROKER_UNREACHABLE = "partitions move", "Kafka does not answer"


class Health:
    """What a process says about itself: its event loop writes, the thread of the pages reads."""

    def __init__(self, most_waiting: int) -> None:
        self._most_waiting = most_waiting
        self._turned = time.monotonic()
        self.not_ready_reasons = {REBALANCING}
        """What keeps the process from its work."""
        self.unread: set[str] = set()
        """Partitions that Kafka can't read at the moment, in words."""
        self.troubles: set[str] = set()
        """What goes wrong beside the work: it is shown, and the process is ready all the same."""
        self.waiting = 0
        """Records that wait in the partitions of the process."""

    async def watch(self) -> None:
        """Shows that the event loop turns; never returns."""
        while True:
            self._turned = time.monotonic()
            await asyncio.sleep(1)

    def dead(self) -> str | None:
        """Why the process should be replaced; None: it lives."""
        still_s = time.monotonic() - self._turned
        return f"the event loop has stood still for {still_s:.0f} s" if still_s > HUNG_S else None

    def unready(self) -> str | None:
        """Why the process does not do its work, or not in time; None: it does."""
        late = f"{self.waiting} records wait" if self.waiting > self._most_waiting else None
        return self.dead() or "; ".join(sorted(self.not_ready_reasons | self.unread)) or late

    def remarks(self) -> str:
        """What a page that says "ok" adds."""
        return "; ".join(sorted(self.troubles))


def serve(registry: CollectorRegistry, health: Health, host: str, port: int) -> int:
    """Serves the pages in a thread of their own; returns the port, which differs from `port` where that is 0.

    A page that asks for health answers 200, or 503 and the reason; readiness also says what goes wrong beside the work.
    Raises `UserError` when the port is taken.
    """
    try:
        server = _Server(host, port)
    except OSError as error:
        raise UserError(
            f"cannot serve metrics on {host}:{port} ({error.strerror}): choose another port with --metrics-port"
        ) from None
    checks = {"/healthz": (health.dead, lambda: ""), "/readyz": (health.unready, health.remarks)}
    server.set_app(_pages(make_wsgi_app(registry), checks))
    threading.Thread(target=server.serve_forever, name="pages", daemon=True).start()
    return server.server_port


def _pages(metrics: Any, checks: dict[str, tuple[Callable[[], str | None], Callable[[], str]]]) -> Any:
    def page(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        check = checks.get(environ["PATH_INFO"])
        if check is None:
            return _metrics_page(metrics, environ, start_response)
        hindrance, remarks = (asked() for asked in check)
        start_response(
            "503 Service Unavailable" if hindrance else "200 OK", [("Content-Type", "text/plain; charset=utf-8")]
        )
        said = hindrance or (f"ok, but {remarks}" if remarks else "ok")
        return [f"{said}\n".encode()]

    return page


def _metrics_page(metrics: Any, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    plain = [("Content-Type", "text/plain; charset=utf-8")]
    try:
        choose_encoder(environ.get("HTTP_ACCEPT", ""))
    except Exception:  # noqa: BLE001 - what it raises for a malformed header is not documented
        start_response("400 Bad Request", plain)
        return [b"the Accept header is malformed\n"]
    try:
        found: Iterable[bytes] = metrics(environ, start_response)
    except Exception as error:  # noqa: BLE001 - the error's text may hold parts of the request
        frames = "".join(traceback.format_tb(error.__traceback__))
        log.error("%s: a request for metrics fails with status 500\n%s", type(error).__name__, frames)
        start_response("500 Internal Server Error", plain)
        return [b"internal error\n"]
    return found


class _Server(ThreadingWSGIServer):
    request_queue_size = 128

    def __init__(self, host: str, port: int) -> None:
        self.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        self._open: dict[socket.socket, None] = {}
        """Connections, the oldest first."""
        self._changing = threading.Lock()
        super().__init__((host, port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Starts a thread for a connection. Ends the oldest one where there are too many.

        So clients that keep connections open without sending a request cannot keep a probe out.
        """
        with self._changing:
            self._open[request] = None
            oldest = next(iter(self._open)) if len(self._open) > CONNECTIONS else None
            if oldest is not None:
                del self._open[oldest]
                _end(oldest)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._changing:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, *_: Any) -> None:
        """Says nothing of a client that was silent for too long or went away, and of a defect no more than its kind."""
        error = sys.exception()
        if not isinstance(error, OSError):
            log.error("%s: a request is not answered", type(error).__name__)


def _end(connection: socket.socket) -> None:
    """Wakes the thread that reads from `connection` or writes to it; that thread closes it."""
    with contextlib.suppress(OSError):  # the client was faster
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(WSGIRequestHandler):
    timeout = SILENT_S

    def log_message(self, *_: Any) -> None:
        """Nobody wants to read that the metrics were read."""

    def get_stderr(self) -> Any:
        """Where wsgiref writes the traceback of a client that went away."""
        return io.StringIO()
