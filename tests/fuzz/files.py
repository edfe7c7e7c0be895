"""Mutated logs and catalogues through the reading of `train`."""

import gzip
import io
import json
from collections import deque
from pathlib import Path
from random import Random
from typing import Any

import polars as pl

from stream_rec.data.event_log import read_events, read_items, split, to_events
from tests.fuzz import mutate
from tests.fuzz.lane import Attempt

ROWS = 60
BOMB = 64 << 20
"""Bytes of the largest unpacked file."""
SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".parquet", ".csv.gz", ".jsonl.gz")
NAMES = ("user_id", "item_id", "event_type", "timestamp", "price", "quantity", "event_id", "title", "last_watch_dt", "")


def prepare() -> Attempt:
    return _attempt


def _attempt(draw: Random, scratch: Path) -> None:
    suffix = draw.choice(SUFFIXES)
    path = scratch / f"file{suffix}"
    events = draw.random() < 0.6
    path.write_bytes(_file(draw, _events(draw) if events else _items(draw), suffix))
    if events:
        log = read_events(path)
        deque(to_events(log), maxlen=0)
        split(log, 0.8)
    else:
        read_items(path, like=draw.choice((None, "item_id")))


def _events(draw: Random) -> list[dict[str, Any]]:
    begin = draw.choice((0, 1_700_000_000, 1_700_000_000_000, 10**18))
    return [
        {"user_id": f"u{at % 7}", "item_id": f"i{at % 5}", "event_type": "view", "timestamp": begin + at, "price": 1.5}
        for at in range(ROWS)
    ]


def _items(draw: Random) -> list[dict[str, Any]]:
    vector = draw.random() < 0.5
    return [
        {"item_id": f"i{at}", "title": f'a "title", {at}', "category": "a|b", "price": 1.5}
        | ({"vector": [0.5, 1.0]} if vector else {})
        for at in range(ROWS)
    ]


def _file(draw: Random, rows: list[dict[str, Any]], suffix: str) -> bytes:
    """The rows with a few cells and names changed, in a file of that kind, at times damaged."""
    for _ in range(draw.choice((0, 1, 3, 30))):
        row = draw.choice(rows)
        row[draw.choice(list(row))] = _cell(draw)
    if draw.random() < 0.2:
        old, new = draw.choice(list(rows[0])), draw.choice(NAMES)
        rows = [{new if name == old else name: value for name, value in row.items()} for row in rows]
    plain = suffix.removesuffix(".gz")
    whole = _jsonl(draw, rows) if plain == ".jsonl" else _table(rows, plain)
    if draw.random() < 0.3:
        whole = mutate.damaged(draw, whole)
    if suffix.endswith(".gz"):
        if draw.random() < 0.05:
            whole += draw.choice((b"x", b"0", b'"')) * BOMB
        whole = gzip.compress(whole, 1)
        if draw.random() < 0.2:
            whole = mutate.damaged(draw, whole)
    return whole


def _cell(draw: Random) -> Any:
    try:
        value = json.loads(mutate.token(draw))
        json.dumps(value, ensure_ascii=False).encode()  # polars takes no lone surrogate
        return value
    except (ValueError, RecursionError):
        return draw.choice((None, "", "1e999", -1, 9**30, float("nan"), "\x00", "2026-01-01T00:00:00Z"))


def _jsonl(draw: Random, rows: list[dict[str, Any]]) -> bytes:
    lines = [json.dumps(row).encode() for row in rows]
    if draw.random() < 0.5:
        lines[draw.randrange(len(lines))] = mutate.message(draw, rows[0])
    return b"\n".join(lines) + b"\n"


def _table(rows: list[dict[str, Any]], suffix: str) -> bytes:
    """Typed where all values of a column agree, else text."""
    columns = {}
    for name in rows[0]:
        values = [row.get(name) for row in rows]
        try:
            columns[name] = pl.Series(name, values, strict=True)
        except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError):
            columns[name] = pl.Series(name, [None if value is None else str(value)[:100_000] for value in values])
        if suffix != ".parquet" and (columns[name].dtype.is_nested() or columns[name].dtype == pl.Object):
            columns[name] = pl.Series(name, [str(value) for value in values])
    frame, sink = pl.DataFrame(list(columns.values())), io.BytesIO()
    match suffix:
        case ".parquet":
            frame.write_parquet(sink)
        case ".txt":
            frame.write_csv(sink, separator=" ", include_header=False, quote_style="never")
        case _:
            frame.write_csv(sink, separator="\t" if suffix == ".tsv" else ",")
    return sink.getvalue()
