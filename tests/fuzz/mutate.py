"""Mutations of messages, files and arrays that know their structure. All are functions of a `random.Random`."""

import json
from collections.abc import Iterator
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUMBERS = (
    *(
        "0",
        "-0",
        "-0.0",
        "-1",
        "1",
        "2",
        "0.5",
        "1e-320",
        "1e39",
        "-1e39",
        "1e300",
        "1e308",
        "1e999",
        "NaN",
        "-Infinity",
    ),
    *("9" * 20, "9" * 400, "1e11", "1700000000000", "4102444800", "2147483648", "9223372036854775807", "1000000000"),
)
TEXTS = (
    *(
        '""',
        '" "',
        '"0"',
        '"007"',
        '"nan"',
        '"null"',
        '"\\u0000"',
        '"\\ud800"',
        '"\\ud83d\\ude00"',
        '"\u202eabc\u2066"',
    ),
    *('"[/b]"', '"[link=x]y"', '"<script>"', '"../../x"', '"\\r\\n"', '"{0}"', '"%s"', '"\ufeff"', '"erase"'),
)
OTHERS = ("null", "true", "false", "[]", "{}", "[null]", '{"":0}', "[[[]]]", "")
DEPTH = 30_000
LENGTH = 70_000
PIECES = (
    *(b"\x00" * 8, b"\xff\xfe", b"\xed\xa0\x80", b"\xef\xbb\xbf", b'"', b"\n", b",,,,", b"{", b"[" * 2_000, b"1e999"),
    *(b"-1", b"9" * 400, b"NaN", b"\r", b"\\", b"\x1f\x8b"),
)

Path = tuple[Any, ...]


def token(draw: Random) -> str:
    """JSON of a value that few expect; not always valid."""
    match draw.randrange(20):
        case 0:
            return "[" * DEPTH + "]" * DEPTH
        case 1:
            return '{"x":' * DEPTH + "0" + "}" * DEPTH
        case 2:
            return json.dumps("x" * draw.choice((64, 257, 2_001, LENGTH)))
        case 3 | 4 | 5:
            return draw.choice(OTHERS)
        case at if at < 12:
            return draw.choice(TEXTS)
        case _:
            return draw.choice(NUMBERS)


def message(draw: Random, good: Any) -> bytes:
    """The JSON of `good` with a few of its values replaced, removed, repeated or renamed; at times damaged bytes."""
    left = json.loads(json.dumps(good))
    tokens: list[str] = []
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        _change(draw, left, tokens)
    text = json.dumps(left, ensure_ascii=False)
    for number, odd in enumerate(tokens):
        text = text.replace(f'"@{number}@"', odd)
    whole = text.encode(errors="surrogatepass")
    return damaged(draw, whole) if draw.random() < 0.15 else whole


def _change(draw: Random, left: Any, tokens: list[str]) -> None:
    paths = [path for path in _paths(left) if path]
    if not paths:
        return
    *way, last = draw.choice(paths)
    holder = left
    for step in way:
        holder = holder[step]
    match draw.randrange(8):
        case 0:
            del holder[last]
        case 1:
            holder[last] = [holder[last]] * draw.choice((1, 2, 300))
        case 2 if isinstance(holder, dict):
            holder[draw.choice((last + "x", last.upper(), "", "\u202e"))] = holder.pop(last)
        case 3 if isinstance(holder, list):
            holder.extend(holder[:] * draw.choice((1, 100)))
        case _:
            holder[last] = f"@{len(tokens)}@"
            tokens.append(token(draw))


def _paths(value: Any, path: Path = ()) -> Iterator[Path]:
    yield path
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _paths(inner, (*path, name))
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            yield from _paths(inner, (*path, at))


def damaged(draw: Random, whole: bytes) -> bytes:
    """Bytes overwritten, inserted, cut out or flipped, or the end lost."""
    left = bytearray(whole)
    for _ in range(draw.randint(1, 4)):
        at = draw.randint(0, len(left))
        piece = draw.choice(PIECES) if draw.random() < 0.6 else draw.randbytes(draw.randint(1, 40))
        match draw.randrange(6):
            case 0 | 1:
                left[at : at + len(piece)] = piece
            case 2:
                left[at:at] = piece
            case 3:
                del left[at : at + draw.randint(1, 200)]
            case 4 if at < len(left):
                left[at] ^= 1 << draw.randrange(8)
            case _:
                del left[at:]
    return bytes(left)


def array(draw: Random, good: NDArray[Any]) -> NDArray[Any]:
    """The array with some values replaced, or another shape, or another type."""
    left = good.copy()
    whole = np.issubdtype(left.dtype, np.integer)
    match draw.randrange(8):
        case 0:
            return left[: draw.choice((0, 1, max(0, len(left) - 1)))] if left.ndim else left
        case 1:
            return np.concatenate([left, left]) if left.ndim else left
        case 2:
            return np.ascontiguousarray(left.T)
        case 3:
            return left.astype(draw.choice((np.float64, np.float16, np.int32, np.int64, np.uint8, np.bool_)))
        case 4:
            left[...] = 0
        case _ if left.size:
            odd = (-1, 2**31 - 1, 1 << 20, left.size) if whole else (np.nan, np.inf, -np.inf, 1e38, -1.0, 0.0, 1e-38)
            for _ in range(draw.choice((1, 1, 3, 50))):
                left.reshape(-1)[draw.randrange(left.size)] = np.array(draw.choice(odd)).astype(left.dtype)
    return left
