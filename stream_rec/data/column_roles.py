"""Which column of a file is which: by the names that public logs and shops commonly use, or as a person says."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from stream_rec.errors import UserError

EVENT_ROLES: Mapping[str, tuple[str, ...]] = {
    "user": ("user", "userid", "uid", "customer", "customerid", "shopperid", "visitorid", "usersession", "sessionid"),
    "item": (
        *("item", "itemid", "product", "productid", "articleid", "movieid", "asin", "sku", "stockcode"),
        *("videoid", "trackid", "newsid", "contentid"),
    ),
    "event": ("event", "eventtype", "eventname", "behavior", "behaviour", "behaviortype", "action", "type"),
    "time": ("time", "timestamp", "ts", "eventtime", "datetime", "date", "createdat", "unixtime", "invoicedate"),
    "position": ("position", "pos", "seq", "sequence"),
    "price": ("price", "unitprice"),
    "quantity": ("quantity", "qty"),
    "event_id": ("eventid",),
}
"""The names of each column of a log, the likeliest first, as `_plain` writes them."""

ITEM_ROLES: Mapping[str, tuple[str, ...]] = {
    "item": (*EVENT_ROLES["item"], "id"),
    "title": (
        *("title", "name", "itemname", "productname", "producttitle"),
        *("text", "words", "idgenrecwords", "description"),
    ),
    "category": ("category", "categoryname", "categorycode", "categories", "genre", "genres", "categoryid"),
    "brand": ("brand", "brandname", "manufacturer", "vendor"),
    "price": EVENT_ROLES["price"],
    "vector": ("vector",),
    "available": ("available",),
    "attributes": ("attributes",),
}
"""The same of a catalogue."""

ROLES = tuple(dict.fromkeys((*EVENT_ROLES, *ITEM_ROLES)))
"""What `--columns` may name."""


SECOND = "{}_duplicated_0"
"""What polars calls the second column of a name."""

NONE = "none"
"""In place of the column of the time: the log has no times."""


class Columns(NamedTuple):
    """The names in the file; None is absent."""

    user: str
    item: str
    event: str | None = None
    time: str | None = None
    position: str | None = None
    price: str | None = None
    quantity: str | None = None
    event_id: str | None = None


def parse_columns(text: str) -> dict[str, str]:
    """The value of `--columns`, role by role; of nothing, nothing. Raises `UserError`.

    >>> parse_columns("user=customer, time=when")
    {'user': 'customer', 'time': 'when'}
    """
    given: dict[str, str] = {}
    for part in text.split(",") if text.strip() else ():
        role, equals, name = (word.strip() for word in part.partition("="))
        if not (equals and name):
            raise UserError(
                f"--columns: {part.strip()!r} is not of the form role=column, as in user=customer,time=when"
            )
        if role not in ROLES:
            raise UserError(f"--columns: {role!r} is no role; the roles are {', '.join(ROLES)}")
        if role in given:
            raise UserError(f"--columns: {role} is given twice")
        given[role] = name
    return given


def recognise(
    found: Sequence[str], roles: Mapping[str, tuple[str, ...]], given: Mapping[str, str], path: Path
) -> dict[str, list[str]]:
    """The columns among `found` that can play each role, the likeliest first; a given one stands alone.

    Raises `UserError` for a given column that the file at `path` lacks, for one that plays no role in such a file, and
    where two columns have the name of one that plays a role.
    """
    for role, name in given.items():
        if role not in roles:
            kind = "log of events" if roles is EVENT_ROLES else "catalogue"
            raise UserError(f"--columns {role}={name}: a {kind} has no {role}, and {path} is read as one")
        if name not in found:
            raise UserError(f"{path}: no column {name!r} to be the {role}; {listing(found)}")
    free = [name for name in found if name not in given.values()]
    playing = {role: [given[role]] if role in given else _named(free, names) for role, names in roles.items()}
    for name in (name for names in playing.values() for name in names):
        if SECOND.format(name) in found:
            raise UserError(f"{path}: two columns are named {name!r}: rename one of them")
    return playing


def listing(found: Sequence[str]) -> str:
    """The columns of a file, for an error of one line."""
    shown = ", ".join(name if name.isprintable() else repr(name) for name in found)
    return f"its columns are: {shown if len(shown) <= 400 else shown[:400] + '...'}"


def _named(found: Sequence[str], names: tuple[str, ...]) -> list[str]:
    return sorted((name for name in found if _plain(name) in names), key=lambda name: names.index(_plain(name)))


def _plain(name: str) -> str:
    """`Customer ID`, `customer_id` and `customerId` are one name."""
    return "".join(character for character in name.lower() if character.isalnum())
