from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_rec.errors import UserError
from stream_rec.pseudonyms import LEAST_KEY, MOST_KEY, naming

IDS = st.text(min_size=1, max_size=256).filter(lambda text: text.isprintable())


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    home = tmp_path_factory.mktemp("keys")
    for name, key in (("a", bytes(LEAST_KEY)), ("b", bytes(range(MOST_KEY)))):
        (home / name).write_bytes(key)
    return home / "a", home / "b"


@given(st.text())
def test_without_a_key_a_user_is_called_by_the_id(user: str) -> None:
    assert naming(None)(user) == user


@given(IDS, IDS)
def test_a_pseudonym_depends_on_id_and_key_and_shows_neither(keys: tuple[Path, Path], one: str, other: str) -> None:
    first, second = map(naming, keys)
    assert first(one) == naming(keys[0])(one) != second(one)
    assert (first(one) == first(other)) == (one == other)
    assert len(first(one)) == 32
    assert first(one).isalnum()


@pytest.mark.parametrize("key", [b"", b"a password", bytes(MOST_KEY + 1)])
def test_a_key_that_is_too_short_or_long_is_refused_with_its_length(tmp_path: Path, key: bytes) -> None:
    (tmp_path / "key").write_bytes(key)
    with pytest.raises(UserError, match=f"has {len(key)} bytes"):
        naming(tmp_path / "key")


def test_a_key_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        naming(tmp_path / "missing")
