"""Files of rows: what kind a file is, its columns as text, its rows as values, and written from structs.

Knows no roles of columns. A column is read as the text that stands in the file, so that an id keeps each of its digits.
"""

import csv
import gzip
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import msgspec
import polars as pl

from stream_rec.errors import UserError

SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".parquet")
SAME = {".ndjson": ".jsonl", ".text": ".txt"}
WRONG = (
    *(OSError, EOFError, zlib.error, UnicodeError, msgspec.MsgspecError, pl.exceptions.PolarsError),
    RecursionError,  # of JSON in a depth that nobody means
    pl.exceptions.PanicException,  # of a parquet file that contradicts itself
)
"""What reading a file may raise."""
HEAD = 10_000
"""Rows of a jsonl file that are looked at for the names of its columns."""
CHUNK = 32 << 20
"""Bytes of a jsonl file that are read in one go."""
BOM = b"\xef\xbb\xbf"
"""What some editors put before a text in UTF-8."""
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
"""The same before one in UTF-16."""
GZIP = b"\x1f\x8b"
FIRST_LINE = 1 << 16
"""Bytes of a file's first line that are looked at."""
SEPARATORS = ",;\t"
"""Of the columns of a csv, the likeliest first: a spreadsheet takes the second where numbers have a decimal comma."""

LINES = 1 << 18
"""Lines of a jsonl file that are decoded in one go: those of `{}` take 30 times as much memory as in the file."""

NULL = msgspec.Raw(b"null")


@contextmanager
def one_line(path: Path) -> Iterator[None]:
    """Whatever is wrong with the file becomes a `UserError` of one line."""
    try:
        yield
    except WRONG as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error).strip().partition("\n")[0]
        raise UserError(f"{path}: {reason[:200]}; is it a whole file of the kind that its name says?") from None


def kind(path: Path) -> str:
    """The suffix, that of the file inside a .gz.

    >>> kind(Path("Events.CSV.gz"))
    '.csv'
    """
    name = path.name.lower()
    inner = Path(name.removesuffix(".gz")).suffix
    suffix = SAME.get(inner, inner)
    if suffix not in SUFFIXES or (suffix == ".parquet" and name.endswith(".gz")):
        raise UserError(f"{path}: its name must end in .csv, .tsv, .txt, .jsonl (also with .gz) or .parquet")
    return suffix


def names(path: Path, sparse: Sequence[str] = ()) -> list[str]:
    """The columns of the file; `sparse` names more that a jsonl file may hold though its head does not."""
    if _kind_of_file(path) != ".jsonl":
        return _scan(path).collect_schema().names()
    found: dict[str, None] = {}
    for lines in _chunks(path):
        head = b"\n".join(lines.split(b"\n", HEAD)[:HEAD])
        for row in msgspec.json.Decoder(dict[str, msgspec.Raw]).decode_lines(head):
            found |= dict.fromkeys(row)
        break
    return list(dict.fromkeys((*found, *sparse))) if found else []


def read(path: Path, columns: Sequence[str]) -> pl.DataFrame:
    """These columns of the file, as the text that stands there; only those of a parquet file have types."""
    if _kind_of_file(path) == ".jsonl":
        chunks = [_texts(lines, columns) for lines in _chunks(path)]
        return pl.concat([pl.DataFrame(schema=dict.fromkeys(columns, pl.String)), *chunks])
    return _scan(path).select(columns).collect()


def read_filled(path: Path, columns: Sequence[str]) -> tuple[pl.DataFrame, int]:
    """The rows in which one of these columns holds something, as `read` gives them; and how many others there are.

    The others take no memory: 60 KB of gzip can hold five million of them.
    """
    if _kind_of_file(path) == ".jsonl":
        frames, empty = [pl.DataFrame(schema=dict.fromkeys(columns, pl.String))], 0
        for lines in _chunks(path):
            for piece in _pieces(lines):
                frame = _texts(piece, columns)
                frames.append(frame.filter(~_empty(frame.schema)))
                empty += len(frame) - len(frames[-1])
        return pl.concat(frames), empty
    table = _scan(path).select(columns)
    nothing = _empty(table.collect_schema())
    found = table.filter(~nothing).collect()
    return found, int(table.select(nothing.sum()).collect(engine="streaming").item())


def plain(table: pl.DataFrame, path: Path) -> pl.DataFrame:
    """`table` with its categories and its bytes as text. Raises `UserError` for a column of lists, structs or the like,
    which is neither text nor number nor time."""
    for column in table:
        if column.dtype.is_nested() or column.dtype in (pl.Object, pl.Duration, pl.Time):
            raise UserError(f"{path}: column {column.name!r} holds {column.dtype}: write text, numbers or times there")
    return table.with_columns(pl.col(pl.Categorical, pl.Enum, pl.Binary).cast(pl.String))


def rows(path: Path) -> list[dict[str, Any]]:
    """The whole file, with the types of the values where it has some; the numbers of a csv are told from its text."""
    if _kind_of_file(path) == ".jsonl":
        with _open(path, "rb") as file:
            return _decoded(file.read().removeprefix(BOM))
    return pl.DataFrame([_typed(column) for column in _scan(path).collect()]).to_dicts()


def write(structs: Iterable[msgspec.Struct], path: Path, fields: Sequence[str]) -> int:
    """Writes jsonl, or csv and tsv with these fields as columns; returns the number of rows."""
    suffix = kind(path)
    if suffix not in (".csv", ".tsv", ".jsonl"):
        raise UserError(f"{path}: what is written must end in .csv, .tsv or .jsonl (also with .gz)")
    count = 0
    with one_line(path):
        if suffix == ".jsonl":
            with _open(path, "wb") as file:
                for count, struct in enumerate(structs, 1):  # noqa: B007 - the count is the answer
                    file.write(msgspec.json.encode(struct) + b"\n")
        else:
            with _open(path, "wt") as file:
                writer = csv.writer(file, delimiter="\t" if suffix == ".tsv" else ",")
                writer.writerow(fields)
                for count, struct in enumerate(structs, 1):  # noqa: B007
                    writer.writerow([_cell(getattr(struct, field)) for field in fields])
    return count


def _kind_of_file(path: Path) -> str:
    suffix = kind(path)
    if not path.is_file():
        raise UserError(f"no file at {path}: check the path")
    if suffix != ".parquet" and ((line := _first_line(path)).startswith(UTF_16) or b"\0" in line):
        raise UserError(f"{path}: it is not in UTF-8, probably in UTF-16: save it in UTF-8")
    return suffix


def _first_line(path: Path) -> bytes:
    with path.open("rb") as file:
        packed = file.read(len(GZIP)) == GZIP
        file.seek(0)
        head = gzip.GzipFile(fileobj=file).read(FIRST_LINE) if packed else file.read(FIRST_LINE)
    return head.partition(b"\n")[0]


def _scan(path: Path) -> pl.LazyFrame:
    """A file that is not jsonl, not yet read: everything is text unless the file itself has types."""
    match kind(path):
        case ".parquet":
            return pl.scan_parquet(path)
        case ".txt":
            return _scan_text(path)
        case ".tsv":
            return pl.scan_csv(path, separator="\t", infer_schema=False)
        case _:
            head = _first_line(path).decode(errors="replace")
            return pl.scan_csv(path, separator=max(SEPARATORS, key=head.count), infer_schema=False)


def _chunks(path: Path) -> Iterator[bytes]:
    """The file in pieces of whole lines."""
    with _open(path, "rb") as file:
        rest = file.read(len(BOM)).removeprefix(BOM)
        while piece := file.read(CHUNK):
            lines, end, rest = (rest + piece).rpartition(b"\n")
            if end:
                yield lines
        if rest.strip():
            yield rest


def _pieces(lines: bytes) -> Iterator[bytes]:
    """`lines` in pieces of at most `LINES` lines."""
    while lines:
        piece = lines.split(b"\n", LINES)
        lines = piece.pop() if len(piece) > LINES else b""
        yield b"\n".join(piece)


def _empty(schema: pl.Schema) -> pl.Expr:
    """Whether a row holds nothing."""
    texts = [name for name, kind in schema.items() if kind == pl.String]
    filled = [pl.col(name).fill_null("") == "" for name in texts]
    return pl.all_horizontal(*filled, *(pl.col(name).is_null() for name in schema if name not in texts))


def _texts(lines: bytes, columns: Sequence[str]) -> pl.DataFrame:
    """These fields of lines of JSON, each as its text: a number as it is written there."""
    places = {f"at{place}": name for place, name in enumerate(columns)}
    fields = [(place, msgspec.Raw, msgspec.field(default=NULL, name=name)) for place, name in places.items()]
    found = msgspec.json.Decoder(msgspec.defstruct("Row", fields, gc=False)).decode_lines(lines)
    return pl.DataFrame(
        {
            name: pl.Series([_text(getattr(row, place)) for row in found], dtype=pl.String)
            for place, name in places.items()
        }
    )


def _decoded(lines: bytes) -> list[dict[str, Any]]:
    """Raises `MsgspecError` that names the line, and what stands there though JSON has no such number."""
    decode = msgspec.json.Decoder(dict[str, Any])
    try:
        return decode.decode_lines(lines)
    except msgspec.MsgspecError:
        for number, line in enumerate(lines.split(b"\n"), 1):
            try:
                if line.strip():
                    decode.decode(line)
            except msgspec.MsgspecError as error:
                odd = re.search(rb"\bNaN\b|-?\bInfinity\b", line)
                holds = f", which holds {odd[0].decode()}: {line[:60].decode(errors='replace')}" if odd else ""
                raise msgspec.MsgspecError(f"line {number}{holds}: {error}") from None
        raise


def _text(value: msgspec.Raw) -> str | None:
    text = bytes(value).decode()
    if not text.startswith('"'):
        return None if text == "null" else text
    return msgspec.json.decode(text, type=str) if "\\" in text else text[1:-1]


def _open(path: Path, mode: str) -> IO[Any]:
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    if path.name.lower().endswith(".gz"):
        return cast(IO[Any], gzip.open(path, mode, **text))
    return path.open(mode, **text)


def _scan_text(path: Path) -> pl.LazyFrame:
    """`user item` a line, perhaps with more fields, parted by a tab or a space; fields from the third have numbers."""
    with _open(path, "rt") as file:
        head = file.readline().rstrip("\r\n")
    separator = "\t" if "\t" in head else " "
    names = ["user", "item", *(f"column_{i}" for i in range(3, head.count(separator) + 2))]
    return pl.scan_csv(
        path, separator=separator, quote_char=None, infer_schema=False, has_header=False, new_columns=names
    )


def _typed(column: pl.Series) -> pl.Series:
    """Text that is all numbers as numbers, where these are written as the text is: `007` and `1.10` are text. Bytes
    in UTF-8 are text."""
    if column.dtype == pl.Binary:
        try:
            return column.cast(pl.String)
        except pl.exceptions.PolarsError:
            return column
    if column.dtype != pl.String:
        return column
    for kind in (pl.Int64, pl.Float64):
        numbers = column.cast(kind, strict=False)
        if numbers.null_count() == column.null_count():
            return numbers if (numbers.cast(pl.String) == column).all() else column
    return column


def _cell(value: Any) -> Any:
    return msgspec.json.encode(value).decode() if isinstance(value, dict | list | bool) else value
