import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
import numpy as np
from stream_rec.runtime.heap import keep_freed
if {keep}:
    keep_freed()
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
