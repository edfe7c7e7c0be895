"""What a prediction must beat: popularity, and what followed the last item. Both learn from each event they see."""

from collections.abc import Iterable
from typing import NamedTuple


class BaselineRanks(NamedTuple):
    """Place of an item in each floor's list, 1 for the first; None below the list's end."""

    popularity: int | None = None
    markov: int | None = None


class Baselines:
    """Ranks every known item by how often it was seen, and by how often it followed the user's last item.

    Equal transition counts (zero among them) are ordered by popularity, equal popularity by which item was seen first.
    An event is ranked before it is learned from. Counts only grow, one at a time, so the most popular items are kept in
    order by moving one item up; a successor's place is counted in its row.

    `training` holds (user, item) pairs in time order, learned from without being ranked; `depth` is the length of the
    lists, in items.
    """

    def __init__(self, training: Iterable[tuple[str, str]] = (), depth: int = 20) -> None:
        self._depth = depth
        self._index: dict[str, int] = {}
        self._count: list[int] = []
        self._top: list[int] = []
        self._followers: dict[int, dict[int, int]] = {}
        self._last: dict[str, int] = {}
        for user, item in training:
            self._learn(user, self._number(item))

    def observe(self, user: str, item: str) -> BaselineRanks:
        """Where the floors had this event's item; then they learn from it."""
        at = self._number(item)
        ranks = BaselineRanks(self._popularity(at), self._markov(at, self._followers.get(self._last.get(user, -1), {})))
        self._learn(user, at)
        return ranks

    def forget(self, user: str) -> None:
        """Drops the user's last item; the counts hold no user."""
        self._last.pop(user, None)

    def _number(self, item: str) -> int:
        at = self._index.setdefault(item, len(self._index))
        if at == len(self._count):
            self._count.append(0)
        return at

    def _standing(self, at: int) -> tuple[int, int]:
        return self._count[at], -at

    def _popularity(self, at: int) -> int | None:
        return self._top.index(at) + 1 if at in self._top else None

    def _markov(self, at: int, row: dict[int, int]) -> int | None:
        if at not in row:  # it comes after the whole row, among the popular items that are not in the row
            place = self._popularity(at)
            if place is None:
                return None
            place += len(row) - sum(other in row for other in self._top[: place - 1])
            return place if place <= self._depth else None
        times, standing, place = row[at], self._standing(at), 1
        for other, count in row.items():
            if count > times or (count == times and self._standing(other) > standing):
                place += 1
                if place > self._depth:
                    return None
        return place

    def _learn(self, user: str, at: int) -> None:
        before = self._last.get(user)
        if before is not None:
            row = self._followers.setdefault(before, {})
            row[at] = row.get(at, 0) + 1
        self._last[user] = at
        self._count[at] += 1
        self._promote(at)

    def _promote(self, at: int) -> None:
        top, standing = self._top, self._standing(at)
        if at in top:
            place = top.index(at)
        elif len(top) < self._depth:
            place = len(top)
            top.append(at)
        elif self._standing(top[-1]) < standing:
            place = len(top) - 1
            top[place] = at
        else:
            return
        while place and self._standing(top[place - 1]) < standing:
            top[place - 1], top[place] = at, top[place - 1]
            place -= 1
