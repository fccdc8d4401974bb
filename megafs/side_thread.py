"""Threads that nobody waits for."""

from __future__ import annotations

import _thread
from collections.abc import Callable


def start_thread(run: Callable[[], None]) -> None:
    """Run something in a thread of its own; RuntimeError if there is no room for another one.

    Not by threading.Thread: its start() waits until the new thread has begun, and for ever if that
    finds no memory for its first frame.  A mount under RLIMIT_AS hung so while it was ending.
    """
    _thread.start_new_thread(run, ())
