"""What is wrong with what was found, against what should be there. Pure functions of lists.

Records are compared by what they answer: of windows and recommendations that is the event (its offset) or, for a
tombstone, the how manieth erasure of its user it is. An item's place is compared by its score, so that ties may stand
in either order.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from stream_rec.messages import Recommendation

TOLERANCE = 2e-3
"""Of scores: float32 sums in another order, through a blend of logarithms."""


class Faults(NamedTuple):
    lost: int = 0
    duplicated: int = 0
    wrong: int = 0
    """Another value than it should be, or what nothing asked for."""
    out_of_order: int = 0

    def __add__(self, other: "Faults") -> "Faults":  # type: ignore[override]
        return Faults(*(one + another for one, another in zip(self, other, strict=True)))


class Entry(NamedTuple):
    """A record: what it stands for, and its content."""

    place: Hashable
    content: Any


def compare(
    wanted: Sequence[Entry], found: Sequence[Entry], same: Callable[[Any, Any], bool], *, ordered: bool = True
) -> Faults:
    """`wanted` and `found` are of one partition where their order counts. A place stands once in `wanted`."""
    content = {entry.place: entry.content for entry in wanted}
    rank = {entry.place: at for at, entry in enumerate(wanted)}
    counts = Counter(entry.place for entry in found)
    lost = sum(place not in counts for place in content)
    duplicated = sum(times - 1 for place, times in counts.items() if place in content)
    wrong = sum(entry.place not in content or not same(content[entry.place], entry.content) for entry in found)
    return Faults(lost, duplicated, wrong, _inversions(rank, found) if ordered else 0)


def _inversions(rank: Mapping[Hashable, int], found: Sequence[Entry]) -> int:
    """How many records stand behind one that should come after them; repeats are counted elsewhere."""
    newest, behind, seen = -1, 0, set()
    for place, _ in found:
        if place not in rank or place in seen:
            continue
        seen.add(place)
        behind += rank[place] < newest
        newest = max(newest, rank[place])
    return behind


def numbered(records: Sequence[tuple[bytes, int | None, Any]]) -> list[Entry]:
    """Entries of (key, offset of the event or None for a tombstone, content), in order."""
    erasures: Counter[bytes] = Counter()
    entries = []
    for key, offset, content in records:
        if offset is None:
            erasures[key] += 1
            entries.append(Entry((key, erasures[key]), None))
        else:
            entries.append(Entry(offset, content))
    return entries


def same_answer(one: Recommendation | None, other: Recommendation | None) -> bool:
    """Whether two answers are the same to rounding, and but for the order of ties."""
    if one is None or other is None:
        return one is other
    if _head(one) != _head(other) or len(one.items) != len(other.items):
        return False
    return (
        _same_ranking(one, other)
        and _same_ranking(other, one)
        and _close(one.next_event, other.next_event)
        and _close(_weights(one), _weights(other))
    )


def _head(one: Recommendation) -> tuple[Any, ...]:
    return one.user_id, one.seq, one.offset, one.event_time, one.model


def _weights(one: Recommendation) -> list[float]:
    """Of the interests, in their order; which of two equal ones is the last may differ."""
    return [interest.weight for interest in one.interests]


def _same_ranking(one: Recommendation, other: Recommendation) -> bool:
    """Each item of `one` has the score that it has in `other`, or ties with the last one there."""
    theirs = {ranked.item_id: ranked for ranked in other.items}
    for ranked in one.items:
        match = theirs.get(ranked.item_id, other.items[-1])
        if not _close([ranked.score, ranked.probability], [match.score, match.probability]):
            return False
    return True


def _close(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and _close(list(one.values()), [other[name] for name in one])
    return len(one) == len(other) and all(abs(a - b) <= TOLERANCE for a, b in zip(one, other, strict=True))
