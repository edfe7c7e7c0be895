"""Files as disks, networks and enemies leave them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from stream_rec.errors import UserError

LONG = st.binary(min_size=1, max_size=40) | st.sampled_from(
    [b"\x00" * 8, b"\xff\xfe", b'"', b"\n", b",,,,", b"{", b"[" * 2_000, b"1e999", b"-1", b"9" * 400, b"\xed\xa0\x80"]
)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """`whole` with some places overwritten, something put in or cut out, or its end lost."""
    left = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(left)))
        match draw(st.sampled_from(["overwrite", "insert", "cut", "end"])):
            case "overwrite":
                piece = draw(LONG)
                left[at : at + len(piece)] = piece
            case "insert":
                left[at:at] = draw(LONG)
            case "cut":
                del left[at : at + draw(st.integers(1, 200))]
            case _:
                del left[at:]
    return bytes(left)


def said(read: Callable[[Path], Any], path: Path) -> str:
    """Why `path` was refused; nothing if it was read."""
    try:
        read(path)
    except UserError as error:
        return str(error)
    return ""
