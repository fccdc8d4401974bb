"""Work in threads."""

from __future__ import annotations

import threading

import trio

from megafs.concurrency import offload


def test_threads_that_outlive_their_loop_block_no_later_one() -> None:
    """As after Ctrl-C, where a stuck disk's threads are left behind."""
    stuck = threading.Event()

    async def given_up() -> None:
        with trio.move_on_after(0.05):
            async with trio.open_nursery() as nursery:
                for _ in range(4):  # as many as kind "kernel" has
                    nursery.start_soon(
                        lambda: offload(stuck.wait, 20.0, kind="kernel", abandon=True)
                    )

    async def later() -> int:
        with trio.fail_after(5):
            return await offload(lambda: 7, kind="kernel")

    try:
        trio.run(given_up)
        assert trio.run(later) == 7
    finally:
        stuck.set()
