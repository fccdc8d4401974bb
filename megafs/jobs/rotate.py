"""A new master key for a volume: `megafs key rotate`.

    header   the next generation, for the next epoch: a new random master key, a slot for whoever
             rotates and one for a new recovery key, the earlier keys sealed under the new one
    commit   the first under the new key; whoever has only the old one cannot open it, and stops
    checkpoint  under the new key, so that new machines need nothing older

A commit of an earlier epoch is refused after one of a later epoch (journal/reader.py).  So from the
first new commit on, nobody can add to the journal with the old key, not even together with
the store.

The order is safe against a crash: with the header alone the volume works on this machine, which
remembers that it was rotating, and its next mount that writes makes the first commit of the epoch.
Other machines refuse a volume that has neither a commit nor a checkpoint of its newest epoch: the
journal may have been cut before the rotation and continued with the old key.

What was written before is sealed again by the job `reencrypt` (reencrypt.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable

from megafs.config import Settings
from megafs.jobs.committing import commit
from megafs.stores.base import ObjectStore
from megafs.tree.ops import MarkGarbage
from megafs.volume import header_store
from megafs.volume.header import Credential
from megafs.volume.header_store import Changed
from megafs.volume.open import open_volume
from megafs.volume.unlock import remember_keys, remember_rotation, unlock
from megafs.volume.upkeep import write_checkpoint


async def rotate(
    store: ObjectStore,
    url: str,
    credential: Credential,
    settings: Settings,
    new: Callable[[], Credential] | None = None,
    *,
    deliver: header_store.Deliver,
    profile: str = "default",
    on_new_keys: Callable[[Changed], None] = lambda changed: None,
) -> Changed:
    """Rotate the master key of the volume in *store*, which must not be mounted here.

    new: asks for what is to open the volume from now on, once the old credential was right.
    deliver: takes the new recovery key, before the new key header is in the store.
    on_new_keys: called as soon as the new key header is in the store and the old one gone, before
        anything else that can fail.
    Raises Busy if this machine has the volume open.
    """
    found = await unlock(store, url, credential, settings)
    lock = found.directory.lock()
    try:
        after = credential if new is None else new()
        if after.recovery is not None:
            after = Credential(passphrase=after.passphrase, keyfile=after.keyfile)
        found = await remember_rotation(found)
        changed = await header_store.rotate(store, found.unlocked, after, deliver, profile=profile)
        on_new_keys(changed)
        await remember_keys(found, changed.unlocked)
    finally:
        os.close(lock)
    # The volume is rotated from here on; what follows only shuts the door at once.
    async with open_volume(url, after, settings, store=store) as volume:
        await commit(volume, [MarkGarbage((), 0)])  # says nothing; its key is what counts
        await volume.drain()
        await write_checkpoint(volume)
    return changed
