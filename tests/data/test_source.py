from datetime import UTC, datetime
from pathlib import Path

import pytest

from stream_rec.data.source import Period, from_files, moment
from stream_rec.errors import UserError

DAY = datetime(2026, 11, 27, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("2026-11-27", DAY),
        ("2026-11-27T08:30", DAY + 8.5 * 3_600),
        ("2026-11-27T08:30+01:00", DAY + 7.5 * 3_600),
        ("1764201600", 1_764_201_600.0),
        ("0.5", 0.5),
        ("90m", DAY - 5_400),
        ("2w", DAY - 14 * 86_400),
    ],
)
def test_a_time_is_said_in_the_usual_ways(text: str, wanted: float) -> None:
    assert moment("--since", text, DAY) == wanted


@pytest.mark.parametrize("text", ["", "yesterday", "30 d", "-5", "2026-13-01", "nan", "1e400"])
def test_what_is_no_time_is_told_in_one_line(text: str) -> None:
    with pytest.raises(UserError, match="--until is"):
        Period.parse(None, text)


def test_a_period_that_is_empty_is_refused() -> None:
    with pytest.raises(UserError, match="not before"):
        Period.parse("2026-11-27", "2026-11-26")


def test_a_range_is_open_where_nothing_is_said() -> None:
    assert Period.span("2026-11-26..2026-11-27") == (DAY - 86_400, DAY)
    assert Period.span("2026-11-26..") == Period.span("2026-11-26") == (DAY - 86_400, None)
    assert Period.span("..12.5") == (None, 12.5)
    assert Period.span("") == Period.span("..") == Period()
    with pytest.raises(UserError, match="the end of --range is 'x'"):
        Period.span("5..x")


def test_a_period_is_half_open_in_memory_and_in_a_frame(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("user,item,time\n" + "".join(f"a,x,{at}\n" for at in (9, 10, 19, 20)))
    period = Period(10.0, 20.0)
    frame = from_files(log, None, "", period).log.frame
    assert frame["time"].to_list() == [10, 19] == [at for at in (9.0, 10.0, 19.0, 20.0) if at in period]
    with pytest.raises(UserError, match="no event of the time"):
        from_files(log, None, "", Period(30.0))


def test_a_log_without_times_has_no_period(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("user,item\na,x\nb,y\n")
    with pytest.raises(UserError, match="it has no times"):
        from_files(log, None, "", Period(1.0))
