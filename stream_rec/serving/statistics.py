"""The online statistics of an engine, one for each log that answers may depend on, and their snapshots as bytes.

Usually there is one log, of all events. Where an answer must be a function of its partition alone, each partition is
a log, whose statistics begin with what training knew. A snapshot holds items by their ids, because the rows of a
catalogue are assigned anew at each start; its format is safetensors, never pickle.
"""

from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from stream_rec.features.catalog import Catalog
from stream_rec.features.online_statistics import HalfLives, OnlineStatistics, State, UserCursor
from stream_rec.features.tokens import UNKNOWN, Numbers
from stream_rec.models.model_store import WRONG
from stream_rec.ranking.candidate_features import FeatureExtractor

COUNTS = ("popularity", "recency")
DIRECTIONS = ("transitions.after", "transitions.before")


class StatisticsByLog:
    """Memories that begin with what training knew: `trained`, of all events until `since` (seconds).

    `a_day` bounds what one user teaches, see `OnlineStatistics`.
    """

    def __init__(self, horizons: HalfLives, trained: State, since: float, catalog: Catalog, a_day: float) -> None:
        self._horizons = horizons
        self._trained = trained
        self._since = since
        self._a_day = a_day
        self._catalog = catalog
        self._evidence: dict[int, FeatureExtractor] = {}

    def extractor(self, log: int) -> FeatureExtractor:
        """What speaks for items, as the memory of `log` knows it."""
        if (found := self._evidence.get(log)) is None:
            memory = OnlineStatistics(self._horizons, self._since, self._a_day)
            memory.load(self._trained)
            found = self._evidence[log] = FeatureExtractor.of(memory, self._catalog)
        return found

    def warm(self) -> None:
        """Compiles what an answer takes, rather than in the first step: seconds, once on a machine."""
        FeatureExtractor.of(OnlineStatistics(self._horizons), self._catalog).extract([UNKNOWN], np.zeros(0, np.int64))

    def changed(self) -> None:
        """The catalogue has other items."""
        self._evidence = {log: FeatureExtractor.of(one.memory, self._catalog) for log, one in self._evidence.items()}

    def pack(self, log: int, about: bytes) -> bytes:
        """The memory of `log` as it is now, see `pack`."""
        return pack(self.extractor(log).memory, self._catalog.ids(range(1, len(self._catalog))), about)

    def about(self, packed: bytes) -> bytes:
        """What was told of a packed memory. Raises `ValueError` for what is none."""
        return about_of(packed)

    def unpack(self, log: int, packed: bytes) -> None:
        """Puts a packed memory in the place of that of `log`. Raises `ValueError` for what is none."""
        memory = unpack(packed, self._horizons, self._catalog.row, self._a_day)
        self._evidence[log] = FeatureExtractor.of(memory, self._catalog)

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


def pack(memory: OnlineStatistics, ids: Sequence[str], about: bytes) -> bytes:
    """`ids` are those of the rows 1, 2, ...; `about` is the caller's, who has it back from `about_of`."""
    known = memory.known
    places = np.array([(one.n, one.offset) for one in known.values()], np.int64).reshape(-1, 2)
    times = np.array([(one.time, one.taught, one.taught_at) for one in known.values()], np.float64).reshape(-1, 3)
    told = {"about": np.frombuffer(about, np.uint8), "ids": _bytes(ids), "users": _bytes(list(known))}
    clock = {"since": np.array([memory.since]), "now": np.array([memory.now])}
    return save(memory.state() | told | clock | {"users.places": places, "users.times": times})


def about_of(body: bytes) -> bytes:
    """Raises `ValueError` for what `pack` has not made."""
    return _load(body)["about"].tobytes()


def unpack(body: bytes, horizons: HalfLives, row: Callable[[str], int], a_day: float = np.inf) -> OnlineStatistics:
    """`row` gives an item's row in the present catalogue; what is not in it is left out. Snapshots of
    version 0.1.0 do not say what users have taught: there, they have taught nothing yet.

    Raises `ValueError` for what `pack` has not made.
    """
    arrays = _load(body)
    try:
        rows = np.array([UNKNOWN, *map(row, _strings(arrays["ids"]))], np.int64)
        memory = OnlineStatistics(horizons, a_day=a_day)
        memory.load(_moved(arrays, rows))
        users = _strings(arrays["users"])
        places, times = arrays["users.places"].tolist(), np.atleast_2d(arrays["users.times"].T).T.tolist()
        known = {user: UserCursor(*place, *time) for user, place, time in zip(users, places, times, strict=True)}
        memory.resume(known, float(arrays["since"][0]), float(arrays["now"][0]))
    except (*WRONG, LookupError) as error:
        raise ValueError(f"no snapshot of a memory: {error}") from error
    return memory


def _moved(state: State, rows: Numbers) -> State:
    """The state with `rows[row]` in the place of each row."""
    moved = dict(state)
    for name in DIRECTIONS:
        pairs = rows[state[f"{name}.pairs"]]
        kept = (pairs != UNKNOWN).all(1)
        moved |= {f"{name}.pairs": pairs[kept], f"{name}.weights": state[f"{name}.weights"][kept]}
    for name in COUNTS:
        old = state[f"{name}.sums"]
        sums = np.zeros(int(rows.max()) + 1)
        count = min(len(rows), len(old))
        sums[rows[:count]] = old[:count]
        sums[UNKNOWN] = 0
        highest = rows[state[f"{name}.highest"]]
        moved |= {f"{name}.sums": sums, f"{name}.highest": highest[highest != UNKNOWN]}
    return moved


def _load(body: bytes) -> State:
    try:
        arrays: State = load(body)
        arrays["about"]
    except (*WRONG, LookupError) as error:
        raise ValueError(f"no snapshot of a memory: {error}") from error
    return arrays


def _bytes(texts: Sequence[str]) -> NDArray[np.uint8]:
    return np.frombuffer(msgspec.json.encode(texts), np.uint8)


def _strings(array: NDArray[np.generic]) -> list[str]:
    return msgspec.json.decode(array.tobytes(), type=list[str])
