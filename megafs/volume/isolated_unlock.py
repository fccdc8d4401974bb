"""Open a key header; Argon2id and its 256 MiB run in processes that end with it."""

from __future__ import annotations

from megafs.concurrency import offload
from megafs.volume import header as headers
from megafs.volume.header import Credential, Header, Remembered, Unlocked
from megafs.volume.kdf_process import Derivation, Deriver


async def unlock(
    header: Header,
    credential: Credential,
    remembered: Remembered | None = None,
    early: Derivation | None = None,
) -> Unlocked:
    """As `header.unlock`; its Argon2id is done by processes of their own (volume/kdf_process.py).

    early: what was begun before the header was here.
    """
    derive = Deriver(early)
    try:
        # abandon: whoever presses Ctrl-C need not wait for Argon2id, which leaves nothing behind.
        return await offload(headers.unlock, header, credential, remembered, derive, abandon=True)
    finally:
        derive.end()
