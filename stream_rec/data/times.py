"""The times of a log: which column looks like one, seconds since 1970 from the usual forms, and what is believed.

A single time from another century would stretch every half-life, and end all learning until it has come: such rows are
refused.
"""

import re
import time

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stream_rec.messages import LATEST

DAY = 86_400.0
EARLIEST = 631_152_000.0
"""The year 1990: no log of a shop or a site is older. A log whose times lie before it counts from some other moment."""
LEAST = 20
"""Times from which on a log tells its period."""
OUTLIERS = 1_000
"""One time of this many may lie far from all others: then it is refused."""
FAR = 10.0
"""A time lies far from all others where the gap is this many times their span, and a year."""
CENTURY = 946_684_800.0
"""The year 2000: numbers of a column without a known name are times from it on."""
MIDDLE = (0.01, 0.99)
"""Quantiles of the times: the part of a log whose span counts."""

NAMES = frozenset({"time", "date", "datetime", "timestamp", "ts", "dt", "dat", "day", "when", "at", "epoch", "created"})
"""Words in the name of a column that say that it is a time."""
DATE = r"^\s*(\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}|\d{1,2}[ -][A-Za-z]{3,9}[ -]\d{2,4})(\D|$)"
"""A date as people write it, with or without the time of day."""
LOOKED_AT = 10_000
"""Rows in which a column that looks like a time is searched for."""

UNREADABLE = "unreadable time"

Times = NDArray[np.float64]


def seconds(column: pl.Series) -> pl.Series:
    """Times of any kind as seconds since 1970; null where there is none.

    ISO 8601 (without a zone UTC), or numbers: seconds, milli-, micro- or nanoseconds since 1970, told apart by their
    median, or dates such as 20261127 and 20261127083000.
    """
    if column.dtype.is_temporal():
        return column.cast(pl.Datetime("us")).dt.timestamp("us") / 1e6
    if column.dtype == pl.String:
        column = column.str.strip_chars()
    numbers = column.cast(pl.Float64, strict=False)
    if column.dtype == pl.String and numbers.count() < column.count() / 2:
        return _iso(column)
    if (dates := _digits(numbers)) is not None:
        return dates
    median = numbers.filter(numbers.is_finite()).abs().median()
    size = median if isinstance(median, float) else 0.0
    # Seconds reach 1e11 in the year 5138, milliseconds reached it in 1973; and so on by thousands.
    return numbers / next((unit for least, unit in ((1e17, 1e9), (1e14, 1e6), (LATEST, 1e3)) if size > least), 1.0)


def doubts(times: pl.Series, now: float | None = None) -> pl.Series:
    """Why each of these times (seconds) is not believed; null where it is.

    What no event may say is refused in any log: a time before 1970 or beyond 5138. Where most times are later than
    1990, all have to be, and none later than a day after `now`.
    """
    now = time.time() if now is None else now
    usable = times.filter(times.is_finite())
    median = usable.median()
    calendar = isinstance(median, float) and median >= EARLIEST and len(usable) >= LEAST
    at = pl.col("at")
    why = (
        pl.when(at.is_finite().not_() | at.is_null())
        .then(pl.lit(UNREADABLE))
        .when(at < 0)
        .then(pl.lit("time before 1970"))
        .when(at > LATEST)
        .then(pl.lit("time not in seconds"))
    )
    if calendar:
        why = why.when(at < EARLIEST).then(pl.lit("time before 1990"))
        why = why.when(at > now + DAY).then(pl.lit("time in the future"))
    frame = pl.DataFrame({"at": times}).with_columns(why.otherwise(None).alias("why"))
    low, high = _near(frame.filter(pl.col("why").is_null())["at"].sort().to_numpy())
    far = pl.col("why").is_null() & ~at.is_between(low, high)
    return frame.select(pl.when(far).then(pl.lit("time far from all others")).otherwise("why").alias("why"))["why"]


def span(times: Times, begin: float = 0.0) -> float:
    """Seconds that the events take from the share `begin` of them on, as their middle part tells: a few far ones count
    for nothing. `times` (events,) are in order."""
    low, high = (float(np.quantile(times, max(begin, quantile))) for quantile in MIDDLE)
    share = MIDDLE[1] - max(begin, MIDDLE[0])
    whole = (high - low) * (1 - begin) / share
    return whole or float(times[-1] - np.quantile(times, begin))


def likely(frame: pl.DataFrame) -> list[str]:
    """The columns that look like times, the likeliest first: by their values, then by their names."""
    by_value = [name for name in frame.columns if _looks_like_time(frame[name])]
    by_name = [name for name in frame.columns if NAMES & set(_words(name)) and _counts(frame[name])]
    return list(dict.fromkeys((*by_value, *by_name)))


def shown(at: float) -> str:
    """A time in seconds since 1970 as text.

    >>> shown(1_764_201_600.5)
    '2025-11-27 00:00:00'
    """
    return str(np.datetime64(int(at // 1), "s")).replace("T", " ")


def _near(times: Times) -> tuple[float, float]:
    """The first and the last of the sorted `times` that are not far from all others."""
    if not len(times):
        return -np.inf, np.inf
    few = len(times) // OUTLIERS
    limit = max(365 * DAY, FAR * float(times[-1 - few] - times[few]))
    gaps = np.diff(times)
    first, last = np.flatnonzero(gaps[:few] > limit), np.flatnonzero(gaps[len(gaps) - few :] > limit)
    return (
        float(times[first[-1] + 1]) if len(first) else -np.inf,
        float(times[len(gaps) - few + last[0]]) if len(last) else np.inf,
    )


def _digits(numbers: pl.Series) -> pl.Series | None:
    """Dates written as whole numbers, 20261127 or 20261127083000; None where these numbers are none."""
    for least, most, form in (
        (19_700_101, 21_001_231, "%Y%m%d"),
        (19_700_101_000_000, 21_001_231_235_959, "%Y%m%d%H%M%S"),
    ):
        within = numbers.is_between(least, most)
        count = int(within.sum())
        if count and count > 0.9 * len(numbers):
            text = numbers.set(~within, None).cast(pl.Int64, strict=False).cast(pl.String)
            dates = text.str.to_datetime(form, time_unit="us", strict=False)
            if dates.count() > 0.9 * count:
                return dates.dt.timestamp("us") / 1e6
    return None


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


def _looks_like_time(column: pl.Series) -> bool:
    """Whether most values are dates, or numbers that count from 1970 to a day of this century."""
    if column.dtype.is_temporal():
        return True
    if not (column.dtype == pl.String or column.dtype.is_numeric()):
        return False
    filled = column.drop_nulls()
    if not len(filled):
        return False
    if filled.dtype == pl.String and filled.str.contains(DATE).sum() > 0.5 * len(filled):
        return True
    within = seconds(filled).is_between(CENTURY, time.time() + 366 * DAY)
    return int(within.sum()) > 0.9 * len(filled)


def _counts(column: pl.Series) -> bool:
    """Whether most values are numbers."""
    filled = column.drop_nulls()
    return bool(len(filled)) and filled.cast(pl.Float64, strict=False).count() > len(filled) / 2


def _words(name: str) -> list[str]:
    """`lastWatchDt` and `last_watch_dt` are the same words."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)]
