"""From a store and a passphrase to a volume's keys, checked against what this machine knows."""

from __future__ import annotations

import logging
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from megafs.concurrency import offload
from megafs.config import Settings
from megafs.errors import Corrupt, NoStore, NotAVolume, Rollback, Unavailable
from megafs.journal import checkpoint, head
from megafs.journal.commit import genesis
from megafs.journal.reader import ask_for_commits, ask_for_standing
from megafs.private_files import read_private
from megafs.stores.base import ObjectStore
from megafs.stores.early_requests import EarlyRequests
from megafs.volume import header as headers
from megafs.volume import header_store, isolated_unlock
from megafs.volume.header import Credential, Header, Remembered, Unlocked
from megafs.volume.kdf_process import Derivation
from megafs.volume.state_directory import (
    HEADER,
    StateDirectory,
    directory_of,
    keep_durably,
    remembered_fsid,
)

log = logging.getLogger(__name__)


class UnlockedVolume(Struct, frozen=True):
    """A volume whose keys are known.

    directory: its state on this machine.  last_head: the head that this machine remembers, if any.
    offline: the store was away, and the copy of the header kept here was used.
    """

    unlocked: Unlocked
    directory: StateDirectory
    last_head: head.RememberedHead | None
    offline: bool


async def unlock(
    store: ObjectStore,
    url: str,
    credential: Credential,
    settings: Settings,
    early: Derivation | None = None,
) -> UnlockedVolume:
    """Open the key header, with what this machine remembers of the volume.

    early: as `kdf_process.begin` returned it.
    Raises Rollback if the URL holds another volume than it did, or an older header.
    """
    known = remembered_fsid(settings.state_dir, url)
    offline = False
    try:
        header = await load_header(store, url, settings)
    except Unavailable as exc:
        if known is None:
            raise
        path = directory_of(settings.state_dir, known) / HEADER
        try:
            header = headers.parse_copy(read_private(path), str(path))
        except OSError:
            raise exc from None
        log.warning("the store is away (%s): going on with what this machine has", exc)
        offline = True
    if known is not None and known != header.fsid:
        changed = (
            f"{url} held volume {known.hex()} when it was last opened here and now holds"
            f" {header.fsid.hex()}: another volume was put in its place"
        )
        if not settings.accept_state:
            raise Rollback(f"{changed}. Mount with -o accept_state if that was you")
        log.warning("another volume is accepted, as asked: %s", changed)
    directory = StateDirectory.of(settings.state_dir, settings.cache_dir, header.fsid)
    last_head = head.read(directory.volume)
    remembered: Remembered | None = None
    if last_head is not None and not settings.accept_state:
        remembered = Remembered(
            header.fsid,
            last_head.generation,
            bytes.fromhex(last_head.slot) if last_head.slot else None,
            bytes.fromhex(last_head.header) if last_head.header else None,
            last_head.epoch or 0,
        )
    unlocked = await isolated_unlock.unlock(header, credential, remembered, early)
    return UnlockedVolume(unlocked, directory, last_head, offline)


async def load_header(store: ObjectStore, url: str, settings: Settings) -> Header:
    """Return the newest key header in *store*, as `header_store.load`.

    Raises Rollback if nothing is where this machine has seen a volume: nobody is to make a new one
    in its place because of a wrong bucket, or of objects that an administrator can bring back.
    """
    known = remembered_fsid(settings.state_dir, url)
    try:
        return await header_store.load(store)
    except NotAVolume as exc:
        if known is None or settings.accept_state:
            raise
        raise Rollback(
            f"{url} held volume {known.hex()} when it was last opened here, and its objects are"
            " gone. Is it the right bucket, prefix and endpoint? Make no new volume there: ask the"
            " store's operator for the objects (versions, backups) first. What this machine still"
            f" has of them is in {settings.state_dir} and {settings.cache_dir}"
        ) from exc
    except NoStore as exc:
        said = str(exc) if str(exc).endswith("?") else f"{exc}."
        if known is None:
            raise NoStore(f"{said} megafs format makes a new volume") from exc
        raise NoStore(
            f"{said} It held volume {known.hex()} when it was last opened here. Make no new volume"
            " there: bring it back"
        ) from exc


async def remember_keys(found: UnlockedVolume, now: Unlocked) -> None:
    """Keep the new generation and slot on this machine, if it knows the volume."""
    if found.last_head is None:
        return
    newer = replace(
        found.last_head,
        generation=now.header.generation,
        slot=now.slot_id.hex(),
        epoch=now.header.epoch,
        header=now.digest.hex(),
    )
    await offload(_write_keys, found.directory.volume, now.header, newer, kind="disk")


def _write_keys(directory: Path, header: Header, newer: head.RememberedHead) -> None:
    # The copy first: a mount without the store must not find one that is older than remembered.
    keep_durably(directory / HEADER, header.encode())
    head.write(directory, newer)


async def remember_rotation(found: UnlockedVolume) -> UnlockedVolume:
    """Keep on this machine that it begins the next epoch; return what it remembers now.

    Should the rotation end after the new key header, this machine alone may open the volume without
    a commit of that epoch.
    """
    unlocked = found.unlocked
    last = found.last_head or head.RememberedHead(
        unlocked.header.fsid.hex(),
        0,
        genesis(unlocked.header.fsid).hex(),
        unlocked.header.generation,
        unlocked.slot_id.hex(),
        unlocked.header.epoch,
        unlocked.digest.hex(),
    )
    last = replace(last, rotating=unlocked.header.epoch + 1)
    await offload(head.write, found.directory.volume, last, kind="disk")
    return replace(found, last_head=last)


def ask_early(early: EarlyRequests, url: str, settings: Settings) -> None:
    """Start the requests that opening will make, before any key is known.

    Nothing is decided here: every check is made later, in its order, on these answers.
    """
    early.ask_list(header_store.PREFIX)
    last_head: head.RememberedHead | None = None
    fsid = remembered_fsid(settings.state_dir, url)
    if fsid is not None:
        try:
            last_head = head.read(directory_of(settings.state_dir, fsid))
        except Corrupt:
            return  # opening says so
    if last_head is None or not last_head.sequence:

        async def explore() -> None:
            await ask_for_commits(early, await checkpoint.ask_for_newest(early))()

        early.spawn(explore)
        return
    early.ask(headers.name_of(last_head.generation), headers.SIZE_LIMIT + 1)
    ask_for_standing(early, last_head.sequence)
    early.spawn(ask_for_commits(early, last_head.sequence))
