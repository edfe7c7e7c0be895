import contextlib
import json

from stream_rec.console.sse import BEHIND, PAGES, EventBroadcaster, frame


async def test_every_open_page_hears_of_what_is_sent() -> None:
    hub = EventBroadcaster()
    assert not hub
    with hub.page("a") as one, hub.page("a") as other:
        hub.send("point", {"events": 3})
        assert await anext(one) == await anext(other) == b'event: point\ndata: {"events":3}\n\n'
    assert not hub


async def test_a_page_that_falls_behind_is_cut_off() -> None:
    hub = EventBroadcaster()
    with hub.page("a") as slow:
        for number in range(BEHIND + 1):
            hub.send("point", number)
        assert not hub
        assert [told async for told in slow] == []


async def test_nobody_is_locked_out_by_one_who_opens_all_pages() -> None:
    hub = EventBroadcaster()
    with contextlib.ExitStack() as stack:
        mine = stack.enter_context(hub.page("me"))
        greedy = [stack.enter_context(hub.page("greedy")) for _ in range(PAGES - 1)]
        others = [stack.enter_context(hub.page(client)) for client in ("you", "greedy", "me")]
        hub.send("point", 1)
        for page in (mine, *greedy[3:], *others):
            assert await anext(page) == frame("point", 1)
        for page in greedy[:3]:
            assert [told async for told in page] == []
    assert not hub


def test_no_text_ends_a_frame() -> None:
    hostile = "a\n\nevent: owned\r\ndata: 1\u2028"
    head, data, *rest = frame("rows", hostile).decode().split("\n")
    assert (head, rest) == ("event: rows", ["", ""])
    assert json.loads(data.removeprefix("data: ")) == hostile
