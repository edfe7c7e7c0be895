"""What a user is called where windows and recommendations stand: the id itself, or a pseudonym in its place.

A pseudonym is a keyed BLAKE2b hash (RFC 7693) of the id: the same for the same key, and for who lacks the key neither
to be computed nor to be turned round. What is a user's own stays together under it; to destroy the key is to cut its
link to the person ("pseudonymisation" in the sense of the GDPR, article 4).
"""

from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

from stream_rec.errors import UserError

LEAST_KEY, MOST_KEY = 16, blake2b.MAX_KEY_SIZE
"""Bytes of a key."""
SIZE = 16
"""Bytes of a pseudonym: among 10^9 users, two share one with a probability of 10^-21."""

Naming = Callable[[str], str]


def naming(key_file: Path | None) -> Naming:
    """From a user's id to what the user is called; the id itself without a key file.

    Raises `UserError` when the file can't be read, or is too short or long for a key.
    """
    if key_file is None:
        return str
    key = _key(key_file)
    return lambda user_id: blake2b(user_id.encode(), digest_size=SIZE, key=key).hexdigest()


def fingerprint(key_file: Path | None) -> str:
    """The same for the same key, and tells nothing else of it; empty without a key file. Raises `UserError`."""
    return "" if key_file is None else blake2b(digest_size=8, key=_key(key_file), person=b"fingerprint").hexdigest()


def _key(key_file: Path) -> bytes:
    try:
        key = key_file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the key of the pseudonyms in {key_file}: {error.strerror}") from None
    if not LEAST_KEY <= len(key) <= MOST_KEY:
        raise UserError(
            f"the key of the pseudonyms in {key_file} has {len(key)} bytes: {LEAST_KEY} to {MOST_KEY} are taken, "
            f"say of 'head -c 32 /dev/urandom'"
        )
    return key
