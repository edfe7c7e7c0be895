"""How items have been doing: events and recommendations in the last minutes, of the items seen lately."""

from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable

from msgspec import Struct

ITEMS = 20_000
"""Items that are remembered, the latest seen, in 25 MB."""
BUCKET_S = 10.0
BUCKETS = 60
TYPES = 12
"""Event types that are told apart; a hostile stream could name a new one each time."""


class Trend(Struct, frozen=True):
    """An item's last ten minutes, by Kafka's clock."""

    bucket_s: float
    events: tuple[int, ...]
    """In each bucket, oldest first."""
    recommended: tuple[int, ...]
    """Answers in whose first ten it stood."""
    by_type: dict[str, int]
    """Of all that was seen of it."""


class _Ring:
    """Counts of the last `BUCKETS` buckets."""

    __slots__ = ("_counts", "_last")

    def __init__(self) -> None:
        self._counts = array("I", bytes(4 * BUCKETS))
        self._last = 0

    def add(self, bucket: int) -> None:
        """One that is older than all that are held is left out."""
        for passed in range(max(self._last, bucket - BUCKETS) + 1, bucket + 1):
            self._counts[passed % BUCKETS] = 0
        self._last = max(self._last, bucket)
        if bucket > self._last - BUCKETS:
            self._counts[bucket % BUCKETS] += 1

    def until(self, bucket: int) -> tuple[int, ...]:
        """Oldest first, `bucket` last."""
        held = range(self._last - BUCKETS + 1, self._last + 1)
        return tuple(self._counts[at % BUCKETS] if at in held else 0 for at in range(bucket - BUCKETS + 1, bucket + 1))


class _Item:
    __slots__ = ("by_type", "events", "recommended")

    def __init__(self) -> None:
        self.events, self.recommended = _Ring(), _Ring()
        self.by_type: Counter[str] = Counter()


class Trends:
    def __init__(self) -> None:
        self._items: OrderedDict[str, _Item] = OrderedDict()

    def event(self, item: str, event_type: str, time_s: float) -> None:
        held = self._held(item)
        held.events.add(int(time_s // BUCKET_S))
        if event_type in held.by_type or len(held.by_type) < TYPES:
            held.by_type[event_type] += 1

    def recommended(self, items: Iterable[str], time_s: float) -> None:
        for item in items:
            self._held(item).recommended.add(int(time_s // BUCKET_S))

    def of(self, item: str, now: float) -> Trend:
        """Zeros for an item that wasn't seen."""
        held, last = self._items.get(item, _Item()), int(now // BUCKET_S)
        counts = held.events.until(last), held.recommended.until(last)
        return Trend(BUCKET_S, *counts, dict(held.by_type.most_common()))

    def _held(self, item: str) -> _Item:
        held = self._items.get(item)
        if held is None:
            held = self._items[item] = _Item()
        self._items.move_to_end(item)
        if len(self._items) > ITEMS:
            self._items.popitem(last=False)
        return held
