"""An engine's online memories: one for each log that answers may depend on.

Usually there is one log, all that happens. Where an answer has to be a function of its partition alone, each partition
is a log, and its memory begins with what training knew, as the others do.
"""

import numpy as np

from stream_rec.features.catalog import Catalog
from stream_rec.features.online_statistics import Horizons, Memory, State
from stream_rec.features.tokens import UNKNOWN
from stream_rec.ranking.candidate_features import Evidence
from stream_rec.serving import statistics_snapshot


class Memories:
    """Memories that begin with what training knew: `trained`, of all events until `since` (seconds).

    `a_day` bounds what one user teaches, see `Memory`.
    """

    def __init__(self, horizons: Horizons, trained: State, since: float, catalog: Catalog, a_day: float) -> None:
        self._horizons = horizons
        self._trained = trained
        self._since = since
        self._a_day = a_day
        self._catalog = catalog
        self._evidence: dict[int, Evidence] = {}

    def evidence(self, log: int) -> Evidence:
        """What speaks for items, as the memory of `log` knows it."""
        if (found := self._evidence.get(log)) is None:
            memory = Memory(self._horizons, self._since, self._a_day)
            memory.load(self._trained)
            found = self._evidence[log] = Evidence.of(memory, self._catalog)
        return found

    def warm(self) -> None:
        """Compiles what an answer takes, rather than in the first step: seconds, once on a machine."""
        Evidence.of(Memory(self._horizons), self._catalog).ask([UNKNOWN], np.zeros(0, np.int64))

    def changed(self) -> None:
        """The catalogue has other items."""
        self._evidence = {log: Evidence.of(one.memory, self._catalog) for log, one in self._evidence.items()}

    def pack(self, log: int, about: bytes) -> bytes:
        """The memory of `log` as it is now, see `snapshot`."""
        return statistics_snapshot.pack(
            self.evidence(log).memory, self._catalog.ids(range(1, len(self._catalog))), about
        )

    def about(self, packed: bytes) -> bytes:
        """What was told of a packed memory. Raises `ValueError` for what is none."""
        return statistics_snapshot.about_of(packed)

    def unpack(self, log: int, packed: bytes) -> None:
        """Puts a packed memory in the place of that of `log`. Raises `ValueError` for what is none."""
        memory = statistics_snapshot.unpack(packed, self._horizons, self._catalog.row, self._a_day)
        self._evidence[log] = Evidence.of(memory, self._catalog)

    def drop(self, log: int) -> None:
        """What is learned of `log` from now on begins anew."""
        self._evidence.pop(log, None)

    def reset(self) -> None:
        """Every log begins anew."""
        self._evidence.clear()

    def forget(self, user_id: str) -> None:
        for one in self._evidence.values():
            one.memory.forget(user_id)

    def __contains__(self, user_id: str) -> bool:
        return any(user_id in one.memory for one in self._evidence.values())
