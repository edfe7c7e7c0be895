"""A log or a catalogue that is no longer whole is read, or refused in one line: no crash, no hang, nothing else."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stream_rec.data import event_log, tabular_io
from stream_rec.data.event_log import read_events, read_items
from tests.damage import damaged, said

ROWS = [
    {
        "user_id": f"u{number % 7}",
        "item_id": f"i{number % 5}",
        "event_type": "view",
        "timestamp": 1_700_000_000 + number,
    }
    for number in range(60)
]
ITEMS = [
    {"item_id": f"i{number}", "title": f'a "title", {number}', "category": "a|b", "price": 1.5, "vector": [0.5, 1.0]}
    for number in range(5)
]


def files(rows: list[dict[str, Any]], folder: Path) -> dict[str, bytes]:
    """The rows in every kind of file that is read."""
    frame = pl.DataFrame(rows)
    flat = frame.with_columns(pl.col(pl.List).list.eval(pl.element().cast(pl.String)).list.join(" "))
    flat.write_csv(folder / "a.csv")
    flat.write_csv(folder / "a.tsv", separator="\t")
    frame.write_ndjson(folder / "a.jsonl")
    frame.write_parquet(folder / "a.parquet")
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    text = "\n".join(f"{row['user_id']} {row['item_id']}" for row in rows) if "user_id" in rows[0] else "1 2\n"
    return (
        whole | {"a.txt": text.encode()} | {f"{name}.gz": gzip.compress(whole[name]) for name in ("a.csv", "a.jsonl")}
    )


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.txt", "a.jsonl", "a.parquet", "a.csv.gz", "a.jsonl.gz"])
@pytest.mark.parametrize(("read", "rows"), [(read_events, ROWS), (read_items, ITEMS)], ids=["events", "items"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_what_is_left_of_a_file_is_read_or_refused_in_a_line(
    name: str, read: Callable[[Path], Any], rows: list[dict[str, Any]], data: st.DataObject, tmp_path: Path
) -> None:
    folder = tmp_path / "whole"
    if not folder.exists():
        folder.mkdir()
        (tmp_path / "bytes").mkdir()
        for one, content in files(rows, folder).items():
            (tmp_path / "bytes" / one).write_bytes(content)
    path = tmp_path / name
    path.write_bytes(data.draw(damaged((tmp_path / "bytes" / name).read_bytes())))
    assert "\n" not in said(read, path)


EMPTY = {"a.csv": b',"",', "a.tsv": b"\t\t", "a.txt": b" ", "a.jsonl": b'{"user": "", "x": 1}'}
FULL = {
    "a.csv": (b"user,item,time", b"u,i,1700000000"),
    "a.tsv": (b"user\titem\ttime", b"u\ti\t1700000000"),
    "a.txt": (b"u j", b"u i"),
    "a.jsonl": (b'{"user": "u", "item": "j", "time": 1700000000}', b'{"user": "u", "item": "i", "time": 1700000000}'),
}


@pytest.mark.parametrize("name", list(EMPTY))
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_rows_that_hold_nothing_are_counted_and_take_no_memory(
    name: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tabular_io, "LINES", 1_000)
    count, path = 20_000, tmp_path / f"{name}{suffix}"
    head, last = FULL[name]
    content = b"\n".join([head, *[EMPTY[name]] * count, last, b""])
    path.write_bytes(gzip.compress(content) if suffix else content)
    seen = []
    clean = event_log._clean

    def watched(raw: pl.DataFrame, *given: Any) -> Any:
        seen.append(len(raw))
        return clean(raw, *given)

    monkeypatch.setattr(event_log, "_clean", watched)
    log = read_events(path)
    assert log.frame["item"].to_list()[-1] == "i"
    assert seen == [len(log.frame)]
    assert (log.dropped, log.refused) == (count, {"no user": count})
    path.write_bytes(gzip.compress(EMPTY[name]) if suffix else EMPTY[name])
    assert "\n" not in said(read_events, path)


def test_a_log_of_parquet_loses_its_empty_rows_alike(tmp_path: Path) -> None:
    rows = {"user": ["u", None, ""], "item": [1, None, None], "time": [1_700_000_000.0, None, None]}
    pl.DataFrame(rows).write_parquet(tmp_path / "a.parquet")
    log = read_events(tmp_path / "a.parquet")
    assert (len(log.frame), log.dropped, log.refused) == (1, 2, {"no user": 2})
