"""What one wrong time does to a log, and a log that has none."""

from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_rec.data import times
from stream_rec.data.event_log import Log, read_events
from stream_rec.data.simulator.storefront import Storefront
from stream_rec.data.source import Period, Source, from_files
from stream_rec.errors import UserError
from stream_rec.training import train

NOW = datetime(2026, 11, 30, tzinfo=UTC).timestamp()
DAY = times.DAY
MONTH = NOW - 60 * DAY + np.linspace(0, 30 * DAY, 10_000)
"""Thirty days of events."""
ODD = {
    "the year 2099": (datetime(2099, 1, 1, tzinfo=UTC).timestamp(), "time in the future"),
    "milliseconds": (NOW * 1_000, "time not in seconds"),
    "zero": (0.0, "time before 1990"),
    "before 1970": (-5.0, "time before 1970"),
    "no number": (float("nan"), "unreadable time"),
    "another decade": (datetime(2003, 1, 1, tzinfo=UTC).timestamp(), "time far from all others"),
}


def why(values: np.ndarray) -> list[str]:
    return times.doubts(pl.Series(values), NOW).drop_nulls().to_list()


@pytest.mark.parametrize(("odd", "reason"), ODD.values(), ids=ODD.keys())
@pytest.mark.parametrize("place", [0, 5_000, 10_000])
def test_one_time_that_cannot_be_is_refused_and_changes_nothing(odd: float, reason: str, place: int) -> None:
    found = np.insert(MONTH, place, odd)
    assert why(found) == [reason]
    assert times.doubts(pl.Series(found), NOW)[place] == reason


@given(st.lists(st.floats(NOW - 300 * DAY, NOW), min_size=1, max_size=300))
@settings(deadline=None)
def test_times_of_one_year_are_all_believed(values: list[float]) -> None:
    assert why(np.array(values)) == []


def test_a_log_that_counts_from_its_own_beginning_is_left_alone() -> None:
    assert why(np.arange(5_000.0)) == []
    assert why(np.array([1.0, 2.0, 9e10])) == []


@pytest.mark.parametrize("odd", [NOW - 20 * 365 * DAY, NOW])
def test_half_lives_follow_the_middle_of_the_times(odd: float) -> None:
    want = train.horizons_of(MONTH)
    assert want.lasting == pytest.approx(30 * DAY, rel=1e-3)
    assert want.recent == pytest.approx(30 * DAY * train.RECENT, rel=1e-2)
    found = train.horizons_of(np.append(MONTH, np.full(50, odd)))
    assert found.lasting == pytest.approx(want.lasting, rel=0.02)
    assert found.recent == pytest.approx(want.recent, rel=0.2)


def test_a_log_most_of_which_has_one_time_still_has_a_span() -> None:
    assert times.span(np.array([0.0] * 1_000 + [50.0])) == 50.0


@pytest.mark.parametrize("line", ["4070908800", "1764201600000", "0"])
def test_a_row_of_another_time_is_counted_with_its_reason(tmp_path: Path, line: str) -> None:
    rows = "".join(f"u{n % 7},i{n % 5},{int(at)}\n" for n, at in enumerate(MONTH[::100]))
    (tmp_path / "e.csv").write_text(f"user,item,time\n{rows}u1,i1,{line}\nu1,,5\n")
    source = from_files(tmp_path / "e.csv", None, "", Period())
    assert source.log.dropped == 2
    assert source.log.refused["no item"] == 1
    assert source.notes[0].startswith(f"2 rows of {tmp_path / 'e.csv'} are left out: 1 ")
    begin, end = (times.shown(MONTH[at]) for at in (0, -100))
    assert source.notes[1] == f"e.csv: 100 events of 7 users and 5 items, from {begin} to {end} UTC"


def test_a_log_of_the_future_is_refused(tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text("user,item,time\n" + "".join(f"u,i,{4_070_908_800 + n}\n" for n in range(30)))
    with pytest.raises(UserError, match="30 time in the future"):
        read_events(tmp_path / "e.csv")


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        (["20261127", "20261128"], [datetime(2026, 11, 27), datetime(2026, 11, 28)]),
        (["20261127083000", "20261127083001"], [datetime(2026, 11, 27, 8, 30), datetime(2026, 11, 27, 8, 30, 1)]),
    ],
)
def test_dates_as_whole_numbers_are_dates(tmp_path: Path, written: list[str], wanted: list[datetime]) -> None:
    (tmp_path / "e.csv").write_text("user,item,day\n" + "".join(f"u,i,{one}\n" for one in written))
    found = read_events(tmp_path / "e.csv", {"time": "day"}).frame["time"].to_list()
    assert found == [one.replace(tzinfo=UTC).timestamp() for one in wanted]


LOOKS = {
    "last_watch_dt": "2026-11-27",
    "watchedOn": "27.11.2026 08:30",
    "t_dat": "2018-09-20",
    "stamp": "1764201600",
    "x": "1764201600123",
    "Invoice Day": "12/1/2010 8:26",
    "played_at": "17",
    "nothing_of_it": "20 Nov 2026",
}


@pytest.mark.parametrize(("name", "value"), LOOKS.items())
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_column_that_looks_like_the_time_has_to_be_named(tmp_path: Path, name: str, value: str, kind: str) -> None:
    path = tmp_path / f"e.{kind}"
    if kind == "csv":
        path.write_text(f"user,item,{name}\n" + f"u,i,{value}\n" * 30)
    else:
        path.write_text(f'{{"user": "u", "item": "i", "{name}": "{value}"}}\n' * 30)
    with pytest.raises(UserError, match=f"--columns time={name}") as raised:
        read_events(path)
    assert "--columns time=none" in str(raised.value)
    assert not read_events(path, {"time": "none"}).has_time


@pytest.mark.parametrize(("name", "value"), [("colour", "red"), ("rating", "4.5"), ("size", "12"), ("at", "home")])
def test_other_columns_do_not(tmp_path: Path, name: str, value: str) -> None:
    (tmp_path / "e.csv").write_text(f"user,item,{name}\n" + f"u,i,{value}\n" * 30)
    assert not read_events(tmp_path / "e.csv").has_time


def test_a_column_in_which_hardly_a_time_can_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text("user,item,time\n" + "u,i,27.11.2026\n" * 30 + "u,i,2026-11-27\n")
    with pytest.raises(UserError, match=r"no readable time in column 'time', such as '27\.11\.2026'"):
        read_events(tmp_path / "e.csv")


def test_without_times_or_with_one_for_all_a_log_says_so(tmp_path: Path) -> None:
    (tmp_path / "none.csv").write_text("user,item\n" + "u,i\nv,j\n" * 15)
    (tmp_path / "same.csv").write_text("user,item,time\n" + "u,i,1764201600\nv,j,1764201600\n" * 15)
    for name in ("none.csv", "same.csv"):
        source = from_files(tmp_path / name, None, "", Period())
        assert not source.log.has_time
        assert source.log.frame["time"].to_list() == [float(row) for row in range(30)]
        assert source.notes[-2:] == (
            [
                f"{name}: 30 events of 2 users and 2 items, without times",
                "without times the order of the rows counts: nothing decays, gaps and recency are left out",
            ]
        )


def test_times_of_another_clock_are_warned_of() -> None:
    events = list(islice(Storefront(0, 312, 40).events(), 50))
    frame = pl.DataFrame(
        {
            "user": [event.user_id for event in events],
            "item": [event.item_id for event in events],
            "event": [event.event_type for event in events],
            "time": [float(number) for number in range(50)],
        }
    )
    log = Log(frame, None, True, 0)
    assert any(note.startswith("warning: most times lie before 1990") for note in Source.of(log, [], "x").notes)
