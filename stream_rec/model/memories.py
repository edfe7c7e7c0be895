"""An engine's online memories: one for each log that answers may depend on.

Usually there is one log, all that happens. Where an answer has to be a function of its partition alone, each partition
is a log, and its memory begins with what training knew, as the others do.
"""

from collections.abc import Callable

from stream_rec.model.catalog import Catalog
from stream_rec.model.counters import Memory
from stream_rec.model.parts import Evidence


class Memories:
    """`fresh` makes a memory that knows what training knew."""

    def __init__(self, fresh: Callable[[], Memory], catalog: Catalog) -> None:
        self._fresh = fresh
        self._catalog = catalog
        self._evidence: dict[int, Evidence] = {}

    def evidence(self, log: int) -> Evidence:
        """What speaks for items, as the memory of `log` knows it."""
        if (found := self._evidence.get(log)) is None:
            found = self._evidence[log] = Evidence.of(self._fresh(), self._catalog)
        return found

    def changed(self) -> None:
        """The catalogue has other items."""
        self._evidence = {log: Evidence.of(one.memory, self._catalog) for log, one in self._evidence.items()}

    def drop(self, log: int) -> None:
        """What is learned of `log` from now on begins anew."""
        self._evidence.pop(log, None)

    def forget(self, user_id: str) -> None:
        for one in self._evidence.values():
            one.memory.forget(user_id)
