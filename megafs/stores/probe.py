"""Does this store create an object only if its name is free, even in a race?

Everything that several mounts of one volume rely on hangs on this, and neither a service's name nor
its documentation tells: some engines ignore the condition, some check and then act.  So race it.
A store that passes may still fail once in a million; one that checks and then acts fails here
almost surely (Apache's WebDAV: two winners in 53 of 60 races).
"""

from __future__ import annotations

import trio

from megafs.clock import random_bytes
from megafs.concurrency import one_error_nursery
from megafs.errors import Exists, StoreError
from megafs.stores.base import ObjectStore

#: Racers for one name, and names raced for.
RACERS = 8
ROUNDS = 6
# Enough to span several packets, so that bodies really overlap on the way.
_SIZE = 4096


async def probe_create_if_absent(
    store: ObjectStore, *, racers: int = RACERS, rounds: int = ROUNDS
) -> bool:
    """Race put_new() for fresh names; True if each name had exactly one winner and its bytes.

    store: best without retries, and with room for *racers* requests at once.  Its errors are raised
        as they are: a store that cannot be reached, or that refuses our credentials, is no answer.
    What was made is deleted again.
    """
    run = random_bytes(16).hex()
    made: list[str] = []
    try:
        for i in range(rounds):
            name = f"probe/{run}/{i}"
            made.append(name)
            if not await _race(store, name, racers):
                return False
        return True
    finally:
        with trio.move_on_after(30, shield=True):
            for name in made:
                try:
                    await store.delete(name)
                except StoreError:  # a few bytes stay behind; the answer matters more
                    pass


async def _race(store: ObjectStore, name: str, racers: int) -> bool:
    bodies = [random_bytes(_SIZE) for _ in range(racers)]
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
    if len(won) != 1 or await store.get(name, 0, _SIZE + 1) != bodies[won[0]]:
        return False
    # One more, after the race: is the name refused, and the object left as it is?
    try:
        await store.put_new(name, random_bytes(_SIZE))
    except Exists:
        return await store.get(name, 0, _SIZE + 1) == bodies[won[0]]
    return False
