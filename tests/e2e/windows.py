"""Windows as the agents would write them, and what the worker answers."""

from collections.abc import Iterator
from itertools import count, islice

from stream_rec.config import Settings
from stream_rec.messages import Event, Recommendation, Window, encode, read_recommendation
from stream_rec.window import append
from tests.e2e.kafka import Sent, produce, read_topic, until, waiting
from tests.tiny import CAPACITY, STRIDE


def stream(users: int) -> Iterator[Window]:
    """Windows of `users` users in turn, without end."""
    held: dict[str, Window] = {}
    for offset in count():
        user = f"u{offset % users}"
        event = Event(user, ("view", "cart")[offset % 2], 1_000.0 + 10 * offset, f"i{offset * 7 % 40}")
        held[user] = append(held.get(user), event, offset=offset, arrived=1.0, capacity=CAPACITY, stride=STRIDE)
        yield held[user]


def windows(users: int, rounds: int) -> list[Window]:
    """The first `rounds` windows of each user."""
    return list(islice(stream(users), users * rounds))


async def write(settings: Settings, made: list[Window]) -> None:
    records = [Sent(one.user_id.encode(), encode(one)) for one in made]
    await produce(settings, records, settings.windows_topic)


async def all_done(settings: Settings) -> None:
    async def done() -> bool:
        return await waiting(settings, settings.worker_group, settings.windows_topic) == 0

    await until(done)


async def answers(settings: Settings) -> list[Recommendation]:
    """What a read_committed consumer sees, tombstones left out."""
    records = await read_topic(settings, settings.recommendations_topic)
    return [read_recommendation(record.value) for record in records if record.value is not None]
