"""Creating an object only if its name is free, on servers that differ in what of it is atomic.

Raced with 8 writers: a conditional PUT has two winners on Apache, nginx, rclone and wsgidav; MOVE
of a file on Apache, and now and then on nginx and rclone, which look and then rename; MKCOL alone
on rclone.  A folder that is not empty is never replaced by rename(2), which is what MOVE of a
folder comes to on a disk: surest, and tried first.  (wsgidav moves a loser's folder into the
winner's and reports success: hence the look at what lies there afterwards.)

`megafs format` races what there is and keeps the first way without a second winner, in the file
exclusive.txt, for all machines.  Nothing of it is secret or signed: a wrong word there costs the
atomicity that a server of ill will does not give anyway, and the chain of commits shows it.
"""

from __future__ import annotations

from enum import Enum

import trio

from megafs import clock
from megafs.concurrency import one_error_nursery
from megafs.errors import Exists, StoreError, Unavailable
from megafs.stores.base import Buffer
from megafs.stores.webdav.layout import FILE, FOLDER, INSIDE, TEMPORARY, base_of, parent_of
from megafs.stores.webdav.server import NO_PARENT, Server, Vanished


class Way(Enum):
    """How it is done; the words stand in volumes.

    MOVE_FOLDER: written into a folder elsewhere, which is moved to its name with `Overwrite: F`.
    MKCOL: a folder of its name is made, which has one winner, who moves the file into it.
    MOVE_FILE: written elsewhere, and moved to its name with `Overwrite: F`.
    PUT: with `If-None-Match: *`.
    NONE: not at all; put_new() looks before it writes.
    """

    MOVE_FOLDER = "move-folder"
    MKCOL = "mkcol"
    MOVE_FILE = "move-file"
    PUT = "put"
    NONE = "none"


#: Surest first, and a conditional PUT last: a server may show half of it under its name.
CANDIDATES = (Way.MOVE_FOLDER, Way.MKCOL, Way.MOVE_FILE, Way.PUT)
#: Names raced for, and how many race for each.  Apache's MOVE of a file has two winners in a third
#: of the rounds: it would pass once in 100,000 times.
ROUNDS = 30
RACERS = 8
# How often a race is begun that the server does not answer to the end.
_ATTEMPTS = 2
_SIZE = 4096

#: A folder that was made and holds nothing: seconds after which it counts as left by a writer that
#: died, and how long the writer itself believes in it.  The difference is what a request may hang.
CLAIM_ENDS = 180.0
CLAIM_HOLDS = 30.0
# Seconds that a loser waits for the winner's file, and between two looks.
_CLAIM_WAIT = 10.0
_LOOK_EVERY = 0.1


def path_of(way: Way, name: str) -> str:
    """Return the path of the file that holds the object *name*."""
    if way in (Way.MOVE_FOLDER, Way.MKCOL):
        return f"{base_of(name)}{FOLDER}/{INSIDE}"
    return base_of(name) + FILE


async def create(server: Server, way: Way, name: str, data: Buffer) -> None:
    """Store *data* as *name* in that way; Exists if the name is taken."""
    await _finish(server, way, name, data, await _prepare(server, way, data))


async def _prepare(server: Server, way: Way, data: Buffer) -> str:
    """Do all that is not contested yet; return where *data* waits for its name."""
    if way is Way.PUT:
        return ""
    return await server.upload(data, in_folder=INSIDE if way is Way.MOVE_FOLDER else "")


async def _finish(server: Server, way: Way, name: str, data: Buffer, prepared: str) -> None:
    path = path_of(way, name)
    if way is Way.MOVE_FILE:
        await server.name(prepared, path, data, replace=False)
    elif way is Way.MOVE_FOLDER:
        await server.name(prepared, path, data, replace=False, in_folder=True)
    elif way is Way.MKCOL:
        await _claim(server, path, data, prepared)
    elif way is Way.PUT:
        await _put(server, path, data)
    else:
        # Who races again, at format or mount, must see for sure that two can win.
        await server.name(prepared, path, data, replace=name.startswith("probe/"))


async def remove(server: Server, way: Way, name: str) -> None:
    """Delete the object *name*; no error if it is not there."""
    path = path_of(way, name)
    if path.endswith(FILE):
        await server.remove(path)
    else:
        await server.remove(parent_of(path), folder=True)


async def choose(server: Server, *, rounds: int = ROUNDS) -> Way:
    """Race the candidates, and return the first that holds."""
    trouble: StoreError | None = None
    for way in CANDIDATES:
        for _ in range(_ATTEMPTS):
            try:
                if await holds(server, way, rounds=rounds):
                    return way
            except Vanished:
                pass  # replaced by another racer
            except Unavailable as exc:
                trouble = trouble or exc
                continue
            except StoreError:
                pass  # the server cannot do that at all
            break
    if trouble is not None:
        raise trouble
    return Way.NONE


async def holds(server: Server, way: Way, *, rounds: int = ROUNDS) -> bool:
    """Whether each of several names that are raced for has one winner, and its bytes.

    Sharper than the race that every store is put to (stores/probe.py): all racers have uploaded
    before the first one asks for the name, so that nothing is in flight but what decides.
    """
    run = clock.random_bytes(16).hex()
    made: list[str] = []
    try:
        for i in range(rounds):
            made.append(f"probe/{run}/{i}")
            if not await _race(server, way, made[-1]):
                return False
        return True
    finally:
        with trio.move_on_after(30, shield=True):
            for name in made:
                try:
                    await remove(server, way, name)
                except StoreError:  # a few bytes stay behind; the answer matters more
                    pass


async def _race(server: Server, way: Way, name: str) -> bool:
    bodies = [clock.random_bytes(_SIZE) for _ in range(RACERS)]
    prepared = [""] * RACERS
    won: list[int] = []

    async def prepare(i: int) -> None:
        prepared[i] = await _prepare(server, way, bodies[i])

    async def finish(i: int) -> None:
        try:
            await _finish(server, way, name, bodies[i], prepared[i])
        except Exists:
            return
        won.append(i)

    await server.ensure(parent_of(name))
    for step in (prepare, finish):
        async with one_error_nursery() as nursery:
            for i in range(RACERS):
                nursery.start_soon(step, i)
    if len(won) != 1 or await server.read(path_of(way, name), 0, _SIZE + 1) != bodies[won[0]]:
        return False
    # One more, after the race: is the name refused, and the object left as it is?
    try:
        await create(server, way, name, bodies[won[0] - 1])
    except Exists:
        return await server.read(path_of(way, name), 0, _SIZE + 1) == bodies[won[0]]
    return False


async def _put(server: Server, path: str, data: Buffer) -> None:
    for again in (False, True):
        await server.ensure(parent_of(path), again=again)
        reply = await server.ask("PUT", path, headers={"if-none-match": "*"}, body=data)
        if reply.status in (200, 201, 204) or await server.settle(reply, path, data, ""):
            return
        if again or reply.status not in NO_PARENT:
            raise server.error(reply, f"store {path}", write=True)


async def _claim(server: Server, path: str, data: Buffer, temporary: str) -> None:
    refused: StoreError | None = None
    try:
        await _claim_and_fill(server, path, data, temporary)
    except StoreError as exc:
        refused = exc
    if refused is not None:
        await server.discard(temporary)
        raise refused


async def _claim_and_fill(server: Server, path: str, data: Buffer, temporary: str) -> None:
    folder = parent_of(path)
    for again in (False, True):
        await server.ensure(parent_of(folder), again=again)
        reply = await server.claim(folder)
        if reply.status == 201:
            break
        if await _is_taken(server, folder, path):
            raise Exists(f"{path}: the name is taken")
        if again or (reply.status != 405 and reply.status not in NO_PARENT):
            raise server.error(reply, f"claim {folder}", write=True)
    claimed = trio.current_time()
    reply = await server.move(temporary, path, replace=False)
    late = trio.current_time() - claimed > CLAIM_HOLDS
    if reply.status in (200, 201, 204) and not late:
        return
    if not await server.settle(reply, path, data, temporary):
        raise server.error(reply, f"store {path}", write=True)


async def _is_taken(server: Server, folder: str, path: str) -> bool:
    """Wait until the winner's file is in its folder; False if there is no such folder any more.

    A folder whose winner died is moved away.
    """
    deadline = trio.current_time() + _CLAIM_WAIT
    while True:
        members = await server.members(folder)
        if members is None:
            return False
        if path.rpartition("/")[2] in members:
            return True
        if trio.current_time() >= deadline:
            break
        await trio.sleep(_LOOK_EVERY)
    name = folder.rpartition("/")[2]
    member = (await server.members(parent_of(folder)) or {}).get(name)
    if member is not None and 0 < member.modified < server.now - CLAIM_ENDS:
        await server.move(
            folder, f"{TEMPORARY}/{int(server.now)}-{name}", replace=False, folder=True
        )
        return False
    raise Unavailable(f"{path}: another machine is about to store it", retry_after=1.0)
