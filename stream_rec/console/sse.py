"""Server-sent events: the same frames to every page that is open (WHATWG HTML, section 9.2)."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import NamedTuple

import msgspec

PAGES = 64
"""Pages that may be open at a time. One more takes the place of the oldest page of the address that has the most."""
BEHIND = 64
"""Frames that a page may be behind; then it is cut off, and its browser comes back for what is new."""


def frame(name: str, data: object) -> bytes:
    """One event of the stream; JSON holds no line break."""
    return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode(data) + b"\n\n"


class _Page(NamedTuple):
    client: str
    """The address that it is open at."""
    frames: asyncio.Queue[bytes | None]
    """None is the last one: the page is cut off."""


class EventBroadcaster:
    def __init__(self) -> None:
        self._pages: dict[int, _Page] = {}
        """By the order in which they were opened."""
        self._opened = 0

    def __bool__(self) -> bool:
        """Whether any page is open."""
        return bool(self._pages)

    def send(self, name: str, data: object) -> None:
        told = frame(name, data)
        for number, page in list(self._pages.items()):
            if page.frames.qsize() < BEHIND:
                page.frames.put_nowait(told)
            else:
                self._cut(number)

    @contextlib.contextmanager
    def page(self, client: str) -> Iterator[AsyncIterator[bytes]]:
        """The frames for one page of the address `client`, until the page is cut off.

        That happens when it falls behind, and when it has to make room for another page.
        """
        if len(self._pages) >= PAGES:
            most = busiest(page.client for page in self._pages.values())
            self._cut(next(number for number, page in self._pages.items() if page.client == most))
        number, frames = self._opened, asyncio.Queue[bytes | None]()
        self._opened += 1
        self._pages[number] = _Page(client, frames)
        try:
            yield _until_cut(frames)
        finally:
            self._pages.pop(number, None)

    def _cut(self, number: int) -> None:
        """What the page has not taken yet is dropped."""
        frames = self._pages.pop(number).frames
        while not frames.empty():
            frames.get_nowait()
        frames.put_nowait(None)


def busiest(clients: Iterable[str]) -> str:
    """The address that occurs most often."""
    return Counter(clients).most_common(1)[0][0]


async def _until_cut(frames: asyncio.Queue[bytes | None]) -> AsyncIterator[bytes]:
    while (told := await frames.get()) is not None:
        yield told
