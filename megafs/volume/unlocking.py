"""Open a key header in a process of its own.

Argon2id fills 256 MiB by default.  Done in the mount's process, that would be its peak for good,
and the allocator may never give all of it back; a child takes it along when it ends.  The child
gets the header and the credential on its standard input and answers on its standard output; both
are pipes that nobody else holds, and nothing secret is on its command line or in its environment.

    request    MessagePack: header bytes, passphrase, key file, recovery key, remembered
    answer     MessagePack: slot id, master keys, digest of the header; or an error's class and text
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from typing import Any

import msgspec
import trio

from megafs import errors
from megafs.concurrency import offload
from megafs.crypto.keys import Keyring
from megafs.errors import Fault, MegafsError
from megafs.volume import header as headers
from megafs.volume.header import Credential, Header, Remembered, Unlocked

#: Below this much memory (KiB) in all slots that may be tried, the work is done in place.
_IN_PLACE = 96 << 10


async def unlock(
    header: Header, credential: Credential, remembered: Remembered | None = None
) -> Unlocked:
    """As `header.unlock`, without the memory that it takes staying in this process."""
    needs = max(
        (slot.cost.memory for slot in header.slots if slot.cost and credential.fits(slot.kind)),
        default=0,
    )
    if needs <= _IN_PLACE:
        return await offload(headers.unlock, header, credential, remembered, abandon=True)
    request = msgspec.msgpack.encode(
        (
            header.encode(),
            credential.passphrase,
            credential.keyfile,
            credential.recovery,
            None
            if remembered is None
            else (remembered.fsid, remembered.generation, remembered.slot_id, remembered.digest),
        )
    )
    # The same code as ours, wherever we came from: the mount has left the directory that it was
    # started in, and a directory that happens to be the current one must not bring its own.
    ours = [entry for entry in sys.path if os.path.isabs(entry)]
    code = f"import sys; sys.path[:] = {ours!r}; from {__name__} import main; main()"
    done = await trio.run_process(
        [sys.executable, "-P", "-c", code],
        stdin=request,
        capture_stdout=True,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    try:
        answer = msgspec.msgpack.decode(done.stdout)
    except msgspec.MsgspecError:
        raise Fault(
            f"the process that opens the key header ended with {done.returncode}: is there enough"
            f" memory ({needs >> 10} MiB)?"
        ) from None
    if answer[0] != "ok":
        kind = getattr(errors, answer[0], Fault)
        raise kind(answer[1])
    _, slot_id, epoch, masters, digest = answer
    return Unlocked(header, Keyring(header.fsid, dict(masters), epoch), slot_id, digest)


def _serve(request: bytes) -> Any:
    """The child's work: the answer to *request*."""
    encoded, passphrase, keyfile, recovery, remembered = msgspec.msgpack.decode(request)
    try:
        unlocked = headers.unlock(
            headers.parse_copy(encoded, "the key header"),
            Credential(passphrase, keyfile, recovery),
            None if remembered is None else Remembered(*remembered),
        )
    except MegafsError as exc:
        return type(exc).__name__, str(exc)
    ring = unlocked.keyring
    masters = [(epoch, ring.master(epoch)) for epoch in ring.epochs]
    return "ok", unlocked.slot_id, ring.epoch, masters, unlocked.digest


def main() -> None:
    """The child: a request on standard input, its answer on standard output."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.stdout.buffer.write(msgspec.msgpack.encode(_serve(sys.stdin.buffer.read())))
