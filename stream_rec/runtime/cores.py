"""Sharing the processor with the broker and the agents."""

import os


def share_cores() -> None:
    """Makes OpenMP's threads sleep where they would spin; to be called before torch is imported.

    Spinning threads starve whatever else runs on the machine, and are starved by it: appends to cached windows fell
    from 4,200 to 95 events/s beside one busy process, and came back with this. What the environment says stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
