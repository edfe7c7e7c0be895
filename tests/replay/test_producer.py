import pytest

from stream_rec.errors import UserError
from stream_rec.replay.producer import at_once, faster, keep, now, speed, steady


def test_paces_say_when_an_event_is_due() -> None:
    assert at_once(7, 3_600.0) == 0.0
    assert faster(60)(7, 3_600.0) == 60.0
    assert steady(50)(7, 3_600.0) == 0.14


def test_stamps_keep_the_log_or_follow_the_clock() -> None:
    assert (keep(5.0, 9.0), now(5.0, 9.0)) == (5.0, 9.0)


def test_a_speed_is_max_or_a_factor() -> None:
    assert speed("max") is at_once
    assert speed("2.5")(0, 10.0) == 4.0


@pytest.mark.parametrize("text", ["fast", "", "0", "-1", "nan", "inf"])
def test_a_wrong_speed_is_told_in_one_line(text: str) -> None:
    with pytest.raises(UserError, match="give 'max'"):
        speed(text)
