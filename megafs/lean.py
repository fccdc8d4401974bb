"""Imports without what libraries drag in and megafs has no use for.  CPU measured in a mount:

    pyfuse3   asks importlib.metadata for its own version: 20 modules, every file in site-packages
              listed, 30 ms
    msgspec   takes get_type_hints from typing_extensions if it is there, else from typing: 6 ms
    httpx     imports its command line if it can, and with it rich and pygments: 25 ms
    trio      looks for libpthread with a child process (ldconfig), to name its threads: 3 ms

Each would also do without: none of it is a change to a library, nor does any of it stay behind.
What was imported before is left alone.

Nothing that is imported is garbage, so no garbage is looked for meanwhile, which took a tenth of
the time, nor in it ever again.
"""

from __future__ import annotations

import gc
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def lean() -> Iterator[None]:
    """For imports and nothing else, in one thread."""
    # None makes an import fail, which both expect.
    stand_ins: dict[str, types.ModuleType | None] = {
        "httpx._main": None,
        "typing_extensions": None,
        "importlib.metadata": _metadata(),
        "ctypes.util": _ctypes_util(),
    }
    placed = {name: it for name, it in stand_ins.items() if name not in sys.modules}
    sys.modules.update(placed)  # type: ignore[arg-type]
    util = placed.get("ctypes.util")
    if util is not None:  # as importing it would do
        import ctypes

        ctypes.util = util  # type: ignore[attr-defined]
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.freeze()
            gc.enable()
        for name in placed:
            del sys.modules[name]
        if util is not None:
            del ctypes.util  # type: ignore[attr-defined]


def _metadata() -> types.ModuleType:
    module = types.ModuleType("importlib.metadata")

    class PackageNotFoundError(ModuleNotFoundError):
        pass

    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    module.__dict__.update(version=version, PackageNotFoundError=PackageNotFoundError)
    return module


def _ctypes_util() -> types.ModuleType:
    module = types.ModuleType("ctypes.util")
    # Threads are in libc since glibc 2.34; where they are not, trio's stay without names.
    module.__dict__["find_library"] = lambda name: "libc.so.6" if name == "pthread" else None
    return module
