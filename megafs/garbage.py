"""When the cyclic garbage collector runs: not while modules are imported, and seldom in a mount.

Almost everything in megafs is freed by its reference count; cycles come from errors with a
traceback.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused() -> Iterator[None]:
    """For imports: nothing that is imported is garbage, and looking took a tenth of their time.

    What exists at the end is never looked through again (gc.freeze).
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.freeze()
            gc.enable()


def collect_seldom() -> None:
    """For a mount that has just become usable: what exists now stays to the end.

    A full collection went through all of it every time: a fifth of the main thread's time while
    reading (py-spy).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
