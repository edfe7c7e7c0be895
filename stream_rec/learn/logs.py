"""Logs of events and catalogues of items, read from the usual kinds of files and written to csv and jsonl.

A log is read once and only the columns that are used, into one table; ids stay text, as they stand in the file.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar, get_args

import msgspec
import polars as pl

from stream_rec.errors import UserError
from stream_rec.learn import tables
from stream_rec.learn.columns import EVENT_ROLES, ITEM_ROLES, Columns, listing, parse_columns, recognise
from stream_rec.messages import Event, Id, Item, Label, Text

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
LONGEST_ID, LONGEST_LABEL, LONGEST_TEXT = (get_args(kind)[1].max_length for kind in (Id, Label, Text))

JSON = (str, int, float, list, dict)

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
    """Rows left out: without a user, an item, an event or a time, or with one longer than the wire takes."""


def read_events(path: Path, columns: Mapping[str, str] | None = None) -> Log:
    """The log at `path`; `columns` (see `parse_columns`) goes before what the names of its columns say.

    Without an event column everything is a `view`. Times are seconds, milli-, micro- or nanoseconds since 1970 (told
    apart by their median) or ISO 8601, without a zone UTC. Raises `UserError`.
    """
    with tables.one_line(path):
        table = tables.scan(path, OPTIONAL)
        found = table.collect_schema().names()
        roles = recognise(found, EVENT_ROLES, columns or {}, path)
        for role in ("user", "item"):
            if not roles[role]:
                raise UserError(
                    f"{path}: which column is the {role}? Say it with --columns {role}=...; {listing(found)}"
                )
        used = {role: names[0] for role, names in roles.items() if names}
        raw = table.select(pl.col(name).alias(role) for role, name in used.items()).collect()
        used = {role: name for role, name in used.items() if role not in OPTIONAL or raw[role].null_count() < len(raw)}
        frame = _ordered(_clean(raw.select(list(used))))
    if frame.is_empty():
        lacking = "has a user, an item, an event and a time (ISO 8601, or counted since 1970)"
        why = f"none of its {len(raw)} rows {lacking}" if len(raw) else "it holds no event"
        raise UserError(f"{path}: {why}; {listing(found)}")
    return Log(frame, Columns(**used), has_time="time" in used, dropped=len(raw) - len(frame))


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
    with tables.one_line(path):
        rows = tables.rows(path)
    if not rows:
        raise UserError(f"{path}: it holds no row")
    found = list(dict.fromkeys(name for row in rows for name in row))
    given = {**({"item": like} if like in found else {}), **(columns or {})}
    roles = recognise(found, ITEM_ROLES, given, path)
    if not roles["item"]:
        raise UserError(f"{path}: which column is the item's id? Say it with --columns item=...; {listing(found)}")
    id_column = roles.pop("item")[0]
    items = [item for row in rows if (item := _item(row, id_column, roles)) is not None]
    if not items:
        raise UserError(f"{path}: no row has an id in its column {id_column!r}; {listing(found)}")
    if len(items) < len(rows):
        _logger.warning("%s: left out %d items without a usable id", path, len(rows) - len(items))
    return list({item.item_id: item for item in items}.values())


def write_events(events: Iterable[Event], path: Path) -> int:
    """Writes a file that `read_events` reads back; returns the number of events. Raises `UserError`.

    An event's `context` is kept by jsonl alone, and a `Log` does not hold it.
    """
    return tables.write(events, path, ("user_id", "item_id", "event_type", "timestamp", *OPTIONAL))


def write_items(items: Iterable[Item], path: Path) -> int:
    """Writes a file that `read_items` reads back; returns the number of items. Raises `UserError`."""
    return tables.write(items, path, Item.__struct_fields__)


def _clean(raw: pl.DataFrame) -> pl.DataFrame:
    """Ids and event names as text, numbers as numbers, times as seconds, without the rows that lack one of these."""
    texts = [_text(raw[role]) for role in ("user", "item", "event", "event_id") if role in raw.columns]
    numbers = [_numbers(raw[role]) for role in ("position", "price", "quantity") if role in raw.columns]
    frame = pl.DataFrame([*texts, *numbers])
    if "time" in raw.columns:
        frame = frame.with_columns(_seconds(raw["time"]).alias("time"))
    if "event_id" in frame.columns:
        frame = frame.with_columns(pl.when(_fits("event_id", LONGEST_ID)).then("event_id").alias("event_id"))
    event = pl.col("event").str.to_lowercase() if "event" in frame.columns else pl.lit("view").alias("event")
    kept = [_fits("user", LONGEST_ID), _fits("item", LONGEST_ID), _fits("event", LONGEST_LABEL)]
    if "time" in frame.columns:
        kept.append(pl.col("time").is_finite())
    return frame.with_columns(event).filter(*kept)


def _ordered(frame: pl.DataFrame) -> pl.DataFrame:
    keys = [name for name in ("time", "position") if name in frame.columns]
    if keys:
        frame = frame.sort(keys, maintain_order=True, nulls_last=True)
    if "time" not in keys:
        frame = frame.with_columns(pl.int_range(pl.len()).cast(pl.Float64).alias("time"))
    return frame.select("user", "item", "event", "time", *(name for name in OPTIONAL if name in frame.columns))


def _text(column: pl.Series) -> pl.Series:
    """Stripped; whole floats, which other tools make of whole numbers with gaps, as whole numbers."""
    if column.dtype.is_float():
        whole = column.cast(pl.Int64, strict=False)
        column = whole if (whole == column).all() and whole.null_count() == column.null_count() else column
    return column.cast(pl.String).str.strip_chars()


def _fits(name: str, longest: int) -> pl.Expr:
    return pl.col(name).str.len_chars().is_between(1, longest)


def _numbers(column: pl.Series) -> pl.Series:
    column = column.str.strip_chars() if column.dtype == pl.String else column
    return column.cast(pl.Float64, strict=False)


def _seconds(column: pl.Series) -> pl.Series:
    """Times of any kind as seconds since 1970; null where there is none."""
    if column.dtype.is_temporal():
        return column.cast(pl.Datetime("us")).dt.timestamp("us") / 1e6
    numbers = _numbers(column)
    if column.dtype == pl.String and numbers.count() < column.count() / 2:
        return _iso(column)
    median = numbers.filter(numbers.is_finite()).abs().median()
    size = median if isinstance(median, float) else 0.0
    # Seconds reach 1e11 in the year 5138, milliseconds reached it in 1973; and so on by thousands.
    return numbers / next((unit for least, unit in ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3)) if size > least), 1.0)


def _iso(column: pl.Series) -> pl.Series:
    """ISO 8601 with the usual liberties: a space for the T, `UTC` for the Z, no seconds, no time of day, no zone."""
    text = (
        column.str.strip_chars()
        .str.replace(r"^(\d{4}-\d{2}-\d{2}) +(\d)", "${1}T${2}")
        .str.replace(r"(?i) *(Z|UTC|GMT)$", "+0000")
        .str.replace(r"^(\d{4}-\d{2}-\d{2})$", "${1}T00:00")
        .str.replace(r"(T\d{2}:\d{2})($|[+-])", "${1}:00${2}")
        .str.replace(r"(T[\d:.]+)$", "${1}+0000")
    )
    times = text.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%#z", time_unit="us", time_zone="UTC", strict=False)
    return times.dt.timestamp("us") / 1e6


def _item(row: Mapping[str, Any], id_column: str, roles: Mapping[str, list[str]]) -> Item | None:
    """None: the row has no id that the wire takes."""
    left = {name: value for name, value in row.items() if _filled(value)}
    item_id = _words(left.pop(id_column, "")).strip()
    if not 0 < len(item_id) <= LONGEST_ID:
        return None
    title, category, brand = (_take(left, roles[role], _words) or "" for role in ("title", "category", "brand"))
    price = _take(left, roles["price"], _reader(Annotated[float, msgspec.Meta(ge=0)]))
    vector = _take(left, roles["vector"], _reader(list[float]))
    available = _take(left, roles["available"], _reader(bool))
    attributes = _take(left, roles["attributes"], _reader(dict[str, Any])) or {}
    attributes |= {name: value if isinstance(value, JSON) else str(value) for name, value in left.items()}
    return Item(item_id, title, category, brand, price, attributes or None, vector, available is not False)


def _filled(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))


def _words(value: Any) -> str:
    text = "|".join(map(str, value)) if isinstance(value, list) else str(value)
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
