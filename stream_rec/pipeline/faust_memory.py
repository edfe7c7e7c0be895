"""faust's memory store, with what it forgot put right: which partition a window belongs to that this process wrote.

It stayed in memory when its partition went to another process. The store is chosen by `MEMORY`.
"""

from faust.stores import STORES, memory
from faust.streams import current_event

MEMORY = "partitioned://"


class Memory(memory.Store):  # type: ignore[misc]
    """Remembers the partition of a key that this process wrote, so that it goes when the partition goes."""

    def __setitem__(self, key: bytes, value: bytes) -> None:
        self._key_partition[key] = current_event().message.partition
        self.data[key] = value

    def __delitem__(self, key: bytes) -> None:
        del self.data[key]
        self._key_partition.pop(key, None)


STORES.aliases["partitioned"] = f"{__name__}:Memory"
