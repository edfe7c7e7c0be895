"""Ids as text, by one rule for logs and catalogues, and how many ids of the two are the same.

An id is the text that stands in the file. Other tools hold a column of whole numbers as floats where a value is
missing, and then write `12.0` for `12`. Such a column is recognised: each of its values ends in `.0`.
"""

from collections.abc import Collection
from pathlib import Path

import polars as pl

from stream_rec.errors import UserError
from stream_rec.messages import without_fraction

WHOLE = r"^-?\d+$"
FLOAT = r"^-?\d+\.0$"
ROUNDED = r"^-?\d(\.\d+)?[eE]\+?(1[6-9]|[2-9]\d|\d{3})$"
"""How tools write a float of 17 digits or more: its last digits are lost."""
EXCEL = r"^-?\d(\.\d+)?E\+(1[1-9]|[2-9]\d)$"
"""How Excel writes a whole number of 12 digits or more: six of them are left."""
NUMBER = r"^-?\d+(\.\d+)?(E\+\d+)?$"
EXACT = 1 << 53
"""From this whole number on a float can't hold each one; of 32 bits from `EXACT_32` on."""
EXACT_32 = 1 << 24
MISSING = ("nan", "null", "none", "<na>")
"""What tools write for a missing number, in lower case."""
LEAST_KNOWN = 0.5
"""Share of the log's items below which the catalogue is probably written with other ids."""


def as_text(column: pl.Series, path: Path) -> pl.Series:
    """The ids of a column of the file at `path`, stripped; null where a row has none.

    Raises `UserError` for whole numbers that some tool has made floats and thereby rounded: several ids may have become
    one.
    """
    if column.dtype.is_float():
        column = column.set(~column.is_finite(), None)
        exact = EXACT if column.dtype == pl.Float64 else EXACT_32
        if len(large := column.filter(column.abs() >= exact)):
            raise _lost(path, column.name, str(large[0]))
    text = column.cast(pl.String).str.strip_chars()
    if column.dtype.is_decimal():
        text = text.str.replace(r"\.0+$", "")
    distinct = text.drop_nulls().unique()
    missing = distinct.filter(distinct.str.to_lowercase().is_in(MISSING))
    numbers = distinct.filter((distinct != "") & ~distinct.is_in(missing.to_list()))
    if len(lost := numbers.filter(numbers.str.contains(EXCEL))) and numbers.str.contains(NUMBER).all():
        raise _lost(path, column.name, lost[0])
    rounded = numbers.str.contains(ROUNDED)
    if len(numbers) and (rounded | numbers.str.contains(FLOAT)).all():
        text, numbers = text.str.strip_suffix(".0"), numbers.str.strip_suffix(".0")
        whole = numbers.cast(pl.Int64, strict=False)
        if len(lost := numbers.filter(whole.is_null() | (whole.abs() >= EXACT))):
            raise _lost(path, column.name, lost[0])
    if len(numbers) and numbers.str.contains(WHOLE).all():
        text = text.set(text.is_in(missing.to_list()), None)
    return text


def joined(items: pl.Series, known: Collection[str]) -> pl.Series:
    """A log's `items`, with `12.0` as `12` where only that is `known` to the catalogue."""
    distinct = items.unique()
    unknown = distinct.filter(distinct.str.contains(FLOAT)).to_list() if known else []
    held = known if isinstance(known, set | frozenset | dict) else set(known)
    renamed = {one: whole for one in unknown if one not in held and (whole := without_fraction(one)) in held}
    return items.replace(renamed) if renamed else items


def coverage(items: pl.Series, known: Collection[str]) -> list[str]:
    """How many of a log's `items` the catalogue knows, as lines for the terminal: a warning below half of them."""
    counts = items.value_counts(sort=True)
    found = counts["item"].is_in(list(known))
    events = counts["count"].filter(found).sum() / max(1, len(items))
    line = f"the catalogue knows {found.sum():,} of the log's {len(counts):,} items, {events:.1%} of its events"
    if found.mean() >= LEAST_KNOWN or not len(counts):  # type: ignore[operator]
        return [line]
    pair = f"{counts['item'].filter(~found)[0]!r} in the log"
    if known:
        pair += f", {next(iter(known))!r} in the catalogue"
    return [f"warning: {line}. Are both written with the same ids? For instance {pair}"]


def _lost(path: Path, name: str, example: str) -> UserError:
    return UserError(
        f"{path}: a tool has made floats of the ids in column {name!r} and rounded them, such as {example}: "
        "write them as text or as whole numbers"
    )
