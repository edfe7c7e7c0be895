"""What the items topic says of items, cut to what a page shows."""

import contextlib
from collections.abc import Collection, Sequence

from aiokafka import ConsumerRecord

from stream_rec.kafka.item_records import item_of
from stream_rec.messages import ITEM_BYTES, Item, Rejected

ITEMS = 200_000
"""Items that are held, the first ones read, in about 100 MB; the others are shown by their ids."""
LONGEST = 200
"""Characters of a title."""


class Titles:
    def __init__(self, max_bytes: int = ITEM_BYTES) -> None:
        self._max_bytes = max_bytes
        self._items: dict[str, Item] = {}

    def __len__(self) -> int:
        return len(self._items)

    def take(self, records: Sequence[ConsumerRecord]) -> None:
        """An item that was withdrawn keeps its title, for the windows that hold it."""
        for record in records:
            with contextlib.suppress(Rejected):
                item = item_of(record, self._items.get, self._max_bytes)
                if item is not None and (item.item_id in self._items or len(self._items) < ITEMS):
                    title, category, brand = (text[:LONGEST] for text in (item.title, item.category, item.brand))
                    self._items[item.item_id] = Item(
                        item.item_id, title, category, brand, item.price, available=item.available
                    )

    def of(self, item_ids: Collection[str]) -> dict[str, Item]:
        """Those that are known."""
        return {item_id: item for item_id in item_ids if (item := self._items.get(item_id)) is not None}
