import datetime as dt
import gzip
import os
import re
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stream_rec.data.event_log import (
    Columns,
    Log,
    parse_columns,
    read_events,
    read_items,
    split,
    to_events,
    write_events,
    write_items,
)
from stream_rec.errors import UserError
from stream_rec.messages import Event, Item

DATA = Path(os.environ.get("REAL_LOGS", Path(__file__).parents[2].parent / "shared" / "data"))

EVENTS = [
    Event("u1", "view", 1_600_000_000.25, "007", event_id="a-1", price=9.5),
    Event("ü, 2", "purchase", 1_600_000_000.25, "x", quantity=2.0),
    Event("u1", "cart", 1_600_000_123.001, '"quoted"'),
]
ITEMS = [
    Item(
        "007",
        "Trail shoe, blue",
        "sport.running",
        "Northpeak",
        119.95,
        {"colour": "blue", "year": 2024, "waterproof": True},
    ),
    Item("x", vector=[0.25, -1.5], available=False),
    Item("y", title='The "Ridge" tent\nsecond line', attributes={"sizes": ["S", "M"], "size": "038"}),
]

tidy = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
names = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=12).filter(
    lambda text: text == text.strip()
)
numbers = st.floats(0, 1e9, allow_subnormal=False)
events = st.builds(
    Event,
    user_id=names,
    event_type=st.sampled_from(["view", "cart", "purchase"]),
    timestamp=st.sampled_from([1.6e9, 1.6e9 + 0.125, 1.7e9]) | st.floats(1e6, 9e10),
    item_id=names,
    event_id=st.none() | names,
    price=st.none() | numbers,
    quantity=st.none() | numbers,
)


def write(path: Path, text: str) -> Path:
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def log_of(path: Path, text: str, **columns: str) -> Log:
    return read_events(write(path, text), columns)


def error_of(call, *arguments, **named) -> str:
    with pytest.raises(UserError) as raised:
        call(*arguments, **named)
    text = str(raised.value)
    assert text.isprintable(), text
    return text


@pytest.mark.parametrize("name", ["e.csv", "e.csv.gz", "e.tsv", "e.jsonl", "e.jsonl.gz", "E.CSV.GZ"])
def test_events_come_back_as_they_were_written(tmp_path, name):
    assert write_events(EVENTS, tmp_path / name) == 3
    assert list(to_events(read_events(tmp_path / name))) == EVENTS


@pytest.mark.parametrize("name", ["e.csv", "e.jsonl"])
@given(written=st.lists(events, min_size=1, max_size=12))
@tidy
def test_any_events_come_back_in_the_order_of_time_and_equal_times_in_the_order_of_the_file(tmp_path, name, written):
    write_events(written, tmp_path / name)
    assert list(to_events(read_events(tmp_path / name))) == sorted(written, key=lambda event: event.timestamp)


def test_a_jsonl_file_may_name_its_optional_fields_late(tmp_path):
    early = [Event("u", "view", float(second), "x") for second in range(1_000_000, 1_012_000)]
    late = Event("u", "purchase", 2e6, "x", event_id="1", price=3.0, quantity=1.0)
    write_events([*early, late], tmp_path / "e.jsonl")
    assert list(to_events(read_events(tmp_path / "e.jsonl")))[-1] == late


@pytest.mark.parametrize("name", ["i.csv", "i.csv.gz", "i.jsonl", "i.jsonl.gz"])
def test_items_come_back_as_they_were_written(tmp_path, name):
    assert write_items(ITEMS, tmp_path / name) == 3
    assert read_items(tmp_path / name) == ITEMS


def test_parquet_with_numbers_and_date_times_is_read(tmp_path):
    frame = pl.DataFrame({"CustomerID": [7.0, None, 8.0], "sku": [3, 4, 5], "date": ["2020-01-01T00:00:01"] * 3})
    frame.with_columns(pl.col("date").str.to_datetime()).write_parquet(tmp_path / "e.parquet")
    log = read_events(tmp_path / "e.parquet")
    assert log.frame.rows() == [("7", "3", "view", 1_577_836_801.0), ("8", "5", "view", 1_577_836_801.0)]
    assert log.dropped == 1


@pytest.mark.parametrize("name", ["e.txt", "e.txt.gz"])
@pytest.mark.parametrize("separator", [" ", "\t"])
def test_plain_text_is_read_in_its_order(tmp_path, name, separator):
    log = log_of(tmp_path / name, "".join(f"{user}{separator}{item}\n" for user, item in [(2, 9), (1, 8), (2, 7)]))
    assert log.frame.rows() == [("2", "9", "view", 0.0), ("1", "8", "view", 1.0), ("2", "7", "view", 2.0)]
    assert not log.has_time
    assert log.columns == Columns("user", "item")


def test_further_fields_of_plain_text_can_be_named(tmp_path):
    log = log_of(tmp_path / "u.txt", "1\t8\t5\t200\n2\t9\t1\t100\n", time="column_4")
    assert log.frame["user"].to_list() == ["2", "1"]


@pytest.mark.parametrize(
    ("header", "columns"),
    [
        ("user_id,item_id,event_type,timestamp", Columns("user_id", "item_id", "event_type", "timestamp")),
        ("user,item,user_id,ts", Columns("user", "item", None, "ts")),
        ("visitorid,itemid,event,timestamp", Columns("visitorid", "itemid", "event", "timestamp")),
        (
            "Customer ID,StockCode,InvoiceDate,Price",
            Columns("Customer ID", "StockCode", None, "InvoiceDate", None, "Price"),
        ),
        ("user_id,user_session,product_id,event_time", Columns("user_id", "product_id", None, "event_time")),
        ("userId,movieId,rating,timestamp", Columns("userId", "movieId", None, "timestamp")),
    ],
)
def test_columns_are_recognised(tmp_path, header, columns):
    assert log_of(tmp_path / "e.csv", f"{header}\n1,2,3,4\n").columns == columns


def test_named_columns_win_over_recognised_ones(tmp_path):
    log = log_of(tmp_path / "e.csv", "user,item,who,what,when\n1,2,3,like,5\n", user="who", event="what", time="when")
    assert log.frame.rows() == [("3", "2", "like", 5.0)]


def test_a_column_named_for_one_role_plays_no_other(tmp_path):
    assert log_of(tmp_path / "e.csv", "user,session_id,item\n1,2,3\n", item="user").columns == Columns(
        "session_id", "user"
    )


def test_the_option_is_parsed():
    assert parse_columns(" user=customer id, time=a=b ") == {"user": "customer id", "time": "a=b"}
    assert parse_columns("") == {}


@pytest.mark.parametrize("text", ["user", "user=", "=x", "nose=x", "user=a,user=b", "user=a,"])
def test_a_wrong_option_is_told(text):
    assert error_of(parse_columns, text).startswith("--columns: ")


@given(times=st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=30))
@tidy
def test_equal_times_keep_the_order_of_the_file(tmp_path, times):
    rows = "".join(f"u,{number},{time}\n" for number, time in enumerate(times))
    log = log_of(tmp_path / "e.csv", "user,item,time\n" + rows)
    assert [int(item) for item in log.frame["item"]] == sorted(range(len(times)), key=lambda number: times[number])


def test_a_position_orders_equal_times_and_files_without_time(tmp_path):
    with_time = log_of(tmp_path / "a.csv", "user,item,pos,time\nu,c,1,5\nu,a,9,4\nu,b,0,5\n")
    without = log_of(tmp_path / "b.csv", "user,item,pos\nu,c,10\nu,a,2\nu,b,2\n")
    assert with_time.frame["item"].to_list() == without.frame["item"].to_list() == ["a", "b", "c"]
    assert without.frame["time"].to_list() == [0.0, 1.0, 2.0]
    assert (with_time.has_time, without.has_time) == (True, False)


@pytest.mark.parametrize("unit", [1, 1_000, 1_000_000, 1_000_000_000])
def test_times_in_other_units_become_seconds(tmp_path, unit):
    log = log_of(tmp_path / "e.csv", f"user,item,ts\n1,2,{1_700_000_000 * unit}\n1,2,{1_700_000_060 * unit}\n1,2,0\n")
    assert log.frame["time"].to_list() == [0.0, 1_700_000_000.0, 1_700_000_060.0]


@pytest.mark.parametrize(
    "text",
    [
        *("2020-09-13T12:26:40", "2020-09-13 12:26:40", "2020-09-13T12:26:40Z", "2020-09-13 12:26:40 UTC"),
        *("2020-09-13T12:26:40.000", "2020-09-13T14:26:40+02:00", "2020-09-13T07:26:40.0-0500"),
    ],
)
def test_iso_date_times_become_seconds(tmp_path, text):
    assert log_of(tmp_path / "e.csv", f"user,item,time\n1,2,{text}\n").frame["time"].to_list() == [1.6e9]


def test_dates_minutes_and_parts_of_seconds_may_stand_in_one_column(tmp_path):
    log = log_of(
        tmp_path / "e.csv", "user,item,time\n1,2,1970-01-02\n1,2,1970-01-01 00:01\n1,2,1970-01-01T00:00:00.25Z\n"
    )
    assert log.frame["time"].to_list() == [0.25, 60.0, 86_400.0]


def test_rows_that_say_too_little_are_counted(tmp_path):
    long = "x" * 257
    log = log_of(tmp_path / "e.csv", f"user,item,time\n1,2,3\n,2,3\n1, ,3\n1,2,\n1,2,soon\n1,2,inf\n{long},2,3\n1\n")
    assert log.frame.rows() == [("1", "2", "view", 3.0)]
    assert log.dropped == 7


def test_ids_stay_text_and_event_names_become_lower_case(tmp_path):
    log = log_of(tmp_path / "e.csv", "user,item,event\n007,1e5, View \n0,00, CART\n")
    assert log.frame.select("user", "item", "event").rows() == [("007", "1e5", "view"), ("0", "00", "cart")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(
            ("e.csv", b""),
            ("e.csv", b"user,item\n"),
            ("e.csv", b"user,item\n1,\xff\n"),
            ("e.csv", b'user,item\n1,"x\n2,3'),
        ),
        *(
            ("e.csv.gz", b"no gzip"),
            ("e.csv.gz", gzip.compress(b"user,item\n" + b"1,2\n" * 9_999, mtime=0)[:60]),
            ("e.txt", b""),
        ),
        *(
            ("e.txt.gz", b"no gzip"),
            ("e.txt", b"\xff\xfe\n"),
            ("e.jsonl", b""),
            ("e.jsonl", b'{"user": 1, "item": 2}\n{"us'),
        ),
        *(("e.jsonl", b"[1]\n"), ("e.jsonl.gz", b"no gzip"), ("e.parquet", b"no parquet"), ("e.parquet", b"")),
        *(
            ("e.csv", b"\x00\x01\x02\xff\n\x00"),
            ("e.csv", b"user,item\n,\n"),
            ("e.xlsx", b"user,item\n1,2\n"),
            ("e", b"1 2\n"),
        ),
    ],
)
@pytest.mark.parametrize("read", [read_events, read_items])
def test_what_cannot_be_read_is_told_in_one_line(tmp_path, name, content, read):
    (tmp_path / name).write_bytes(content)
    assert name in error_of(read, tmp_path / name)


@pytest.mark.parametrize("read", [read_events, read_items])
def test_a_missing_file_is_told(tmp_path, read):
    for name in ("no.csv", "no.txt.gz", "no.jsonl", "no.parquet"):
        assert f"no file at {tmp_path / name}" in error_of(read, tmp_path / name)
    (tmp_path / "folder.csv").mkdir()
    error_of(read, tmp_path / "folder.csv")


def test_a_missing_column_is_told_with_the_columns_found(tmp_path):
    path = write(tmp_path / "e.csv", "who,item,colour\n1,2,3\n")
    assert "--columns user=" in error_of(read_events, path)
    assert "who, item, colour" in error_of(read_events, path)
    assert "who, item, colour" in error_of(read_events, path, {"user": "customer"})
    assert "holds no row" in error_of(read_items, write(tmp_path / "i.csv", "id,colour\n"))
    assert "who, colour" in error_of(read_items, write(tmp_path / "i.csv", "who,colour\n1,2\n"))


def test_dates_that_are_not_iso_are_told(tmp_path):
    assert "ISO 8601" in error_of(log_of, tmp_path / "e.csv", "user,item,time\n1,2,12/1/2010 8:26\n")


def test_what_cannot_be_written_is_told(tmp_path):
    assert "e.parquet" in error_of(write_events, EVENTS, tmp_path / "e.parquet")
    assert "no" in error_of(write_items, ITEMS, tmp_path / "no" / "i.csv")


@given(times=st.lists(st.integers(0, 6), min_size=2, max_size=40), share=st.floats(0.01, 0.99))
@tidy
def test_a_split_parts_strictly_earlier_from_later(tmp_path, times, share):
    log = log_of(tmp_path / "e.csv", "user,item,time\n" + "".join(f"u,i,{time}\n" for time in times))
    if len(set(times)) == 1:
        assert "same time" in error_of(split, log, share)
        return
    before, after = split(log, share)
    assert before.frame["time"].max() < after.frame["time"].min()
    assert before.frame.rows() + after.frame.rows() == log.frame.rows()
    cuts = [cut for cut in range(1, len(times)) if log.frame["time"][cut - 1] < log.frame["time"][cut]]
    wanted = min(round(share * len(times)), len(times) - 1)
    assert abs(len(before.frame) - wanted) == min(abs(cut - wanted) for cut in cuts)


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, 2.0, float("nan")])
def test_a_share_that_splits_nothing_is_told(tmp_path, share):
    error_of(split, log_of(tmp_path / "e.csv", "user,item,time\n1,2,3\n1,2,4\n"), share)


def test_the_same_column_as_in_the_log_keys_the_catalogue(tmp_path):
    path = write(tmp_path / "i.csv", "item,movie_id,title\n1,50,Jumanji\n2,60,Heat\n")
    assert [item.item_id for item in read_items(path)] == ["1", "2"]
    assert [item.item_id for item in read_items(path, like="movie_id")] == ["50", "60"]
    assert [item.item_id for item in read_items(path, like="product_id")] == ["1", "2"]
    assert [item.item_id for item in read_items(path, {"item": "title"}, like="movie_id")] == ["Jumanji", "Heat"]


def test_the_first_filled_column_plays_a_role_and_the_rest_become_attributes(tmp_path):
    text = "sku,title,text,category_code,category_id,year,code,gone\n1,A,a b,x.y,77,1999,01,\n2, ,b c,,88,,02,\n"
    first, second = read_items(write(tmp_path / "i.csv", text))
    assert first == Item("1", "A", "x.y", attributes={"text": "a b", "category_id": 77, "year": 1999, "code": "01"})
    assert second == Item("2", "b c", "88", attributes={"code": "02"})


def test_of_an_item_that_comes_twice_the_later_entry_is_kept(tmp_path, caplog):
    path = write(tmp_path / "i.csv", "id,name\n1,old\n2,other\n1,new\n")
    assert [(item.item_id, item.title) for item in read_items(path)] == [("1", "new"), ("2", "other")]
    assert "1 rows are of items that come again further down" in caplog.text


def test_what_a_file_writes_for_yes_and_no_says_whether_an_item_is_available(tmp_path):
    words = {"yes": True, "No": False, "Y": True, "n": False, "0.0": False, "1": True, "FALSE": False, "": True}
    rows = "".join(f"{number},{word}\n" for number, word in enumerate(words))
    items = read_items(write(tmp_path / "i.csv", f"id,available\n{rows}"))
    assert [item.available for item in items] == list(words.values())
    numbers = write(tmp_path / "numbers.csv", "id,available\na,0.0\nb,1.0\n")
    assert [item.available for item in read_items(numbers)] == [False, True]


@pytest.mark.parametrize("word", ['"out of stock"', "-1", '"[false]"', "2"])
def test_an_item_of_which_a_file_does_not_say_whether_it_is_available_is_refused(tmp_path, word):
    path = write(tmp_path / "i.csv", f"id,available\na,true\nb,{word}\n")
    assert "does not say whether it is available: write true or false" in error_of(read_items, path)


@pytest.mark.parametrize("written", ["0.5 1.0", "0.5|1.0", "{}", "7"])
def test_a_vector_that_is_written_in_another_way_is_refused(tmp_path, written):
    path = write(tmp_path / "i.csv", f'id,vector\na,"[0.5, 1]"\nb,{written}\n')
    assert f"item 'b': its vector '{written}' is no JSON list of numbers" in error_of(read_items, path)
    line = write(tmp_path / "i.jsonl", '{"id": "b", "vector": {"0": 0.5}}\n')
    assert "item 'b': its vector" in error_of(read_items, line)


def test_prices_that_are_none_are_counted(tmp_path, caplog):
    path = write(tmp_path / "i.csv", 'id,price\na,"1,50"\nb,2.5\nc,-1\nd,\n')
    assert [item.price for item in read_items(path)] == [None, 2.5, None, None]
    assert "2 prices are not numbers from 0 to 1e18, such as '1,50' of item 'a'" in caplog.text


def test_categories_that_are_numbers_are_the_text_of_the_file(tmp_path):
    written = ["1.10", "1.1", "100000000000000000001", "100000000000000000002", "007", "7", "7.0"]
    rows = "".join(f"{number},{category}\n" for number, category in enumerate(written))
    items = read_items(write(tmp_path / "i.csv", f"id,category\n{rows}"))
    assert [item.category for item in items] == written


def test_texts_of_bytes_and_of_several_languages_are_texts(tmp_path):
    frame = pl.DataFrame({"id": [b"a"], "title": [b"Tent"], "category": [{"en": "tents", "de": "Zelte"}]})
    frame.write_parquet(tmp_path / "i.parquet")
    assert read_items(tmp_path / "i.parquet") == [Item("a", "Tent", "tents|Zelte")]
    pl.DataFrame({"id": ["a"], "title": [b"\xff"]}).write_parquet(tmp_path / "i.parquet")
    assert read_items(tmp_path / "i.parquet")[0].title == ""
    pl.DataFrame({"id": ["a"], "vector": [b"\xff\x00"]}).write_parquet(tmp_path / "i.parquet")
    assert "is no JSON list of numbers" in error_of(read_items, tmp_path / "i.parquet")


def test_items_without_an_id_are_left_out_and_logged(tmp_path, caplog):
    path = write(tmp_path / "i.csv", f"id,name\n,old\n2,other\n{'x' * 257},long\n")
    assert [item.item_id for item in read_items(path)] == ["2"]
    assert "left out 2 items" in caplog.text


def test_what_the_wire_does_not_take_is_cut_or_stays_an_attribute(tmp_path):
    path = write(tmp_path / "i.csv", f"id,title,price,vector\n1,{'x' * 2_001},-3,none\n2,y,12.5,nan\n3,z,free,\n")
    assert read_items(path) == [
        Item("1", "x" * 2_000, attributes={"price": "-3", "vector": "none"}),
        Item("2", "y", price=12.5, attributes={"vector": "nan"}),
        Item("3", "z", attributes={"price": "free"}),
    ]


@pytest.mark.parametrize(
    ("events", "items", "columns", "rows", "dropped"),
    [
        (
            *("rees46-electronics/events.csv.gz", "rees46-electronics/items.csv"),
            *(Columns("user_session", "product_id", "event_type", "ts", price="price"), 54_866, 0),
        ),
        (
            *("online-retail-II/events.csv.gz", "online-retail-II/items.csv"),
            *(Columns("user", "item", "event", "ts", price="price", quantity="qty"), 729_098, 11),
        ),
        ("ml-1m/ml-1m_sasrec.txt.gz", "ml-1m/items.csv", Columns("user", "item"), 999_611, 0),
        ("ml-1m/ratings.csv.gz", "ml-1m/items.csv", Columns("user_id", "movie_id", None, "timestamp"), 1_000_209, 0),
        (
            *("amazon-beauty/interactions.csv.gz", "amazon-beauty/items.csv"),
            *(Columns("user", "item", None, "timestamp", "pos"), 198_502, 0),
        ),
    ],
)
def test_real_logs_need_no_option(events, items, columns, rows, dropped):
    if not (DATA / events).is_file():
        pytest.skip(f"{events} is not in {DATA}: set REAL_LOGS")
    log = read_events(DATA / events)
    assert (log.columns, len(log.frame), log.dropped) == (columns, rows, dropped)
    catalogue = read_items(DATA / items, like=log.columns.item)
    assert log.frame["item"].is_in([item.item_id for item in catalogue]).mean() > 0.999
    assert sum(bool(item.title) for item in catalogue) > 0.89 * len(catalogue)


VECTORS = {
    "not a number": ("[NaN, 1]", "holds nan"),
    "infinite": ("[1, -Infinity]", "holds -inf"),
    "too large": ("[1, 1e39]", r"holds 1e\+39"),
    "a text": ('["a", 1]', "holds 'a', which is no number"),
    "nothing": ("[null, 1]", "holds 'None', which is no number"),
    "all zero": ("[0, 0]", "vector has the length 0"),
    "no list": ("[0.1 0.2]", "is no JSON list of numbers"),
    "of another length": ("[1, 2, 3]", "has a vector of 3 numbers and item 'a' one of 2"),
}


@pytest.mark.parametrize(("written", "says"), VECTORS.values(), ids=VECTORS.keys())
@pytest.mark.parametrize("name", ["i.csv", "i.tsv", "i.parquet"])
def test_a_vector_that_cannot_be_used_is_told_with_its_item_and_value(tmp_path, name, written, says):
    vectors = ["[0.5, 1]", written, "[2, 3]"]
    frame = pl.DataFrame({"id": ["a", "b", "c"], "vector": vectors})
    if name == "i.parquet":
        frame.write_parquet(tmp_path / name)
    else:
        frame.write_csv(tmp_path / name, separator="\t" if name == "i.tsv" else ",")
    error = error_of(read_items, tmp_path / name)
    assert "item 'b'" in error
    assert re.search(says, error)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e39, None])
def test_a_list_of_a_parquet_file_is_no_better(tmp_path, value):
    pl.DataFrame({"id": ["a", "b"], "vector": [[0.5, 1.0], [value, 1.0]]}).write_parquet(tmp_path / "i.parquet")
    assert "item 'b': its vector holds" in error_of(read_items, tmp_path / "i.parquet")


def test_a_number_that_json_has_not_is_told_with_its_line(tmp_path):
    path = write(tmp_path / "i.jsonl", '{"id": "a"}\n\n{"id": "b", "vector": [NaN, 1]}\n')
    error = error_of(read_items, path)
    assert 'line 3, which holds NaN: {"id": "b"' in error


def test_an_empty_vector_is_none(tmp_path):
    assert read_items(write(tmp_path / "i.csv", "id,vector\na,[]\n")) == [Item("a")]


ROWS = "user,item,time\n" + "".join(f"u{at % 3},i{at % 7},{1_700_000_000 + at}\n" for at in range(30))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz", "log.tsv", "log.jsonl", "log.txt"])
def test_a_file_in_utf_16_is_refused_by_name(tmp_path, name, encoding):
    text = ROWS.encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    assert "probably in UTF-16: save it in UTF-8" in error_of(read_events, tmp_path / name)
    assert "probably in UTF-16: save it in UTF-8" in error_of(read_items, tmp_path / name)


@pytest.mark.parametrize("separator", [";", "\t"])
def test_a_csv_may_be_separated_as_spreadsheets_do(tmp_path, separator):
    log = read_events(write(tmp_path / "log.csv", ROWS.replace(",", separator)))
    assert log.frame.rows() == read_events(write(tmp_path / "comma.csv", ROWS)).frame.rows()
    items = write(tmp_path / "items.csv", 'id;title\n1;"a; b"\n'.replace(";", separator))
    assert read_items(items) == [Item("1", f"a{separator} b")]


@pytest.mark.parametrize("text", ["", "\n \n", "\ufeff"])
def test_a_jsonl_without_rows_holds_no_event(tmp_path, text):
    assert error_of(read_events, write(tmp_path / "log.jsonl", text)).endswith("log.jsonl: it holds no event")


def test_two_columns_of_one_name_are_refused_where_they_play_a_role(tmp_path):
    log = write(tmp_path / "log.csv", "user,user,item\na,b,1\n")
    assert "two columns are named 'user': rename one of them" in error_of(read_events, log)
    items = write(tmp_path / "items.csv", "id,name,name,size,size\n1,a,b,2,3\n")
    assert "two columns are named 'name': rename one of them" in error_of(read_items, items)
    assert read_events(write(tmp_path / "other.csv", "user,item,size,size\na,1,2,3\n")).frame.height == 1


COLUMNS = {
    "list of ids": ("user", [["a"], ["b"]]),
    "struct of an id": ("item", [{"id": 1}, {"id": 2}]),
    "struct of a time": ("time", [{"$date": 1_700_000_000}, {"$date": 1_700_000_001}]),
    "time of day": ("time", [dt.time(10), dt.time(11)]),
    "duration": ("time", [dt.timedelta(1), dt.timedelta(2)]),
    "list of prices": ("price", [[1.0], [2.0]]),
}


@pytest.mark.parametrize(("role", "values"), COLUMNS.values(), ids=COLUMNS.keys())
def test_a_column_of_a_kind_that_plays_no_role_is_refused_by_name(tmp_path, role, values):
    frame = pl.DataFrame({"user": ["a", "b"], "item": ["1", "2"]}).with_columns(pl.Series(role, values))
    frame.write_parquet(tmp_path / "log.parquet")
    assert f"column '{role}' holds " in error_of(read_events, tmp_path / "log.parquet")


@pytest.mark.parametrize("kind", [pl.Categorical, pl.Binary])
def test_categories_and_bytes_are_read_as_the_text_that_they_hold(tmp_path, kind):
    frame = pl.read_csv(ROWS.encode(), infer_schema=False)
    frame.with_columns(pl.all().cast(kind)).write_parquet(tmp_path / "log.parquet")
    frame.write_csv(tmp_path / "log.csv")
    assert read_events(tmp_path / "log.parquet").frame.equals(read_events(tmp_path / "log.csv").frame)
