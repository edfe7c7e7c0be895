import gc
import platform
import subprocess
import sys
import weakref
from collections.abc import Iterator

import pytest

from stream_rec.messages import Recommendation, Window, WindowEvent
from stream_rec.runtime import process


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
    process.freeze_gc()
    assert not any(one is stays for one in gc.get_objects())


def test_what_was_spared_and_is_used_no_longer_is_freed() -> None:
    stays = Cycle()
    process.freeze_gc()
    gone = weakref.ref(stays)
    del stays
    gc.collect()
    assert gone() is not None
    process.freeze_gc()
    assert gone() is None


def test_windows_and_answers_are_not_looked_through() -> None:
    window = Window("u", 1, 0, 0, 0.0, (WindowEvent("tea", "view", 0.0),))
    assert not any(map(gc.is_tracked, (window, *window.events)))
    assert not Recommendation.__struct_config__.gc


def test_what_is_spared_is_freed_when_the_process_ends() -> None:
    """Else extension modules report it as leaked: nanobind, which Triton is built with, in 30 lines."""
    program = """
from stream_rec.runtime import process
class Kept:
    def __del__(self): print("freed")
kept = Kept()
kept.itself = kept
process.freeze_gc()
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("freed\n", "")


FAULTS = """
import resource
import numpy as np
from stream_rec.runtime.process import keep_freed_memory
if {keep}:
    keep_freed_memory()
for step in range(50):
    if step == 1:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(4 << 20).fill(1)  # 32 MiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that gives freed memory back at once")
def test_large_blocks_are_not_fetched_from_the_system_anew() -> None:
    given_back, kept = (
        int(subprocess.check_output([sys.executable, "-c", FAULTS.format(keep=keep)])) for keep in (False, True)
    )
    assert given_back >= 49  # huge pages make them few, but each block at least one
    assert kept < given_back / 10
