import json

import pytest

from stream_rec.console.hub import BEHIND, PAGES, Full, Hub, frame


async def test_every_open_page_hears_of_what_is_sent() -> None:
    hub = Hub()
    assert not hub
    with hub.page() as one, hub.page() as other:
        hub.send("point", {"events": 3})
        assert await anext(one) == await anext(other) == b'event: point\ndata: {"events":3}\n\n'
    assert not hub


async def test_a_page_that_falls_behind_is_cut_off() -> None:
    hub = Hub()
    with hub.page() as slow:
        for number in range(BEHIND + 1):
            hub.send("point", number)
        assert not hub
        assert [told async for told in slow] == []


def test_there_is_room_for_so_many_pages() -> None:
    hub = Hub()
    pages = [hub.page() for _ in range(PAGES)]
    for page in pages:
        page.__enter__()
    with pytest.raises(Full), hub.page():
        pass
    pages[0].__exit__(None, None, None)
    with hub.page():
        pass


def test_no_text_ends_a_frame() -> None:
    hostile = "a\n\nevent: owned\r\ndata: 1\u2028"
    head, data, *rest = frame("rows", hostile).decode().split("\n")
    assert (head, rest) == ("event: rows", ["", ""])
    assert json.loads(data.removeprefix("data: ")) == hostile
