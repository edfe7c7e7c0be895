import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_rec.messages import Event, Rejected, Window, encode, read_window
from stream_rec.window import append, fit, start_of, stride_of

shapes = st.integers(2, 12).flatmap(lambda capacity: st.tuples(st.just(capacity), st.integers(1, capacity)))
items = st.lists(st.sampled_from(["tea", "cup", "pot"]), min_size=1, max_size=60)


def read(log: list[str], capacity: int, stride: int) -> Window:
    window: Window | None = None
    for offset, item in enumerate(log):
        event = Event("u", "view", float(offset), item)
        window = append(window, event, offset=offset, arrived=offset + 0.5, capacity=capacity, stride=stride)
    assert window is not None
    return window


def naive_start(n: int, capacity: int, stride: int) -> int:
    """Invariant 1, word for word."""
    if n <= capacity:
        return 0
    return min(start for start in range(0, n + stride, stride) if n - start <= capacity)


@given(items, shapes)
def test_the_window_is_a_function_of_the_log(log: list[str], shape: tuple[int, int]) -> None:
    capacity, stride = shape
    window = read(log, capacity, stride)
    start = naive_start(len(log), capacity, stride)
    assert (window.n, window.start, window.offset, window.arrived) == (len(log), start, len(log) - 1, len(log) - 0.5)
    assert [event.item_id for event in window.events] == log[start:]
    assert [event.timestamp for event in window.events] == [float(at) for at in range(start, len(log))]


@given(st.integers(0, 10_000), shapes)
def test_the_start_is_the_smallest_multiple_that_fits(n: int, shape: tuple[int, int]) -> None:
    assert start_of(n, *shape) == naive_start(n, *shape)


@given(items, shapes)
def test_between_two_moves_an_event_only_appends(log: list[str], shape: tuple[int, int]) -> None:
    before, after = read(log, *shape), read([*log, "tea"], *shape)
    if after.start == before.start:
        assert after.events[:-1] == before.events
    else:
        assert (after.start - before.start) % shape[1] == 0
        assert after.events[:-1] == before.events[after.start - before.start :]


@given(items, shapes)
def test_it_survives_the_wire(log: list[str], shape: tuple[int, int]) -> None:
    window = read(log, *shape)
    assert read_window(encode(window)) == window


@given(items, shapes, shapes)
def test_a_reader_with_a_smaller_capacity_sees_that_window(
    log: list[str], written: tuple[int, int], read_with: tuple[int, int]
) -> None:
    window = fit(read(log, *written), *read_with)
    start = max(naive_start(len(log), *written), naive_start(len(log), *read_with))
    assert (window.start, [event.item_id for event in window.events]) == (start, log[start:])


@given(items, shapes, st.integers(2, 12))
def test_a_reader_always_sees_the_newest_event(log: list[str], written: tuple[int, int], capacity: int) -> None:
    """Whatever the stride of those that write is."""
    window = fit(read(log, *written), capacity, stride_of(capacity, written[1]))
    assert 1 <= len(window.events) <= capacity
    assert window.events[-1].item_id == log[-1]


def test_an_event_id_counts_once_while_it_is_in_the_window() -> None:
    def event(event_id: str) -> Event:
        return Event("u", "view", 0.0, "tea", event_id)

    shape = {"arrived": 0.0, "capacity": 2, "stride": 1}
    window = append(None, event("a"), offset=0, **shape)
    with pytest.raises(Rejected, match="duplicate event_id"):
        append(read_window(encode(window)), event("a"), offset=1, **shape)
    for offset, event_id in enumerate("bc", start=2):
        window = append(window, event(event_id), offset=offset, **shape)
    assert append(window, event("a"), offset=4, **shape).n == 4


def test_an_event_without_an_item_makes_no_window() -> None:
    with pytest.raises(Rejected, match="item_id is required"):
        append(None, Event("u", "view", 0.0), offset=0, arrived=0.0, capacity=2, stride=1)


def test_a_full_window_moves_by_half_its_length_and_at_least_by_one() -> None:
    assert [stride_of(capacity, None) for capacity in (1, 2, 3, 4, 5)] == [1, 1, 1, 2, 2]
