"""Two questions that only trying answers: does this store create an object only if its name is
free, even in a race, and how large may an object be?

Everything that several mounts of one volume rely on hangs on the first, and neither a service's
name nor its documentation tells: some engines ignore the condition, some check and then act.  So
race it.  A store that checks and then acts slips through a race when the racers' requests fall so
that each looks after the one before it has written.  With 6 races of 8 racers and one size one such
server passed 2 of 420 times, so 4 of 10 races; at that rate the 24 of `RACES` let it pass once in
3 * 10^9.  One that slips through 6 of 10 passes once in 200,000.  Few racers meet a server that
serves many in turn, many one that serves two in turn; large bodies widen the window between looking
and writing, small ones let requests arrive together.  Figures:
docs/decisions/0017-probing-the-store.md.

The second is for proxies: nginx takes bodies of 1 MiB unless it is told otherwise.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import trio

from megafs.clock import random_bytes
from megafs.concurrency import one_error_nursery
from megafs.errors import Exists, StoreError, TooLarge
from megafs.stores.base import ObjectStore

#: The races: how many race for one name, and with bodies of how many bytes.
RACES: tuple[tuple[int, int], ...] = (
    (8, 4096),
    (2, 4096),
    (12, 100),
    (4, 64 << 10),
    (3, 1),
    (6, 16 << 10),
) * 4
#: Races at once: together fewer requests than a driver has connections (36).
_LANES = 3
#: Seconds that removing what a probe has made may take.
_REMOVE_WITHIN = 30

#: The limits that are looked for: those that proxies are given.
LIMITS = (8 << 20, 4 << 20, 2 << 20, 1 << 20, 512 << 10, 256 << 10, 128 << 10)


async def probe_create_if_absent(
    store: ObjectStore,
    *,
    races: Sequence[tuple[int, int]] = RACES,
    rest: Callable[[float], Awaitable[None]] | None = None,
) -> bool:
    """Race put_new() for fresh names; True if each name had exactly one winner and its bytes.

    store: without limits of its own (`stack.unlimited`), so that the racers really race.  Its
        errors are raised as they are: a store that cannot be reached, or that refuses our
        credentials, is no answer.
    rest: awaited after each race with the seconds that it took; then there is one race at a time.
    What was made is deleted again.
    """
    run = random_bytes(16).hex()
    waiting = list(enumerate(races))
    made: list[str] = []
    lost = False

    async def lane() -> None:
        nonlocal lost
        while waiting and not lost:
            i, (racers, size) = waiting.pop(0)
            name = f"probe/{run}/{i}"
            made.append(name)
            since = trio.current_time()
            if not await _race(store, name, racers, size):
                lost = True
            elif rest is not None:
                await rest(trio.current_time() - since)

    try:
        async with one_error_nursery() as nursery:
            for _ in range(_LANES if rest is None else 1):
                nursery.start_soon(lane)
        return not lost
    finally:
        with trio.move_on_after(_REMOVE_WITHIN, shield=True):
            await _remove(store, made)


async def _race(store: ObjectStore, name: str, racers: int, size: int) -> bool:
    # The number tells bodies of one byte apart.
    bodies = [bytes([i]) + random_bytes(size - 1) for i in range(racers)]
    won: list[int] = []
    start = trio.Event()

    async def racer(i: int) -> None:
        await start.wait()
        try:
            await store.put_new(name, bodies[i])
        except Exists:
            return
        won.append(i)

    async with one_error_nursery() as nursery:
        for i in range(racers):
            nursery.start_soon(racer, i)
        start.set()
    if len(won) != 1 or await store.get(name, 0, size + 1) != bodies[won[0]]:
        return False
    # One more, after the race: is the name refused, and the object left as it is?
    try:
        await store.put_new(name, random_bytes(size))
    except Exists:
        return await store.get(name, 0, size + 1) == bodies[won[0]]
    return False


async def probe_largest(store: ObjectStore, size: int) -> int:
    """Return *size* if objects of so many bytes can be stored, else the largest of LIMITS that can.

    What was made is deleted again.  Raises TooLarge if not even the smallest can.
    """
    run = random_bytes(16).hex()
    name = ""
    try:
        for wanted in (size, *(limit for limit in LIMITS if limit < size)):
            name = f"probe/{run}/{wanted}"
            try:
                await store.put_new(name, bytes(wanted))
            except TooLarge as exc:
                refused = exc
            else:
                return wanted
        raise refused
    finally:
        with trio.move_on_after(_REMOVE_WITHIN, shield=True):
            await _remove(store, [name])


async def _remove(store: ObjectStore, names: Sequence[str]) -> None:
    for name in names:
        try:
            await store.delete(name)
        except StoreError:  # a few bytes stay behind; the answer matters more
            pass
