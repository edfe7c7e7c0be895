"""The rolling window: pure functions of a user's log. No Kafka, no torch.

Capacity C and stride S (usually C/2) fix where a window starts: at 0 while n <= C, else at the smallest multiple of S
with n - start <= C. Between two moves of the start a new event only appends, so cached keys and values stay a prefix;
after a move the window is encoded anew, once every S events.
"""

import msgspec

from stream_rec.messages import Event, Rejected, Window, WindowEvent


def start_of(n: int, capacity: int, stride: int) -> int:
    """Number of events before the window after the n-th event.

    >>> [start_of(n, 4, 2) for n in range(9)]
    [0, 0, 0, 0, 0, 2, 2, 4, 4]
    """
    return 0 if n <= capacity else -(-(n - capacity) // stride) * stride


def stride_of(capacity: int, wanted: int | None) -> int:
    """How far a full window of `capacity` events moves: as far as is `wanted`, at most its length; by default half.

    >>> stride_of(64, None), stride_of(64, 8), stride_of(16, 32)
    (32, 8, 16)
    """
    return max(1, capacity // 2) if wanted is None else min(wanted, capacity)


def append(
    window: Window | None,
    event: Event,
    *,
    offset: int,
    arrived: float,
    capacity: int,
    stride: int,
    topic_id: str = "",
) -> Window:
    """The window after one more event; `window` None is a user never seen, or erased.

    `offset` is the event's offset in its partition of the topic `topic_id`, and `arrived` Kafka's timestamp of it, in
    seconds.
    Raises `Rejected` for an event_id that the window already holds.
    """
    if event.item_id is None:
        raise Rejected("invalid field", "item_id is required")
    new = WindowEvent(event.item_id, event.event_type, event.timestamp, event.event_id)
    if window is None:
        return Window(event.user_id, 1, 0, offset, arrived, (new,), topic_id)
    if event.event_id is not None and any(held.event_id == event.event_id for held in window.events):
        raise Rejected("duplicate event_id")
    longer = Window(window.user_id, window.n + 1, window.start, offset, arrived, (*window.events, new), topic_id)
    return fit(longer, capacity, stride)


def fit(window: Window, capacity: int, stride: int) -> Window:
    """The same window with the events dropped that lie before its start under `capacity` and `stride`.

    Also what a reader uses whose model reads fewer events than the windows hold. A window that was written under a
    smaller capacity can't regain what it dropped, and keeps its start.
    """
    start = max(window.start, start_of(window.n, capacity, stride))
    if start == window.start:
        return window
    return msgspec.structs.replace(window, start=start, events=window.events[start - window.start :])
