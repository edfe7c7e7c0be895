"""Server-sent events: the same frames to every page that is open (WHATWG HTML, section 9.2)."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import msgspec

PAGES = 64
"""Pages that may be open at a time."""
BEHIND = 64
"""Frames that a page may be behind; then it is cut off, and its browser comes back for what is new."""


class Full(Exception):  # noqa: N818
    """Too many pages are open."""


def frame(name: str, data: object) -> bytes:
    """One event of the stream; JSON holds no line break."""
    return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode(data) + b"\n\n"


class Hub:
    def __init__(self) -> None:
        self._pages: set[asyncio.Queue[bytes]] = set()
        self._cut: set[asyncio.Queue[bytes]] = set()

    def __bool__(self) -> bool:
        """Whether any page is open."""
        return bool(self._pages)

    def send(self, name: str, data: object) -> None:
        told = frame(name, data)
        for page in list(self._pages):
            try:
                page.put_nowait(told)
            except asyncio.QueueFull:
                self._pages.discard(page)
                self._cut.add(page)

    @contextlib.contextmanager
    def page(self) -> Iterator[AsyncIterator[bytes]]:
        """The frames for one page, until it falls behind. Raises `Full`."""
        if len(self._pages) >= PAGES:
            raise Full
        queue: asyncio.Queue[bytes] = asyncio.Queue(BEHIND)
        self._pages.add(queue)
        try:
            yield self._frames(queue)
        finally:
            self._pages.discard(queue)
            self._cut.discard(queue)

    async def _frames(self, queue: asyncio.Queue[bytes]) -> AsyncIterator[bytes]:
        while queue not in self._cut:
            yield await queue.get()
