"""Logs of events and catalogues of items, read from the usual kinds of files and written to csv and jsonl.

A log is read once and only the columns that are used, into one table; ids stay text, as they stand in the file.
"""

import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import msgspec
import polars as pl

from stream_rec.data import ids, tabular_io, times
from stream_rec.data.column_roles import EVENT_ROLES, ITEM_ROLES, NONE, Columns, listing, parse_columns, recognise
from stream_rec.errors import UserError
from stream_rec.messages import LONGEST_ID, LONGEST_LABEL, LONGEST_TEXT, Event, Item, Price, Rejected, check_vector

__all__ = (
    "Columns",
    "Log",
    "parse_columns",
    "read_events",
    "read_items",
    "split",
    "to_events",
    "write_events",
    "write_items",
)

OPTIONAL = ("event_id", "price", "quantity")

LARGEST = 3.4028234663852886e38
"""The largest number in single precision."""
MOST_UNREADABLE = 0.9
"""Share of the rows: where more have no readable time, another column or form is meant."""

JSON = (str, int, float, list, dict)
YES = frozenset({"true", "yes", "y", "t", "on", "1", "1.0"})
NO = frozenset({"false", "no", "n", "f", "off", "0", "0.0"})
"""What files write for whether an item is available, in lower case."""

T = TypeVar("T")
_logger = logging.getLogger(__name__)


class Log(NamedTuple):
    """Events in the order of time, then of the position column, then of the file."""

    frame: pl.DataFrame
    """`user`, `item`, `event` (text), `time` (seconds since 1970, or the row's number); where the file has them also
    `price`, `quantity` (numbers) and `event_id` (text)."""
    columns: Columns
    has_time: bool
    """False: `time` counts rows."""
    dropped: int
    """Rows left out."""
    refused: Mapping[str, int] = MappingProxyType({})
    """How many of them for which reason."""

    @property
    def period(self) -> str:
        """The events, and from when to when they are, for the terminal."""
        frame = self.frame
        told = f"{len(frame):,} events of {frame['user'].n_unique():,} users and {frame['item'].n_unique():,} items"
        if not self.has_time:
            return f"{told}, without times"
        begin, end = (times.shown(at) for at in (frame["time"][0], frame["time"][-1]))
        return f"{told}, from {begin} to {end} UTC"


def read_events(path: Path, columns: Mapping[str, str] | None = None) -> Log:
    """The log at `path`; `columns` (see `parse_columns`) goes before what the names of its columns say.

    Without an event column everything is a `view`. Times are what `times.seconds` reads. Rows that lack something, or
    whose time is not believed, are left out and counted. Raises `UserError`; also where no column is known to be the
    time, and one looks like it.
    """
    with tabular_io.one_line(path):
        found = tabular_io.names(path, OPTIONAL)
        if not found:
            raise UserError(f"{path}: it holds no event")
        given = dict(columns or {})
        untimed = given.get("time") == NONE and NONE not in found
        if untimed:
            del given["time"]
        roles = recognise(found, EVENT_ROLES, given, path)
        for role in ("user", "item"):
            if not roles[role]:
                raise UserError(
                    f"{path}: which column is the {role}? Say it with --columns {role}=...; {listing(found)}"
                )
        used = {role: names[0] for role, names in roles.items() if names and not (role == "time" and untimed)}
        table, empty = tabular_io.read_filled(path, list(dict.fromkeys(used.values())))
        count = len(table) + empty
        table = tabular_io.plain(table, path)
        if not (untimed or "time" in used):
            _check_untimed(path, found, used)
        raw = table.select(pl.col(name).alias(role) for role, name in used.items())
        used = {role: name for role, name in used.items() if role not in OPTIONAL or raw[role].null_count() < len(raw)}
        frame, why = _clean(raw.select(list(used)), used, path)
    refused = Counter(why.drop_nulls().to_list()) + Counter({"no user": empty})
    unreadable = refused.get(times.UNREADABLE, 0)
    if unreadable > MOST_UNREADABLE * count:
        example = raw["time"].filter(why == times.UNREADABLE).drop_nulls().cast(pl.String).head(1).to_list()
        raise UserError(
            f"{path}: {unreadable:,} of {count:,} rows have no readable time in column {used['time']!r}"
            f"{f', such as {example[0][:40]!r}' if example else ''}: times are ISO 8601, or counted since 1970; name "
            f"another column with --columns time=...; {listing(found)}"
        )
    if frame.is_empty():
        lacking = "has a user, an item, an event and a time (ISO 8601, or counted since 1970)"
        reasons = f" ({counted(refused)})" if refused else ""
        why_empty = f"none of its {count} rows {lacking}{reasons}" if count else "it holds no event"
        raise UserError(f"{path}: {why_empty}; {listing(found)}")
    return Log(_ordered(frame), Columns(**used), "time" in used, count - len(frame), refused)


def counted(refused: Mapping[str, int]) -> str:
    """Reasons and how often each was given, the most frequent first."""
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(refused.items(), key=lambda one: -one[1]))


def losses(log: Log, place: str) -> list[str]:
    """What of `place` was left out of the log, as lines for the terminal: none where nothing was."""
    return [f"{log.dropped:,} rows of {place} are left out: {counted(log.refused)}"] if log.dropped else []


def untimed(log: Log) -> Log:
    """The log without its times: in the order that it has."""
    rows = pl.int_range(pl.len()).cast(pl.Float64).alias("time")
    return log._replace(frame=log.frame.with_columns(rows), columns=log.columns._replace(time=None), has_time=False)


def believed(log: Log) -> Log:
    """The log without the events whose time is not believed, which are counted."""
    why = times.doubts(log.frame["time"])
    refused = Counter(log.refused) + Counter(why.drop_nulls().to_list())
    return log._replace(frame=log.frame.filter(why.is_null()), dropped=log.dropped + why.count(), refused=refused)


def split(log: Log, share: float) -> tuple[Log, Log]:
    """The first `share` (0 to 1) of the events, and the rest, cut where the time changes that is nearest.

    Raises `UserError` if there is no such place.
    """
    if not 0 < share < 1:
        raise UserError(f"a log is split at a share between 0 and 1, not at {share}")
    time = log.frame["time"]
    wanted = min(round(share * len(time)), len(time) - 1)
    first, after = (int(time.search_sorted(time[wanted], side)) for side in ("left", "right"))
    cuts = [cut for cut in (first, after) if 0 < cut < len(time)]
    if not cuts:
        raise UserError("the log can't be split by time: all its events have the same time")
    cut = min(cuts, key=lambda cut: abs(cut - wanted))
    return log._replace(frame=log.frame[:cut]), log._replace(frame=log.frame[cut:])


def to_events(log: Log) -> Iterator[Event]:
    """The log's events in its order, one at a time."""
    absent = [pl.lit(None).alias(name) for name in OPTIONAL if name not in log.frame.columns]
    table = log.frame.with_columns(absent).select("user", "event", "time", "item", *OPTIONAL)
    return (Event(*row) for row in table.iter_rows())


def read_items(path: Path, columns: Mapping[str, str] | None = None, like: str | None = None) -> list[Item]:
    """The catalogue at `path`; of an id that comes twice the later entry is kept.

    `like` is the name of the item column in the log: a catalogue that has the same column is keyed by it. In a row the
    first filled column that can be the title (title, text, words, ...), the category, ... is it; whatever else is
    filled becomes an attribute. Longer texts are cut to the 2,000 characters that the wire takes. Raises `UserError`.
    """
    with tabular_io.one_line(path):
        rows = tabular_io.rows(path)
        if not rows:
            raise UserError(f"{path}: it holds no row")
        found = list(dict.fromkeys(name for row in rows for name in row))
        given = {**({"item": like} if like in found else {}), **(columns or {})}
        roles = recognise(found, ITEM_ROLES, given, path)
        if not roles["item"]:
            raise UserError(f"{path}: which column is the item's id? Say it with --columns item=...; {listing(found)}")
        id_column = roles.pop("item")[0]
        named = ids.as_text(tabular_io.plain(tabular_io.read(path, [id_column]), path)[id_column], path)
    for row in rows:
        row.pop(id_column, None)
    pairs = zip(named.to_list(), rows, strict=True)
    items = [_item(path, item_id, row, roles) for item_id, row in pairs if item_id and len(item_id) <= LONGEST_ID]
    _check_vectors(path, items)
    if not items:
        raise UserError(f"{path}: no row has an id in its column {id_column!r}; {listing(found)}")
    if len(items) < len(rows):
        _logger.warning("%s: left out %d items without a usable id", path, len(rows) - len(items))
    _warn_of_prices(path, items, roles["price"])
    newest = {item.item_id: item for item in items}
    if len(newest) < len(items):
        _logger.warning(
            "%s: %d rows are of items that come again further down: the last row of each counts",
            *(path, len(items) - len(newest)),
        )
    return list(newest.values())


def read_both(events: Path, items: Path | None, columns: str) -> tuple[Log, list[Item]]:
    """A log and its catalogue, where there is one, by the value of `--columns`.

    A column that both may have, such as the item's, is that of each file that has it. Raises `UserError`.
    """
    given = parse_columns(columns)
    if items is None:
        return read_events(events, given), []
    with tabular_io.one_line(events):
        of_log = tabular_io.names(events, OPTIONAL)
    with tabular_io.one_line(items):
        of_items = tabular_io.names(items)

    shared = {role: name for role, name in given.items() if role in EVENT_ROLES and role in ITEM_ROLES}
    not_of_log = {role for role, name in shared.items() if name in of_items and name not in of_log}
    not_of_items = {role for role, name in shared.items() if name in of_log and name not in of_items}
    for_log = {role: given[role] for role in given if role in EVENT_ROLES and role not in not_of_log}
    for_items = {role: given[role] for role in given if role in ITEM_ROLES and role not in not_of_items}
    log = read_events(events, for_log)
    return log, read_items(items, for_items, like=log.columns.item)


def write_events(events: Iterable[Event], path: Path) -> int:
    """Writes a file that `read_events` reads back; returns the number of events. Raises `UserError`.

    An event's `context` is kept by jsonl alone, and a `Log` does not hold it.
    """
    return tabular_io.write(events, path, ("user_id", "item_id", "event_type", "timestamp", *OPTIONAL))


def write_items(items: Iterable[Item], path: Path) -> int:
    """Writes a file that `read_items` reads back; returns the number of items. Raises `UserError`."""
    return tabular_io.write(items, path, Item.__struct_fields__)


def _clean(raw: pl.DataFrame, used: Mapping[str, str], path: Path) -> tuple[pl.DataFrame, pl.Series]:
    """Ids and event names as text, numbers as numbers, times as seconds, without the rows that lack one of these; and
    of each row of `raw` why it was left out, null where it wasn't.

    `used` names the file's columns by their roles.
    """
    texts = [
        ids.as_text(raw[role].alias(used[role]), path).alias(role)
        for role in ("user", "item", "event", "event_id")
        if role in raw.columns
    ]
    numbers = [_numbers(raw[role]) for role in ("position", "price", "quantity") if role in raw.columns]
    frame = pl.DataFrame([*texts, *numbers])
    if "event_id" in frame.columns:
        frame = frame.with_columns(pl.when(_fits("event_id", LONGEST_ID)).then("event_id").alias("event_id"))
    event = pl.col("event").str.to_lowercase() if "event" in frame.columns else pl.lit("view").alias("event")
    frame = frame.with_columns(event)
    why = pl.lit(None, pl.String)
    if "time" in raw.columns:
        at = times.seconds(raw["time"]).alias("time")
        frame = frame.with_columns(at, times.doubts(at).alias("why"))
        why = pl.col("why")
    for role, longest in (("event", LONGEST_LABEL), ("item", LONGEST_ID), ("user", LONGEST_ID)):
        length = pl.col(role).str.len_chars()
        why = pl.when(length.is_null() | (length == 0)).then(pl.lit(f"no {role}")).otherwise(why)
        why = pl.when(length > longest).then(pl.lit(f"{role} of more than {longest} characters")).otherwise(why)
    frame = frame.with_columns(why.alias("why"))
    return frame.filter(pl.col("why").is_null()).drop("why"), frame["why"]


def _check_untimed(path: Path, found: Sequence[str], used: Mapping[str, str]) -> None:
    """Raises `UserError` where a column that plays no role looks like the time."""
    others = [name for name in found if name not in used.values()]
    if not others:
        return
    sample = tabular_io.read(path, others).head(times.LOOKED_AT)
    if likely := times.likely(sample):
        name = likely[0] if likely[0].isprintable() else repr(likely[0])
        raise UserError(
            f"{path}: no column is known to be the time, and {name!r} looks like it: say --columns time={name}, or "
            f"--columns time={NONE} if the log has no times; {listing(found)}"
        )


def _ordered(frame: pl.DataFrame) -> pl.DataFrame:
    keys = [name for name in ("time", "position") if name in frame.columns]
    if keys:
        frame = frame.sort(keys, maintain_order=True, nulls_last=True)
    if "time" not in keys:
        frame = frame.with_columns(pl.int_range(pl.len()).cast(pl.Float64).alias("time"))
    return frame.select("user", "item", "event", "time", *(name for name in OPTIONAL if name in frame.columns))


def _fits(name: str, longest: int) -> pl.Expr:
    return pl.col(name).str.len_chars().is_between(1, longest)


def _numbers(column: pl.Series) -> pl.Series:
    column = column.str.strip_chars() if column.dtype == pl.String else column
    return column.cast(pl.Float64, strict=False)


def _item(path: Path, item_id: str, row: Mapping[str, Any], roles: Mapping[str, list[str]]) -> Item:
    left = {name: value for name, value in row.items() if _filled(value)}
    title, category, brand = (_take(left, roles[role], _words) or "" for role in ("title", "category", "brand"))
    price = _take(left, roles["price"], _reader(Price))
    vector = _take(left, roles["vector"], partial(_vector, f"{path}: item {item_id!r}"))
    available = _take(left, roles["available"], partial(_available, f"{path}: item {item_id!r}"))
    attributes = _take(left, roles["attributes"], _reader(dict[str, Any])) or {}
    attributes |= {name: value if isinstance(value, JSON) else str(value) for name, value in left.items()}
    return Item(item_id, title, category, brand, price, attributes or None, vector or None, available is not False)


def _available(whose: str, value: Any) -> bool:
    """Raises `UserError` for a word that says neither: an item that nobody may buy would be recommended."""
    word = str(value).strip().lower()
    if word in YES or word in NO:
        return word in YES
    raise UserError(f"{whose}: {str(value)[:60]!r} does not say whether it is available: write true or false")


def _vector(whose: str, value: Any) -> list[float]:
    """Raises `UserError` for what is no list of numbers, and names the first value that is at fault."""
    if isinstance(value, str) and value.strip().lower() in ids.MISSING:
        raise msgspec.ValidationError("no vector")
    numbers = _from_json(value) if isinstance(value, str) else value
    if not isinstance(numbers, list):
        raise UserError(f"{whose}: its vector {str(value)[:60]!r} is no JSON list of numbers")
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise UserError(f"{whose}: its vector holds {str(number)[:60]!r}, which is no number")
        if not -LARGEST <= number <= LARGEST:
            raise UserError(f"{whose}: its vector holds {str(number)[:60]}, which single precision can't hold")
    try:
        if numbers:
            check_vector(numbers)
    except Rejected as rejected:
        raise UserError(f"{whose}: {rejected}") from None
    return [float(number) for number in numbers]


def _from_json(text: str) -> Any:
    """Takes NaN and Infinity too, which tools write though JSON has no such numbers; None for what is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _warn_of_prices(path: Path, items: Sequence[Item], names: Sequence[str]) -> None:
    """Logs how many items have a price that can't be read, which then stands among their attributes."""
    unread = [
        (item.item_id, item.attributes[name])
        for item in items
        for name in names
        if item.price is None and item.attributes and name in item.attributes
    ]
    if unread:
        item_id, price = unread[0]
        _logger.warning(
            "%s: %d prices are not numbers from 0 to 1e18, such as %s of item %r: these items have none",
            *(path, len(unread), repr(price)[:60], item_id),
        )


def _check_vectors(path: Path, items: Sequence[Item]) -> None:
    """Raises `UserError` where two items have vectors of different lengths."""
    lengths = [(item.item_id, len(item.vector)) for item in items if item.vector]
    for item_id, length in lengths:
        first, wanted = lengths[0]
        if length != wanted:
            raise UserError(
                f"{path}: item {item_id!r} has a vector of {length} numbers and item {first!r} one of {wanted}: "
                "give each item one of the same length, or none a vector"
            )


def _filled(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))


def _words(value: Any) -> str:
    if isinstance(value, bytes):
        raise msgspec.ValidationError("no text")
    values = value.values() if isinstance(value, dict) else value
    text = "|".join(map(str, values)) if isinstance(value, list | dict) else str(value)
    return text[:LONGEST_TEXT]


def _take(left: dict[str, Any], names: Iterable[str], read: Callable[[Any], T]) -> T | None:
    """Takes the first value that is there and can be read out of the row."""
    for name in names:
        if name in left:
            try:
                taken = read(left[name])
            except msgspec.MsgspecError:
                continue
            del left[name]
            return taken
    return None


def _reader(kind: Any) -> Callable[[Any], Any]:
    """Reads a value of this type, in a csv from its JSON text."""

    def read(value: Any) -> Any:
        packed = isinstance(value, str) and value[:1] in ("{", "[")
        return msgspec.convert(msgspec.json.decode(value) if packed else value, kind, strict=False)

    return read
