"""Records of the items topic as changes of a catalogue."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
from aiokafka import ConsumerRecord

from stream_rec.kafka.record_batches import Unreadable
from stream_rec.messages import Item, Rejected, read_entry

Entry = tuple[ConsumerRecord, Item]
"""An item and the record that it came in."""


class Changes(NamedTuple):
    """What some records of the topic change."""

    items: Sequence[Entry]
    """Added or changed, the newest record of each."""
    withdrawn: Sequence[str]
    """Ids of items that are recommended no more."""


def changes_in(
    records: Sequence[ConsumerRecord],
    admit: Callable[[Item], None],
    max_bytes: int,
    refuse: Callable[[ConsumerRecord, Rejected], None],
) -> Changes:
    """What `records`, in their order, change in a catalogue; `refuse` is given those that can't be used.

    Attributes are left out: no model reads them, and they may be large.
    """
    entries: dict[str, Entry] = {}
    withdrawn: dict[str, None] = {}

    def held(item_id: str) -> Item | None:
        return entries[item_id][1] if item_id in entries else None

    for record in records:
        try:
            item = item_of(record, held, max_bytes)
            if item is not None:
                admit(item)
        except Rejected as rejected:
            refuse(record, rejected)
            continue
        if item is None:
            withdrawn[record.key.decode(errors="replace")] = None
        else:
            withdrawn.pop(item.item_id, None)
            entries[item.item_id] = record, msgspec.structs.replace(item, attributes=None)
    return Changes(list(entries.values()), list(withdrawn))


def item_of(record: ConsumerRecord, held: Callable[[str], Item | None], max_bytes: int) -> Item | None:
    """The item that a record of the topic leaves, None for nothing; `held` says what was there before it.

    A withdrawn item keeps its text: what users did with it stays readable. Raises `Rejected`.
    """
    if isinstance(record, Unreadable):
        raise Rejected(record.reason, record.error)
    if not record.key:
        raise Rejected("empty key")
    if record.value is None:
        item = held(record.key.decode(errors="replace"))
        return None if item is None else msgspec.structs.replace(item, available=False)
    return read_entry(record.key, record.value, max_bytes)
