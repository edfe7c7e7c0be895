"""Python's garbage collector, in a process that must not stand still."""

import atexit
import gc

atexit.register(gc.unfreeze)  # else extension modules report what is frozen as leaked when the process ends


def settle() -> None:
    """Frees what is garbage by now, and spares what is not from being looked through again.

    A worker's model and memory are half a million objects, a quarter of a second for each full collection, while no
    window is answered. To be called when what stays has been made, and when some of it is no longer used.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
