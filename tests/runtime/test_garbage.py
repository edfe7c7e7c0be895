import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator

import pytest

from stream_rec.messages import Recommendation, Window, WindowEvent
from stream_rec.runtime import garbage


class Cycle:
    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def _by_hand() -> Iterator[None]:
    gc.disable()
    yield
    gc.unfreeze()
    gc.enable()


def test_what_stays_is_not_looked_through_again() -> None:
    stays = Cycle()
    garbage.settle()
    assert not any(one is stays for one in gc.get_objects())


def test_what_was_spared_and_is_used_no_longer_is_freed() -> None:
    stays = Cycle()
    garbage.settle()
    gone = weakref.ref(stays)
    del stays
    gc.collect()
    assert gone() is not None
    garbage.settle()
    assert gone() is None


def test_windows_and_answers_are_not_looked_through() -> None:
    window = Window("u", 1, 0, 0, 0.0, (WindowEvent("tea", "view", 0.0),))
    assert not any(map(gc.is_tracked, (window, *window.events)))
    assert not Recommendation.__struct_config__.gc


def test_what_is_spared_is_freed_when_the_process_ends() -> None:
    """Else extension modules report it as leaked: nanobind, which Triton is built with, in 30 lines."""
    program = """
from stream_rec.runtime import garbage
class Kept:
    def __del__(self): print("freed")
kept = Kept()
kept.itself = kept
garbage.settle()
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("freed\n", "")
