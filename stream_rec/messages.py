"""The wire: what stands in the Kafka topics, as msgspec structs (decoding, validation and JSON Schema from one place).

What comes by the thousand is kept from the garbage collector (`gc=False`), which would look through all of it again and
again: it holds no reference that could lead back to it.

Bytes from outside are hostile. `read_event` raises `Rejected` with a reason for everything that may not enter a window;
nothing else in the project decides whether an event is acceptable.
"""

import math
from collections.abc import Callable, Collection, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

ERASE = "erase"
"""The event type that erases a user, in order with the user's other events."""

LONGEST_ID, LONGEST_LABEL, LONGEST_TEXT = 256, 64, 2_000
"""Characters."""
Id = Annotated[str, Meta(min_length=1, max_length=LONGEST_ID)]
Label = Annotated[str, Meta(min_length=1, max_length=LONGEST_LABEL)]
Text = Annotated[str, Meta(max_length=LONGEST_TEXT)]
Digits = Annotated[str, Meta(pattern="^[0-9]+$")]
LATEST = 1e11
"""The year 5138 in seconds, 1973 in milliseconds: an event after it is refused wherever it comes from."""
Time = Annotated[float, Meta(ge=0, le=LATEST)]
Whole = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
"""A number of events."""
Applied = Annotated[int, Meta(ge=-1, le=(1 << 63) - 1)]
"""The offset of an event; -1 stands before all of them, for a window that was made outside of the topic."""
Price = Annotated[float, Meta(ge=0, le=1e18)]
"""In any currency; the bound keeps it finite in single precision."""

ITEM_BYTES = 1 << 18
"""Of the largest catalogue entry that is read, unless a setting says otherwise."""
SHORTEST, LONGEST = 1e-12, 1e18
"""Lengths (Euclidean) between which single precision keeps a vector's direction: beyond them its square is 0 or
infinite."""


class Rejected(Exception):  # noqa: N818 - it is the outcome's name on the wire and in the metric
    """An event that may not enter a window. `reason` is a short, bounded phrase: it becomes a metric label.

    >>> str(Rejected("unknown event type", "'share'"))
    "unknown event type: 'share'"
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class Event(Struct, frozen=True, omit_defaults=True, gc=False):
    """What a user did. Topic `events`, key = user_id. Fields that are not listed here are ignored."""

    user_id: Id
    event_type: Label
    timestamp: float
    """Seconds since 1970."""
    item_id: Id | None = None
    """Required, except by `erase`."""
    event_id: Id | None = None
    """When given, a second event of the same id is refused while the first is still in the window."""
    price: float | None = None
    quantity: float | None = None
    context: dict[str, Any] | None = None
    pseudonym: bool = False
    """With `erase` alone: `user_id` is what the user is called in windows and recommendations, not the user's id."""


class WindowEvent(Struct, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """An event as the window keeps it; on the wire a JSON array, to keep a window small."""

    item_id: Id
    event_type: Label
    timestamp: Time
    event_id: Id | None = None


class Window(Struct, frozen=True, gc=False):
    """A user's recent events: a function of the log (see window.py). Topic `windows`, compacted; key = user_id."""

    user_id: Id
    n: Whole
    """Events of this user so far, over all time: the sequence number of this window."""
    start: Whole
    """Number of events before the first one held here: `len(events) == n - start`."""
    offset: Applied
    """Offset, in the events topic's partition, of the event applied last: an event read again changes nothing."""
    arrived: float
    """Kafka's own timestamp of that event, in seconds: where end-to-end latency is measured from."""
    events: Annotated[tuple[WindowEvent, ...], Meta(min_length=1)]
    """Never empty: a user without events has no window."""
    topic_id: str = ""
    """Kafka's id of the events topic that `offset` is in: a topic that was deleted and created again has another one.
    Empty where it is not known."""

    def __post_init__(self) -> None:
        if not 0 < len(self.events) == self.n - self.start:
            raise ValueError(f"a window with n {self.n} and start {self.start} can't hold {len(self.events)} events")


class Item(Struct, frozen=True, omit_defaults=True):
    """A catalogue entry. Topic `items`, key = item_id, compacted. An upsert is recommendable at once."""

    item_id: Id
    title: Text = ""
    category: Text = ""
    brand: Text = ""
    price: Price | None = None
    attributes: dict[str, Any] | None = None
    vector: list[float] | None = None
    """Of any modality, in place of the text's vector; as many numbers as the model's text vectors have. Only its
    direction counts: see `check_vector`."""
    available: bool = True


class RankedItem(Struct, frozen=True, omit_defaults=True, gc=False):
    item_id: str
    score: float
    """The blend's score: a log-odds scale, comparable within one recommendation."""
    probability: float
    """That this item is the user's next one, out of the whole catalogue."""
    interest: float | None = None
    """The probability that the user's next event with this item, if it is the next one, is the model's goal (usually a
    purchase): times `probability`, that both happen. Absent where the model has no goal."""


class Interest(Struct, frozen=True, gc=False):
    label: str
    weight: float
    """Probability mass of the category."""


class Recommendation(Struct, frozen=True, gc=False):
    """What a user will probably do next. Topic `recommendations`, key = user_id, compacted, transactional."""

    user_id: str
    seq: int
    """`Window.n` of the window that it answers."""
    offset: int
    """`Window.offset` of that window: joins a recommendation to its event."""
    event_time: Time
    """Timestamp of that event, in seconds."""
    items: tuple[RankedItem, ...]
    """The best first."""
    next_event: dict[str, float]
    """Event type to the probability that the next event is one."""
    interests: tuple[Interest, ...]
    """The strongest first."""
    model: str
    """Version of the model that answered: the head of a hash over its files."""
    topic_id: str = ""
    """`Window.topic_id` of that window."""


class TombstoneHeaders(Struct, frozen=True, omit_defaults=True):
    """Headers of a record without a value in topic `windows` or `recommendations`: its user was erased."""

    held: Literal["nothing", "something"] | None = None
    """In `recommendations`: what the worker found of the user in itself after it had erased them. Absent in tombstones
    by others."""
    offset: Digits | None = None
    """In `windows`: offset, in the events topic's partition, of the event that asked for the erasure."""
    topic_id: str | None = None
    """In `windows`: Kafka's id of that events topic."""


class DeadLetterHeaders(Struct, frozen=True, omit_defaults=True):
    """Headers of a record in topic `dead-letter`, each a text. Its key and value are the bytes as they came."""

    error: str
    """What was wrong, in full."""
    reason: str
    """The same as one of a few short phrases; docs/bad-input.md lists them."""
    topic: str
    """Where the record stood, with `partition` and `offset`."""
    partition: Digits
    offset: Digits
    time: str
    """Kafka's timestamp of that record, in seconds, with three decimals."""
    truncated: str | None = None
    """How long key and value were, where they had to be cut."""


def without_fraction(item_id: str) -> str:
    """The whole number that some tool has made a float, as text; any other id as it is.

    >>> without_fraction("12.0"), without_fraction("1.10"), without_fraction("v1.0")
    ('12', '1.10', 'v1.0')
    """
    whole = item_id.removesuffix(".0")
    return whole if whole.removeprefix("-").isdecimal() else item_id


_event = msgspec.json.Decoder(Event)
_window = msgspec.json.Decoder(Window)
_item = msgspec.json.Decoder(Item)
_recommendation = msgspec.json.Decoder(Recommendation)


def check_vector(vector: Sequence[float]) -> None:
    """Raises `Rejected` for an item's vector whose direction is lost in single precision."""
    length = math.hypot(*vector)
    if not SHORTEST <= length <= LONGEST:  # a length that is not a number is in no range
        raise Rejected("invalid field", f"vector has the length {length:.3g}, not between {SHORTEST:g} and {LONGEST:g}")


encode = msgspec.json.encode
read_window = _window.decode
read_item = _item.decode
read_recommendation = _recommendation.decode


def as_headers(told: TombstoneHeaders | DeadLetterHeaders) -> list[tuple[str, bytes]]:
    return [(name, text.encode(errors="replace")) for name, text in msgspec.to_builtins(told).items()]


UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What reading raises for bytes that are no such message."""


def event_in(key: bytes | None, value: bytes | None, name: Callable[[str], str] = str) -> Event | None:
    """The event in a record, whether the agents accept it or not; None for what is none, or is another user's.

    `name` says what the user is called in windows and recommendations.
    """
    try:
        event = _event.decode(value or b"")
    except UNREADABLE:
        return None
    if event.user_id.encode() != key:
        return None
    return renamed(event, name)


def renamed(event: Event, name: Callable[[str], str]) -> Event:
    """The event of the user as they are called in windows; `name` says what that is for an id."""
    return event if event.pseudonym else msgspec.structs.replace(event, user_id=name(event.user_id))


def read_event(
    key: bytes | None,
    value: bytes | None,
    *,
    event_types: Collection[str],
    now: float,
    max_bytes: int,
    max_future_s: float,
) -> Event:
    """The event in a Kafka record, or `Rejected` with the reason.

    `now` and `max_future_s` are seconds; `max_bytes` limits the value. The key must be the user_id, because it decides
    the partition and with it the order of a user's events.
    """
    if not key:
        raise Rejected("empty key")
    if not value:
        raise Rejected("empty value")
    if len(value) > max_bytes:
        raise Rejected("too large", f"{len(value)} bytes, at most {max_bytes} are read")
    try:
        event = _event.decode(value)
    except msgspec.ValidationError as error:
        raise Rejected("invalid field", str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Rejected("broken JSON", str(error)) from None
    if event.user_id.encode() != key:
        raise Rejected("key is not the user_id")
    if event.event_type != ERASE:
        if event.pseudonym:
            raise Rejected("invalid field", "pseudonym is for erase alone")
        if event.event_type not in event_types:
            raise Rejected("unknown event type", repr(event.event_type))
        if event.item_id is None:
            raise Rejected("invalid field", "item_id is required")
    if event.timestamp < 0:
        raise Rejected("timestamp before 1970")
    if event.timestamp > LATEST:
        raise Rejected("timestamp not in seconds", "divide by 1,000 what counts milliseconds")
    if event.timestamp > now + max_future_s:
        raise Rejected("timestamp in the future", f"{event.timestamp - now:.0f} s ahead")
    return event


def read_entry(key: bytes, value: bytes, max_bytes: int) -> Item:
    """The catalogue entry in a record of topic `items`. Raises `Rejected` for one that no worker can use.

    `max_bytes` limits the value.
    """
    if not key:
        raise Rejected("empty key")
    if len(value) > max_bytes:
        raise Rejected("too large", f"{len(value)} bytes, at most {max_bytes} are read")
    try:
        item = read_item(value)
    except UNREADABLE as error:
        raise Rejected("unreadable item", str(error)) from None
    if item.item_id.encode() != key:
        raise Rejected("key is not the item_id")
    if item.vector is not None:
        check_vector(item.vector)
    return item
