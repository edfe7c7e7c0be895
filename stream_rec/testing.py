"""For the tests of a service: the client's interface over recommendations in memory, without Kafka.

>>> import asyncio
>>> from stream_rec import Recommendation
>>> topic = RecommendationsTopic()
>>> topic.publish(Recommendation("u", 1, 0, 0.0, (), {}, (), "model"))
>>> topic.erase("u")
>>> async def service():
...     async with topic.recommendations() as recommendations:
...         return [type(answer).__name__ async for answer in recommendations]
>>> asyncio.run(service())
['Recommendation', 'Erased']
"""

from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

from stream_rec.client import Erased
from stream_rec.messages import Recommendation, encode, read_recommendation


class RecommendationsTopic:
    """A topic of recommendations in memory. What is published goes through the wire format, as in Kafka."""

    def __init__(self) -> None:
        self._records: list[tuple[str, bytes | None]] = []

    def publish(self, answer: Recommendation) -> None:
        """Adds `answer`. Raises `msgspec.ValidationError` for one that no reader would accept."""
        value = encode(answer)
        read_recommendation(value)
        self._records.append((answer.user_id, value))

    def erase(self, user_id: str) -> None:
        """Adds the tombstone of an erased user."""
        self._records.append((user_id, None))

    def recommendations(self) -> "InMemoryRecommendations":
        """In place of `stream_rec.Recommendations`, from the beginning; the iteration ends at the end of the topic."""
        return InMemoryRecommendations(self._records)

    def latest(self) -> "InMemoryLatestRecommendations":
        """In place of `stream_rec.LatestRecommendations`."""
        return InMemoryLatestRecommendations(self._records)


class _Context:
    def __init__(self, records: list[tuple[str, bytes | None]]) -> None:
        self._records = records
        self.unreadable = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is open."""


class InMemoryRecommendations(_Context):
    """As `stream_rec.Recommendations`: an async context manager and async iterator, in the order of publishing."""

    def __init__(self, records: list[tuple[str, bytes | None]]) -> None:
        super().__init__(records)
        self._position = 0

    def __aiter__(self) -> AsyncIterator[Recommendation | Erased]:
        return self

    async def __anext__(self) -> Recommendation | Erased:
        if self._position == len(self._records):
            raise StopAsyncIteration
        user_id, value = self._records[self._position]
        self._position += 1
        return Erased(user_id) if value is None else read_recommendation(value)


class InMemoryLatestRecommendations(_Context):
    """As `stream_rec.LatestRecommendations`: the newest recommendation of each user that is not erased."""

    left_out = 0

    def __len__(self) -> int:
        """Users with a recommendation."""
        return sum(value is not None for value in dict(self._records).values())

    def get(self, user_id: str) -> Recommendation | None:
        """The newest recommendation of a user; None without one."""
        value = dict(self._records).get(user_id)
        return None if value is None else read_recommendation(value)

    async def caught_up(self) -> None:
        """Returns at once: everything published is there."""
