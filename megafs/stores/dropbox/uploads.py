"""Writing: one request at a time that changes the folder, and as much as can be in each.

Dropbox changes a namespace under one lock.  Who comes while it is taken is refused
(too_many_write_operations), and the refused request counts against the limits.  So the requests of
this process that need the lock take turns, and whoever has the turn does the work of all who wait:

- Bytes go up without the lock, into an upload session each, side by side.  One request
  (finish_batch_v2, up to 1,000 of them) then gives them their names, in one write of the namespace.
- Deletions that wait together are one delete_batch.
- A small object goes up directly (files/upload), if nobody has the turn: one request, not two.

What other machines do cannot be ordered: where they have the lock, the batch is tried again after
the time that the answer gave, with its bytes already there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import trio
from msgspec import Struct

from megafs import clock
from megafs.errors import Missing, StoreError, TooLarge, Unavailable
from megafs.stores import limit
from megafs.stores.base import Buffer
from megafs.stores.dropbox.api import DropboxApi, Json
from megafs.stores.dropbox.content_hash import hash_of
from megafs.stores.dropbox.errors import ElsewhereInSession, tags_of, union_error

#: An object up to this size goes up directly: at 4 Mbit/s the others wait for it for a second.
DIRECT = 512 << 10
#: Bytes of one request to a session; Dropbox takes 150 MiB.
PIECE = 48 << 20
#: The most files that one finish_batch_v2 takes, and how many deletions are one batch here: it
#: takes as many, but holds the lock for long.
MOST_FINISHED = 1000
MOST_DELETED = 200
#: The largest file that Dropbox takes: 2^41 - 2^22 bytes.
LARGEST = (1 << 41) - (1 << 22)

#: How often a write is tried while other machines have the lock, and the longest wait between.
_TRIES = 8
_WAIT = 4.0
# Between two looks whether a batch of deletions is done: doubled from the first to the last.
_CHECK, _CHECK_CAP = 0.1, 2.0


class Naming(Struct, frozen=True):
    """How a file gets its name.

    mode: "add" or "overwrite".  exclusive: a file of the same bytes is in the way, too.
    """

    path: str
    mode: str = "add"
    exclusive: bool = False

    @property
    def arg(self) -> Json:
        return {
            "path": self.path,
            "mode": self.mode,
            "autorename": False,
            "mute": True,
            "strict_conflict": self.exclusive,
        }


class _Waiting:
    """One who waits for its turn, or for another to do its work.  error: how it ended."""

    def __init__(self) -> None:
        self.done = False
        self.error: StoreError | None = None

    def end(self, error: StoreError | None = None) -> None:
        self.done, self.error = True, error


class _Finish(_Waiting):
    def __init__(self, naming: Naming, session: str, size: int, digest: str) -> None:
        super().__init__()
        self.naming, self.session, self.size, self.digest = naming, session, size, digest

    @property
    def arg(self) -> Json:
        cursor = {"session_id": self.session, "offset": self.size}
        return {"cursor": cursor, "commit": self.naming.arg}


class _Delete(_Waiting):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path


class Namespace:
    """The writes of one process to the folder."""

    def __init__(self, api: DropboxApi) -> None:
        self._api = api
        self._turn = trio.Lock()
        self._finishes: list[_Finish] = []
        self._deletes: list[_Delete] = []
        #: How often other machines had the lock; how many files the batches have named.
        self.contended = 0
        self.batched = 0

    async def store(self, naming: Naming, data: Buffer) -> None:
        """Store *data* as a file: whole or not at all.

        Raises Exists if something is in the way.
        """
        digest = await hash_of(data)
        if len(data) <= DIRECT and not self._turn.locked():
            arg = {**naming.arg, "content_hash": digest}

            async def upload() -> bool:
                _check(await self._api.upload("files/upload", arg, data), naming, digest)
                return True

            async with self._turn:
                await self._until_done(upload, f"store {naming.path}")
            return
        session = await self._session(data, digest)
        await self._wait_for(_Finish(naming, session, len(data), digest), self._finishes)

    async def delete(self, path: str) -> None:
        """Delete a file; no error if it is not there."""
        await self._wait_for(_Delete(path), self._deletes)

    # Bytes

    async def _session(self, data: Buffer, digest: str) -> str:
        """Upload *data* into a session that is closed then; return its id."""
        view = memoryview(data).cast("B")
        size = len(view)
        if size > LARGEST:
            raise TooLarge(f"Dropbox takes no file of {size} bytes")
        first = view[:PIECE]
        arg: Json = {"close": size <= PIECE}
        arg["content_hash"] = digest if size <= PIECE else await hash_of(first)
        made = await self._api.upload("files/upload_session/start", arg, first)
        session = made.get("session_id")
        if not isinstance(session, str):
            raise Unavailable("files/upload_session/start: the answer names no session")
        at = len(first)
        while at < size:
            piece = view[at : at + PIECE]
            await self._append(session, at, piece, close=at + len(piece) == size)
            at += len(piece)
        return session

    async def _append(self, session: str, at: int, piece: Buffer, *, close: bool) -> None:
        route = "files/upload_session/append_v2"
        arg = {
            "cursor": {"session_id": session, "offset": at},
            "close": close,
            "content_hash": await hash_of(piece),
        }
        lost = False
        for again in (False, True):
            try:
                await self._api.upload(route, arg, piece)
                return
            except ElsewhereInSession:
                if lost:
                    return
                raise
            except Missing as exc:
                raise Unavailable(f"{route}: the session is gone") from exc
            except Unavailable as exc:
                lost = exc.maybe_done
                if again or not lost:
                    raise

    # Turns

    async def _wait_for(self, waiting: Any, queue: list[Any]) -> None:
        """Wait until *waiting* is done, by whoever has the turn."""
        queue.append(waiting)
        attempt = limit.attempt.get()
        try:
            if attempt is not None:
                attempt.pause()  # others' work is no hanging of ours
            async with self._turn:
                if attempt is not None:
                    attempt.start()
                while not waiting.done:
                    await self._work()
        finally:
            if waiting in queue:
                queue.remove(waiting)
        if waiting.error is not None:
            raise _anew(waiting.error)

    async def _work(self) -> None:
        """Do what waits: first what gets its name, since commits are among it."""
        if self._finishes:
            batch, self._finishes[:] = (
                self._finishes[:MOST_FINISHED],
                self._finishes[MOST_FINISHED:],
            )
            await self._ending(batch, self._finish, "finish")
        elif self._deletes:
            gone, self._deletes[:] = self._deletes[:MOST_DELETED], self._deletes[MOST_DELETED:]
            await self._ending(gone, self._remove, "delete")

    async def _ending(self, batch: Sequence[_Waiting], work: Any, what: str) -> None:
        """Do *work* on *batch*, and see that each of it has ended, whatever happens."""
        error: StoreError = Unavailable(f"{what}: broken off", maybe_done=True)
        try:
            await work(batch)
        except StoreError as exc:
            error = exc
        finally:
            for waiting in batch:
                if not waiting.done:
                    waiting.end(error)

    async def _finish(self, batch: Sequence[_Finish]) -> None:
        left = list(batch)
        route = "files/upload_session/finish_batch_v2"

        async def finish() -> bool:
            nonlocal left
            entries = [each.arg for each in left]
            left = self._ended(left, await self._api.rpc(route, {"entries": entries}, write=True))
            return not left

        await self._until_done(finish, "store")

    async def _until_done(self, work: Callable[[], Awaitable[bool]], what: str) -> None:
        """Call *work* until it says that all is done, as long as other machines have the lock."""
        for tries in range(_TRIES):
            wait: float | None = None
            error = Unavailable(
                f"{what}: too_many_write_operations: other machines are writing", busy=True
            )
            try:
                if await work():
                    return
            except Unavailable as exc:
                if not exc.busy or exc.maybe_done or self._api.pace.held_for:
                    raise
                wait, error = exc.retry_after, exc
            self.contended += 1
            if tries < _TRIES - 1:
                await _pause(tries, wait)
        raise error

    def _ended(self, batch: Sequence[_Finish], made: Json) -> list[_Finish]:
        """Tell each how it ended; return those for which others had the lock."""
        entries = made.get("entries")
        if not isinstance(entries, list) or len(entries) != len(batch):
            raise Unavailable("finish: the answer does not fit what was asked", maybe_done=True)
        left = []
        for waiting, entry in zip(batch, entries, strict=True):
            tags = tags_of(entry)
            if "too_many_write_operations" in tags:
                left.append(waiting)
                continue
            if tags[:1] == ["success"]:
                self.batched += 1
                try:
                    _check(entry, waiting.naming, waiting.digest)
                    waiting.end()
                except StoreError as exc:
                    waiting.end(exc)
            else:
                said = f"store {waiting.naming.path}: Dropbox answers {'/'.join(tags)}"
                waiting.end(union_error(tags, said))
        return left

    async def _remove(self, batch: Sequence[_Delete]) -> None:
        left = list(batch)

        async def remove() -> bool:
            nonlocal left
            left = await (self._remove_one if len(left) == 1 else self._remove_many)(left)
            return not left

        await self._until_done(remove, "delete")

    async def _remove_one(self, batch: list[_Delete]) -> list[_Delete]:
        try:
            await self._api.rpc("files/delete_v2", {"path": batch[0].path}, write=True)
        except Missing:
            pass
        batch[0].end()
        return []

    async def _remove_many(self, batch: list[_Delete]) -> list[_Delete]:
        entries = [{"path": each.path} for each in batch]
        made = await self._api.rpc("files/delete_batch", {"entries": entries}, write=True)
        job, pause = made.get("async_job_id"), _CHECK
        while tags_of(made)[:1] != ["complete"]:
            if tags_of(made)[:1] == ["failed"]:
                raise union_error(tags_of(made), f"delete: {'/'.join(tags_of(made))}")
            await trio.sleep(pause)
            pause = min(2 * pause, _CHECK_CAP)
            route = "files/delete_batch/check"
            made = await self._api.rpc(route, {"async_job_id": job}, write=False)
        results = made.get("entries")
        if not isinstance(results, list) or len(results) != len(batch):
            raise Unavailable("delete: the answer does not fit what was asked", maybe_done=True)
        left = []
        for waiting, result in zip(batch, results, strict=True):
            tags = tags_of(result)
            if "too_many_write_operations" in tags:
                left.append(waiting)
            elif tags[:1] == ["success"] or "not_found" in tags:
                waiting.end()
            else:
                waiting.end(union_error(tags, f"delete {waiting.path}: {'/'.join(tags)}"))
        return left


def _check(made: Json, naming: Naming, digest: str) -> None:
    """See that Dropbox stored what was sent."""
    if made.get("content_hash") != digest:
        raise StoreError(f"store {naming.path}: Dropbox holds other bytes than were sent")


async def _pause(tries: int, wait: float | None) -> None:
    """Wait for the lock: as long as was asked for, and not all machines for the same time."""
    await trio.sleep(min(_WAIT, (wait or 0.0)) + clock.uniform(0, min(_WAIT, 0.1 * 2**tries)))


def _anew(error: StoreError) -> StoreError:
    """The same error for one more waiter: a raised one collects the tracebacks of all."""
    if isinstance(error, Unavailable):
        return Unavailable(
            str(error),
            retry_after=error.retry_after,
            maybe_done=error.maybe_done,
            busy=error.busy,
            unreached=error.unreached,
        )
    return type(error)(str(error))
