"""What is trained on: a log and its catalogue, from files or from topics, within a period."""

import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, Self

import polars as pl

from stream_rec.data import event_log, ids, times
from stream_rec.data.event_log import Log
from stream_rec.errors import UserError
from stream_rec.messages import Item
from stream_rec.runtime.progress import Progress

UNITS = {"m": 60.0, "h": 3_600.0, "d": 86_400.0, "w": 604_800.0}


class Period(NamedTuple):
    """Events from `since` on and before `until`, seconds since 1970; None is open."""

    since: float | None = None
    until: float | None = None

    @classmethod
    def parse(cls, since: str | None, until: str | None, options: tuple[str, str] = ("--since", "--until")) -> Self:
        """Of two times as a person says them, see `moment`. Raises `UserError`, which names the `options`."""
        now = time.time()
        found = cls(
            None if since is None else moment(options[0], since, now),
            None if until is None else moment(options[1], until, now),
        )
        if found.since is not None and found.until is not None and found.since >= found.until:
            raise UserError(f"{options[0]} {since} is not before {options[1]} {until}")
        return found

    @classmethod
    def span(cls, text: str) -> Self:
        """Of the option --range: SINCE..UNTIL, of which one may be left out, or SINCE alone. Raises `UserError`."""
        since, _, until = text.partition("..")
        return cls.parse(since or None, until or None, ("the begin of --range", "the end of --range"))

    def __contains__(self, at: object) -> bool:
        return isinstance(at, float) and (self.since or 0) <= at and (self.until is None or at < self.until)

    def of(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The events of `frame` (with `time`) within the period."""
        if self.since is not None:
            frame = frame.filter(pl.col("time") >= self.since)
        return frame if self.until is None else frame.filter(pl.col("time") < self.until)


class Source(NamedTuple):
    """What is trained on."""

    log: Log
    items: Sequence[Item]
    about: str
    """Where it comes from, in words."""
    notes: Sequence[str] = ()
    """What a person should know of the reading, a line each."""

    @classmethod
    def of(cls, log: Log, items: Sequence[Item], about: str, notes: Sequence[str] = ()) -> Self:
        """A log and its catalogue, brought together; what a person should know of both comes after `notes`."""
        told = list(notes)
        if log.has_time and log.frame["time"][0] == log.frame["time"][-1]:
            log = event_log.untimed(log)
            told.append(f"all events of {about} have the same time, so it tells nothing")
        known = [item.item_id for item in items]
        log = log._replace(frame=log.frame.with_columns(ids.joined(log.frame["item"], known)))
        told.append(f"{about}: {log.period}")
        if not log.has_time:
            told.append("without times the order of the rows counts: nothing decays, gaps and recency are left out")
        elif log.frame["time"].median() < times.EARLIEST:  # type: ignore[operator]
            told.append(
                "warning: most times lie before 1990. Live events come so much later that what is counted here weighs "
                "nothing beside them: give seconds since 1970, or --columns time=none"
            )
        if items:
            told += ids.coverage(log.frame["item"], known)
        return cls(log, items, about, told)


ReadTopic = Callable[[str, Period, Path | None, str, Progress], Source]
"""Reads a topic of events; and the topic of items, if no file of them, with the value of
`--columns`, is given. Raises `UserError`."""


def moment(option: str, text: str, now: float) -> float:
    """A time in seconds since 1970: ISO 8601 (without a zone UTC), such seconds, or an age. Raises `UserError`.

    >>> moment("--since", "90m", 10_000.0), moment("--since", "1970-01-02", 0.0), moment("--since", "12.5", 0.0)
    (4600.0, 86400.0, 12.5)
    """
    if age := re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", text):
        return now - float(age[1]) * UNITS[age[2]]
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise UserError(
            f"{option} is {text!r}: give a time (2026-11-27 or 2026-11-27T08:30), seconds since 1970, "
            "or an age (90m, 12h, 30d)"
        ) from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def from_files(events: Path, items: Path | None, columns: str, period: Period) -> Source:
    """A log and a catalogue from files. Raises `UserError`."""
    log, catalogue = event_log.read_both(events, items, columns)
    if period != Period():
        if not log.has_time:
            raise UserError(f"{events}: it has no times, so leave out --since and --until")
        log = log._replace(frame=period.of(log.frame))
        if log.frame.is_empty():
            raise UserError(f"{events}: it holds no event of the time that --since and --until name")
    return Source.of(log, catalogue, events.name, event_log.losses(log, str(events)))
