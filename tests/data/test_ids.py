"""Ids are the text of the file, in every kind of file and by the same rule for a log and for its catalogue."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stream_rec.data import ids
from stream_rec.data.event_log import read_both, read_events, read_items
from stream_rec.data.source import Period, from_files
from stream_rec.errors import UserError

KINDS = ("a.csv", "a.csv.gz", "a.tsv", "a.jsonl", "a.jsonl.gz", "a.parquet")
ODD = ["12345678901234567890", "12345678901234567891", "1.10", "1.1", "007", "7", "1e5", "100000", "-1", "true"]

texts = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=8)
numbers = st.integers(0, 10**22).map(str) | st.from_regex(r"0[0-9]{1,5}|[0-9]{1,3}\.[0-9]{1,3}", fullmatch=True)
tidy = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(path: Path, column: str, values: Sequence[object]) -> Path:
    """Rows of a user and these ids, as text: in csv and jsonl as they stand, in parquet as strings."""
    frame = pl.DataFrame({"user": ["u"] * len(values), column: list(map(str, values))})
    kind = path.name.removesuffix(".gz")
    plain = path.with_name(kind)
    if kind.endswith(".parquet"):
        frame.write_parquet(plain)
    elif kind.endswith(".jsonl"):
        plain.write_text("".join(f'{{"user": "u", "{column}": {json.dumps(str(value))}}}\n' for value in values))
    else:
        frame.write_csv(plain, separator="\t" if kind.endswith(".tsv") else ",")
    if path != plain:
        path.write_bytes(gzip.compress(plain.read_bytes()))
    return path


def both(path: Path, column: str = "item") -> tuple[list[str], list[str]]:
    """The item ids of the file as a log, and as a catalogue."""
    log = read_events(path, {"item": column})
    return log.frame["item"].to_list(), [item.item_id for item in read_items(path, {"item": column})]


@pytest.mark.parametrize("name", KINDS)
def test_ids_that_look_like_numbers_keep_each_digit(tmp_path: Path, name: str) -> None:
    assert both(write(tmp_path / name, "item", ODD)) == (ODD, ODD)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.parquet"])
@given(values=st.lists(texts | numbers, min_size=1, max_size=8, unique=True))
@tidy
def test_a_log_and_a_catalogue_read_the_same_ids(tmp_path: Path, name: str, values: list[str]) -> None:
    of_log, of_items = both(write(tmp_path / name, "item", values))
    assert of_log == of_items
    if not all(value.endswith(".0") for value in values) and not any(value in ids.MISSING for value in values):
        assert of_log == values


def test_numbers_of_a_jsonl_file_are_ids_as_they_are_written_there(tmp_path: Path) -> None:
    written = ["12345678901234567890", "123456789012345678901234567890123456789012345", "1.10", "7"]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"user": 1, "item": {one}}}\n' for one in written))
    assert both(path) == (written, written)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz", "a.jsonl", "a.parquet"])
def test_whole_numbers_that_a_tool_has_made_floats_are_recognised(tmp_path: Path, name: str) -> None:
    assert both(write(tmp_path / name, "item", ["12.0", "7.0", "0.0"])) == (["12", "7", "0"],) * 2


@pytest.mark.parametrize("kind", [pl.Float64, pl.Float32, pl.Int64, pl.UInt64, pl.Decimal(20, 2)])
def test_a_parquet_column_of_numbers_gives_the_same_ids_as_text(tmp_path: Path, kind: pl.DataType) -> None:
    frame = pl.DataFrame({"user": ["u"] * 3, "item": pl.Series([12, 7, 120]).cast(kind)})
    frame.write_parquet(tmp_path / "a.parquet")
    assert both(tmp_path / "a.parquet") == (["12", "7", "120"],) * 2


def test_floats_as_json_numbers_are_recognised_too(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"user": 3.0, "item": 12.0}\n{"user": 4.0, "item": 7.0}\n')
    assert both(tmp_path / "a.jsonl") == (["12", "7"],) * 2
    assert read_events(tmp_path / "a.jsonl").frame["user"].to_list() == ["3", "4"]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
@pytest.mark.parametrize("missing", ["nan", "NaN", "NULL", "<NA>"])
def test_a_missing_number_changes_no_other_id(tmp_path: Path, name: str, missing: str) -> None:
    assert both(write(tmp_path / name, "item", ["1", "2", missing, "10"])) == (["1", "2", "10"],) * 2
    assert both(write(tmp_path / name, "item", ["1.0", missing])) == (["1"],) * 2
    assert both(write(tmp_path / name, "item", ["a", missing])) == (["a", missing],) * 2


@pytest.mark.parametrize("values", [["1.2345678901234567e+19", "12.0"], ["1e20"], ["9007199254740993.0", "1.0"]])
@pytest.mark.parametrize("read", [read_events, read_items])
def test_rounded_ids_are_refused(tmp_path: Path, values: list[str], read) -> None:
    path = write(tmp_path / "a.csv", "item", values)
    with pytest.raises(UserError, match="made floats of the ids in column 'item' and rounded them") as raised:
        read(path)
    assert str(raised.value).isprintable()
    pl.DataFrame({"user": ["u"] * 2, "item": [2.0**60, 1.0]}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(UserError, match="rounded"):
        read(tmp_path / "a.parquet")


def test_a_log_of_mixed_ids_finds_the_items_that_were_made_floats(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item,time\na,22423.0,1\na,85123A,2\nb,1.0,3\nb,9.0,4\n")
    (tmp_path / "items.csv").write_text("item,title\n22423,tea\n85123A,cup\n1.0,one\n1,other\n")
    source = from_files(tmp_path / "log.csv", tmp_path / "items.csv", "", Period())
    assert source.log.frame["item"].to_list() == ["22423", "85123A", "1.0", "9.0"]
    assert source.notes[-1] == "the catalogue knows 3 of the log's 4 items, 75.0% of its events"


def test_a_catalogue_of_other_ids_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item,time\na,1,1\na,2,2\nb,3,3\n")
    (tmp_path / "items.csv").write_text("item,title\np1,tea\np2,cup\n3,pan\n")
    note = from_files(tmp_path / "log.csv", tmp_path / "items.csv", "", Period()).notes[-1]
    assert note.startswith("warning: the catalogue knows 1 of the log's 3 items, 33.3% of its events.")
    assert "'p1' in the catalogue" in note


def columned(folder: Path) -> tuple[Path, Path]:
    (folder / "log.csv").write_text("who,sku,when\na,1,5\nb,2,6\n")
    (folder / "items.csv").write_text("sku,name,prod_name,cost\n1,x,tea,2.5\n2,y,cup,3\n")
    return folder / "log.csv", folder / "items.csv"


def test_the_columns_of_a_catalogue_are_named_by_the_same_option(tmp_path: Path) -> None:
    log, items = read_both(*columned(tmp_path), "user=who,time=when,title=prod_name,price=cost,item=sku")
    assert [(item.item_id, item.title, item.price) for item in items] == [("1", "tea", 2.5), ("2", "cup", 3.0)]
    assert log.frame["item"].to_list() == ["1", "2"]


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ("title=no_such", "items.csv: no column 'no_such' to be the title"),
        ("price=no_such", "log.csv: no column 'no_such' to be the price"),
        ("quantity=cost", "log.csv: no column 'cost' to be the quantity"),
    ],
)
def test_a_column_that_is_not_there_is_told(tmp_path: Path, columns: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        read_both(*columned(tmp_path), f"user=who,time=when,{columns}")


def test_a_column_of_a_file_that_is_not_read_is_refused(tmp_path: Path) -> None:
    log, items = columned(tmp_path)
    with pytest.raises(UserError, match="--columns title=prod_name: a log of events has no title"):
        read_both(log, None, "user=who,time=when,title=prod_name")
    with pytest.raises(UserError, match="--columns user=who: a catalogue has no user"):
        read_items(items, {"user": "who"})


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_barcodes_that_a_spreadsheet_has_rounded_are_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, "item", ["4.00639E+12", "12345", "9.78014E+12"])
    with pytest.raises(UserError, match=r"rounded them, such as [49]\.\d+E\+12"):
        both(path)
    told = ["4.00639E+12", "E12", "1E5"]
    assert both(write(tmp_path / name, "item", told)) == (told, told)
