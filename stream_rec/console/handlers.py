"""What the page and services ask over HTTP."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from importlib.resources import files
from typing import Any

import msgspec
from aiohttp import web
from aiokafka.structs import RecordMetadata

from stream_rec.client import latest
from stream_rec.config import Settings
from stream_rec.console import serializers
from stream_rec.console.explain.explainer_model import LazyExplainerModel, NotReady
from stream_rec.console.lookup import held
from stream_rec.console.security import BODY, add_security_headers, error_response, guard, policy, sending
from stream_rec.console.sse import frame
from stream_rec.console.state import ConsoleState
from stream_rec.kafka.publish import Publisher
from stream_rec.messages import ERASE, UNREADABLE, Event, Id, Label, encode

ANSWER_S = 15.0
"""How long an answer to a sent event is waited for, seconds."""
BODY_S = 10.0
"""How long a client may take to send the body of a request, seconds."""
SEARCHES = 4
"""Searches through topics at a time; as many again may wait for their turn."""


class Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An event to send."""

    user_id: Id
    item_id: Id
    event_type: Label


def app(settings: Settings, following: ConsoleState, allow_events: bool) -> web.Application:
    """What `following` knows, and what is found in the topics; events are taken only with `allow_events`."""
    requests = Requests(settings, following, allow_events)
    made = web.Application(middlewares=[guard(settings.console_host), requests.started], client_max_size=BODY)
    made.on_response_prepare.append(add_security_headers)
    made.on_cleanup.append(requests.close)
    made.add_routes(
        [
            web.get("/", requests.index),
            web.get("/stream", requests.stream, allow_head=False),
            web.get("/healthz", requests.health),
            web.get("/recommendations/{user}", requests.recommendation),
            web.get("/api/user", requests.user),
            web.get("/api/why", requests.why),
            web.get("/api/item", requests.item),
            web.get("/api/answer", requests.answer),
            web.post("/api/events", requests.send),
        ]
    )
    return made


class Requests:
    """The handlers of `app`."""

    def __init__(self, settings: Settings, following: ConsoleState, allow_events: bool) -> None:
        self._settings = settings
        self._following = following
        self._allow_events = allow_events
        self._page = files("stream_rec.console").joinpath("page.html").read_text(encoding="utf-8")
        self._policy = policy(self._page)
        self._standby = LazyExplainerModel(settings)
        self._searches = asyncio.Semaphore(SEARCHES)
        self._waiting = 0

    async def close(self, _app: web.Application) -> None:
        await self._standby.close()

    @web.middleware
    async def started(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if self._following.ready or request.path == "/":
            answer: web.StreamResponse = await handler(request)
            return answer
        return error_response(503, "the console is starting")

    async def index(self, _request: web.Request) -> web.Response:
        return web.Response(
            text=self._page, content_type="text/html", headers={"Content-Security-Policy": self._policy}
        )

    async def health(self, _request: web.Request) -> web.Response:
        ailing = self._following.ailing
        return error_response(503, ailing) if ailing else web.json_response({"status": "ok"})

    async def stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"})
        with contextlib.suppress(ConnectionError), self._following.hub.page(request.remote or "") as frames:
            hello = self._following.so_far() | {
                "allow_events": self._allow_events,
                "event_types": self._settings.event_types,
            }
            async with sending(request):
                await response.prepare(request)
                await response.write(b"retry: 1000\n\n" + frame("hello", hello))
            async for told in frames:
                async with sending(request):
                    await response.write(told)
        return response

    async def recommendation(self, request: web.Request) -> web.Response:
        """For services without a Kafka client: the newest answer as it stands in the topic."""
        user = _bounded("the user", request.match_info["user"])
        async with self._search():
            answer = await latest(user, self._settings)
        return _json(answer) if answer else error_response(404, "there is no recommendation for this user")

    async def user(self, request: web.Request) -> web.Response:
        name = _asked(request, "id")
        async with self._search():
            found = await held(name, self._settings)
        if found.window is None and found.answer is None:
            return error_response(404, "Nothing is known of this user: no window, no recommendation.")
        return _json(serializers.user(name, found, self._following.titles))

    async def why(self, request: web.Request) -> web.Response:
        name = _asked(request, "id")
        try:
            aside = await self._standby.ask()
        except NotReady as state:
            return error_response(202 if state.soon else 503, str(state), soon=state.soon)
        async with self._search():
            found = await held(name, self._settings)
            if found.window is None:
                return error_response(404, "This user has no window.")
            explanation = await aside.explain(found.window, found.partition)
        named = {event.item_id for event in found.window.events} | {one.item_id for one in explanation.items}
        return _json(serializers.why(explanation, found, aside.items(named)))

    async def item(self, request: web.Request) -> web.Response:
        name = _asked(request, "id")
        titles, trend = self._following.titles, self._following.trends.of(name, time.time())
        found = titles.of([name]).get(name)
        told: dict[str, Any] = {"id": name, "item": serializers.item(found), "trend": trend, "near": None, "note": ""}
        try:
            near = await (await self._standby.ask()).neighbours(name)
            told["near"] = near and serializers.neighbours(near, titles)
        except NotReady as state:
            told |= {"note": str(state), "soon": state.soon}
        if found is None and told["near"] is None and not any(trend.events):
            return error_response(
                404, "Nothing is known of this item: it is not in the catalogue, and nobody touched it lately."
            )
        return _json(told)

    async def send(self, request: web.Request) -> web.Response:
        """Writes an event; tells where it stands."""
        if not self._allow_events:
            return error_response(403, "This console is read-only: start it with --allow-events to send events.")
        try:
            async with asyncio.timeout(BODY_S):
                body = await request.read()
        except TimeoutError:
            raise web.HTTPRequestTimeout(reason=f"the event was not there within {BODY_S:.0f} s") from None
        try:
            asked = msgspec.json.decode(body, type=Asked)
        except UNREADABLE as error:
            return error_response(400, str(error))
        types = self._settings.event_types
        if asked.event_type == ERASE or asked.event_type not in types:
            return error_response(400, f"the event type must be one of {', '.join(types)}")
        event = Event(asked.user_id, asked.event_type, self._following.live.clock(time.time()), asked.item_id)
        stored: list[RecordMetadata] = []
        async with Publisher(self._settings, self._settings.events_topic, stored.append) as publisher:
            await publisher.send(event.user_id, encode(event))
        return _json({"partition": stored[0].partition, "offset": stored[0].offset})

    async def answer(self, request: web.Request) -> web.Response:
        """What became of a sent event; waits for it."""
        try:
            place = int(_asked(request, "partition")), int(_asked(request, "offset"))
        except ValueError:
            return error_response(400, "partition and offset are numbers")
        try:
            async with asyncio.timeout(ANSWER_S):
                row = await self._following.outcome(*place)
        except TimeoutError:
            return error_response(504, f"No answer within {ANSWER_S:.0f} s: do the agents and the worker run?")
        return _json(serializers.rows([row], self._following.titles)[0])

    @contextlib.asynccontextmanager
    async def _search(self) -> AsyncIterator[None]:
        """A turn at reading the topics."""
        if self._waiting >= 2 * SEARCHES:
            raise web.HTTPServiceUnavailable(reason="too many questions at a time: ask again in a moment")
        self._waiting += 1
        try:
            async with self._searches:
                yield
        finally:
            self._waiting -= 1


def _json(told: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(told), content_type="application/json")


def _asked(request: web.Request, name: str) -> str:
    return _bounded(name, request.query.get(name, ""))


def _bounded(name: str, given: str) -> str:
    if not 0 < len(given) <= 256:
        raise web.HTTPBadRequest(reason=f"give {name}, of at most 256 characters")
    try:
        given.encode()
    except UnicodeEncodeError:
        raise web.HTTPBadRequest(reason=f"{name} is not UTF-8") from None
    return given
