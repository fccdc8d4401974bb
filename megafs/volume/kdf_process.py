"""Argon2id in a process of its own, begun as early as its task is known.

It fills 256 MiB by default.  Done in the mount's process, that would be its peak for good, and the
allocator may never give all of it back; a child takes it along when it ends.  The child gets its
task (what to derive from) on its standard input and answers with the key on its standard output;
both are pipes that nobody else holds, and nothing secret is on its command line or in its
environment.  It sees no key header and decides nothing: `header.unlock` does, here, with the keys
that children derive in the place of `kdf.from_passphrase`.

The task hangs on the slot's salt and cost alone, and this machine remembers the slot that opened a
volume last time and keeps a copy of the header.  So `begin` starts before the store is even asked,
and before most of megafs is imported: it must not import trio.  The result is taken only if the
header that the store then shows asks for exactly that; else it is a second of work for nothing.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

from megafs.crypto import kdf
from megafs.errors import Fault, MegafsError, Stopped
from megafs.journal import head
from megafs.private_files import read_private
from megafs.volume import header as headers
from megafs.volume import kdf_child, state_directory
from megafs.volume.header import Credential

log = logging.getLogger(__name__)

#: Up to this much memory (KiB) the work is done in place.
IN_PLACE = 96 << 10


class Derivation:
    """One key being derived by a child process; from any thread."""

    def __init__(self, task: kdf.Task) -> None:
        self.task = task
        # The same code as ours, wherever we came from: the mount has left the directory that it was
        # started in, and a directory that happens to be the current one must not bring its own.
        ours = [entry for entry in sys.path if os.path.isabs(entry)]
        code = f"import sys; sys.path[:] = {ours!r}; from {kdf_child.__name__} import main; main()"
        cost = task.cost
        self._child = subprocess.Popen(
            # -I: nothing from the environment; -S: no site, whose .pth files take their time.
            [sys.executable, "-I", "-S", "-c", code],
            # 256 MiB in huge pages: 65,536 page faults fewer, which were a fifth of the time.
            env={**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
        )
        assert self._child.stdin is not None
        request = kdf_child.pack(
            task.data, task.salt, cost.time, cost.memory, cost.lanes, kdf.KEY_SIZE, task.secret
        )
        try:
            self._child.stdin.write(request)  # less than a pipe holds
            self._child.stdin.close()
        except BrokenPipeError:
            pass  # `result` says why it ended

    def fileno(self) -> int:
        """The pipe that the answer comes through: what a fork that goes on with it must keep."""
        assert self._child.stdout is not None
        return self._child.stdout.fileno()

    def result(self) -> bytes:
        """Wait for the key.  Raises Stopped if the memory could not be had, Fault otherwise."""
        assert self._child.stdout is not None
        with self._child.stdout as pipe:
            key = pipe.read()
        code = self._child.wait()
        if len(key) == kdf.KEY_SIZE:
            return key
        if code == kdf_child.NO_MEMORY:
            raise Stopped(kdf.no_memory(self.task.cost))
        raise Fault(
            f"the process that derives the key ended with {code}: is there enough memory"
            f" ({self.task.cost.memory >> 10} MiB)?"
        )

    def end(self) -> None:
        """Nobody wants the key any more; who waits in `result`, in another thread, gets Fault.

        After a fork it ends by itself: it is not our child.
        """
        self._child.kill()

    def discard(self) -> None:
        """As `end`, when nobody waits in `result`: leave no zombie and no open pipe."""
        self._child.kill()
        with self._child:  # its end closes the pipe and waits
            pass


class Deriver:
    """Stands in for `kdf.from_passphrase`: the larger tasks are done by children.

    early: one that was begun before; taken if it is just what is asked for.
    """

    def __init__(self, early: Derivation | None = None) -> None:
        self._early = early
        self._now: Derivation | None = None
        self._ended = False

    def __call__(
        self, passphrase: str, salt: bytes, cost: kdf.Cost, keyfile: bytes | None = None
    ) -> bytes:
        task = kdf.task(passphrase, salt, cost, keyfile)
        early, self._early = self._early, None
        if early is not None:
            if early.task == task:
                try:
                    self._now = early
                    return early.result()
                except MegafsError as exc:
                    log.debug("the key begun early did not come, once more: %s", exc)
                finally:
                    self._now = None
            else:
                early.discard()
        if cost.memory <= IN_PLACE:
            return kdf.derive(task)
        if self._ended:
            raise Stopped("given up")
        self._now = Derivation(task)
        try:
            return self._now.result()
        finally:
            self._now = None

    def end(self) -> None:
        """Stop the work, since nobody waits for it any more; called from another thread."""
        self._ended = True
        if self._now is not None:
            self._now.end()
        early, self._early = self._early, None
        if early is not None:
            early.discard()


def begin(url: str, credential: Credential, state_dir: Path) -> Derivation | None:
    """Start what opening the volume at *url* will most likely need, or None if that is not known.

    Whatever is not as it should be here is for the opening itself to find out and to say.
    """
    if credential.passphrase is None:
        return None
    try:
        fsid = state_directory.remembered_fsid(state_dir, url)
        if fsid is None:
            return None
        kept = state_directory.directory_of(state_dir, fsid)
        seen = head.read(kept)
        if seen is None or not seen.slot:
            return None
        path = kept / state_directory.HEADER
        header = headers.parse_copy(read_private(path), str(path))
        slot = header.slot(bytes.fromhex(seen.slot))
        if slot.cost is None or not credential.fits(slot.kind) or slot.cost.memory <= IN_PLACE:
            return None
        keyfile = credential.keyfile if slot.kind == headers.PASSPHRASE_AND_KEYFILE else None
        return Derivation(kdf.task(credential.passphrase, slot.salt, slot.cost, keyfile))
    except (MegafsError, OSError, ValueError) as exc:
        log.debug("nothing is derived early: %s", exc)
        return None
