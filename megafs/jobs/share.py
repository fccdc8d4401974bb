"""Links: give a file or folder to somebody who has neither the volume nor megafs.

    record    what the link is, in the tree (tree/link_records.py): commits first, so that gc leaves
              its packs alone from then on
    manifest  share/<id>/manifest in the store: which chunks, where, with which keys
    text      what is given to people: it alone opens the manifest

A file is shared as it is at that moment.  Where the store signs requests ahead (S3), the manifest
holds URLs that end within seven days; a mount signs them anew before (`keep_links`).
docs/sharing.md.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Final

import trio
from msgspec.structs import replace

from megafs import clock
from megafs.chunks.codec import pack_name
from megafs.concurrency import offload
from megafs.errors import BadUsage, Denied, Fault, Missing, Refused, StoreError
from megafs.jobs import shared_content
from megafs.jobs.committing import catch_up, check_writable, commit_all, commit_written
from megafs.jobs.link_messages import (
    LinkArgs,
    LinkList,
    RenewArgs,
    Revoked,
    ShareArgs,
    SharedLink,
)
from megafs.jobs.messages import Nothing
from megafs.jobs.shared_content import SharedContent, SharedPack, manifest_name
from megafs.links import link_text, manifest
from megafs.links.fetch import Fetcher
from megafs.links.manifest import LinkManifest, SharedObject
from megafs.printable import printable
from megafs.progress import OnProgress, Progress, ignore
from megafs.stores.abilities import PlainUrls, Presign
from megafs.stores.base import list_all
from megafs.tree import link_records, ops, paths
from megafs.tree.inode import Inode
from megafs.tree.link_records import LinkRecord
from megafs.volume.volume import Volume

log = logging.getLogger(__name__)

DAY: Final = 86400.0
#: The longest that a store signs ahead.
LONGEST: Final = 7 * DAY
#: A mount renews signatures that end within so many seconds.
RENEW_BEFORE: Final = 3 * DAY
#: Seconds between two looks of a mount at the links of its volume.
INTERVAL: Final = 600.0
#: Seconds that undoing half a link may take; gc removes what is left then.
_UNDO_WITHIN: Final = 30.0
#: The longest end that may be asked for.
_FARTHEST: Final = 100 * 366 * DAY

PRESIGNED, PUBLIC, FOLDER = "presigned", "public", "folder"

#: Gives an object of the store, by name, the URL that the manifest says.
Address = Callable[[SharedPack], Awaitable[str]]


async def share(volume: Volume, args: ShareArgs, on_progress: OnProgress) -> SharedLink:
    """Make a link to a path."""
    check_writable(volume, "sharing")
    if args.expires is not None and not 0 < args.expires <= _FARTHEST:
        raise BadUsage("a link ends after more than 0 seconds, and at most 100 years")
    path = paths.parse(args.path)
    on_progress(Progress(0, 0, "bringing everything to the store"))
    await commit_written(volume)
    inode = _at(volume, path)
    reach = await _choose_reach(volume, args, inode)
    made = _new_record(volume, args, path, inode, reach)
    if args.password:
        salt = clock.random_bytes(manifest.SALT_SIZE)
        key = await offload(lambda: manifest.password_key(args.password, salt))
        made = replace(made, password_key=key, salt=salt)
    done = False
    try:
        content = await shared_content.gather(
            volume,
            inode,
            made.id,
            copy=args.copy or reach == FOLDER,
            put=_putter(volume, made),
            on_progress=on_progress,
        )
        made = replace(
            made,
            packs=tuple(content.packs),
            copies=content.copies,
            size=content.size,
            files=content.file_count,
            state=await shared_content.state_of(volume.replica.tree, inode) if args.follow else b"",
        )
        await _record(volume, made, new=True)
        made = await _publish(volume, made, content, on_progress)
        done = True
    finally:
        if not done:  # an error, or Ctrl-C: half a link is none
            with trio.move_on_after(_UNDO_WITHIN, shield=True):
                await _remove_objects(volume, made)
                await _drop(volume, [made])
    return _shown(made, content.left_out)


async def list_links(volume: Volume, args: Nothing, on_progress: OnProgress) -> LinkList:
    """Every link of the volume, those of other machines as well."""
    await trio.lowlevel.checkpoint()
    return LinkList([_shown(record) for record in _records(volume)])


async def show(volume: Volume, args: LinkArgs, on_progress: OnProgress) -> LinkList:
    """Those that *which* means."""
    await trio.lowlevel.checkpoint()
    return LinkList([_shown(record) for record in _meant(volume, args.which)])


async def renew(volume: Volume, args: RenewArgs, on_progress: OnProgress) -> LinkList:
    """Sign the URLs of links anew, and perhaps let them end at another time."""
    check_writable(volume, "renewing a link")
    await catch_up(volume)
    found = []
    for record in _meant(volume, args.which):
        if args.expires is not None:
            if not 0 < args.expires <= _FARTHEST:
                raise BadUsage("a link ends after more than 0 seconds, and at most 100 years")
            end = clock.now_ns() + int(args.expires * 1e9)
            record = replace(record, expires_ns=end)
        elif record.is_expired(clock.now_ns()):
            raise BadUsage(f"the link {record.id} has ended: say --expires, or make a new one")
        found.append(_shown(await _renewed(volume, record)))
    return LinkList(found)


async def revoke(volume: Volume, args: LinkArgs, on_progress: OnProgress) -> Revoked:
    """Let links lead nowhere; what was copied for them goes, too."""
    check_writable(volume, "revoking a link")
    await catch_up(volume)
    records = _meant(volume, args.which)
    await _revoke(volume, records)
    elsewhere = [record for record in records if record.directory and record.host != _host(volume)]
    text = f"{len(records)} link{'s' if len(records) > 1 else ''} revoked"
    for record in elsewhere:
        text += f"; its files are still in {record.directory} on {record.host}: remove them there"
    return Revoked([record.id for record in records], text)


async def keep_links(volume: Volume) -> None:
    """Renew the signatures of links, refresh folders, and remove what has ended; for ever."""
    while True:
        await trio.sleep(clock.uniform(0.5, 1.5) * INTERVAL)
        if volume.settings.read_only or volume.writer.frozen is not None:
            continue
        try:
            await look_after_links(volume)
        except Fault as exc:
            log.info("the links of the volume could not be looked after: %s", exc)


async def look_after_links(volume: Volume) -> None:
    """One look at every link."""
    now = clock.now_ns()
    for record in _records(volume):
        try:
            if record.is_expired(now):
                await _revoke(volume, [record])
            elif record.follow:
                await _refreshed(volume, record)
            elif _is_due(record, now):
                await _renewed(volume, record)
        except (Fault, Refused, BadUsage) as exc:
            log.warning("the link %s to %s: %s", record.id, paths.show(record.path), exc)


def _is_due(record: LinkRecord, now_ns: int) -> bool:
    """Whether the signatures end soon, and earlier than the link itself."""
    until = record.reachable_until_ns
    if not until or until - now_ns > RENEW_BEFORE * 1e9 or not _is_renewable(record):
        return False
    return not record.expires_ns or record.expires_ns > until


def _is_renewable(record: LinkRecord) -> bool:
    """Whether new signatures reach who has the link: not if it holds a signature itself."""
    return record.reach == PRESIGNED and "X-Amz-Signature=" not in record.address


# ---- records -----------------------------------------------------------------------------------


def _records(volume: Volume) -> list[LinkRecord]:
    return link_records.records(volume.replica.db)


def _meant(volume: Volume, which: str) -> list[LinkRecord]:
    """The links that a user names, by id or its beginning, or by a path; BadUsage if none."""
    records = _records(volume)
    if which.startswith("/"):
        path = paths.parse(which)
        try:
            ino = volume.replica.tree.walk(path)
        except Refused:
            ino = 0
        found = [record for record in records if record.path == path or record.ino == ino]
    else:
        found = [record for record in records if len(which) >= 4 and record.id.startswith(which)]
        if len(found) > 1:
            raise BadUsage(f"{len(found)} links begin with {which}: give more of the id")
    if not found:
        raise BadUsage(f"there is no link {which!r}: megafs share list shows what there is")
    return found


def _new_record(
    volume: Volume, args: ShareArgs, path: bytes, inode: Inode, reach: str
) -> LinkRecord:
    now = clock.now_ns()
    name = args.name or paths.show(path.rpartition(b"/")[2]) or "volume"
    if "/" in name or name in (".", "..") or len(name.encode("utf-8", "replace")) > 255:
        raise BadUsage(
            "--name is what the recipient's file is called: without a /, at most 255 bytes"
        )
    if not name.isprintable():
        name = printable(name)
    return LinkRecord(
        id=link_text.new_id(),
        secret=clock.random_bytes(link_text.SECRET_SIZE),
        password_key=b"",
        name=name,
        path=path,
        ino=inode.ino,
        folder=inode.is_dir,
        size=inode.size,
        files=1,
        created_ns=now,
        expires_ns=0 if args.expires is None else now + int(args.expires * 1e9),
        packs=(),
        reach=reach,
        address="",
        page=args.page or volume.settings.page or link_text.NO_PAGE,
        reachable_until_ns=0,
        host=_host(volume),
        follow=args.follow,
        directory=os.path.abspath(args.out) if args.out else "",
    )


async def _record(volume: Volume, record: LinkRecord, *, new: bool) -> None:
    """Bring the record into the journal; Missing if it was revoked, or its packs removed."""
    value = link_records.encode(record)
    gone = Missing("the link was revoked, or its contents were removed, meanwhile")
    try:
        volume.replica.record(ops.KeepLink(record.id, value, record.packs, new))
    except Refused:
        raise gone from None
    await commit_all(volume)
    if all(other.id != record.id for other in _records(volume)):
        raise gone


async def _drop(volume: Volume, records: Iterable[LinkRecord]) -> None:
    for record in records:
        try:
            volume.replica.record(ops.DropLink(record.id))
        except Refused:
            pass  # another machine has revoked it
    await commit_all(volume)


async def _revoke(volume: Volume, records: list[LinkRecord]) -> None:
    """Remove the objects, then the record: if the store is away, the link is still listed."""
    for record in records:
        await _remove_objects(volume, record, strict=True)
    await _drop(volume, records)


async def _remove_objects(volume: Volume, record: LinkRecord, *, strict: bool = False) -> None:
    """Remove the manifest, and whatever was sealed for this link alone."""
    try:
        if record.directory:
            if record.host == _host(volume):
                await offload(_remove_folder, Path(record.directory) / "share" / record.id)
            return
        names = [manifest_name(record.id)]
        async for page in list_all(volume.store, f"share/{record.id}/"):
            names += [entry.name for entry in page.entries if entry.name != names[0]]
        for name in names:
            await volume.store.delete(name)
    except (StoreError, OSError) as exc:
        if strict:
            raise
        log.warning("objects of the link %s were left behind: %s", record.id, exc)


def _remove_folder(folder: Path) -> None:
    """Remove what `_putter` has written; nothing else is ever in there."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return
    for name in names:
        (folder / name).unlink(missing_ok=True)
    folder.rmdir()


# ---- reaching the bytes ------------------------------------------------------------------------


async def _choose_reach(volume: Volume, args: ShareArgs, inode: Inode) -> str:
    """How the recipient will get at the bytes; BadUsage where this store has no way."""
    if args.follow and not inode.is_dir:
        raise BadUsage("--follow is for folders: a link to a file gives it out as it is now")
    if args.out:
        if args.follow or args.copy or args.public:
            raise BadUsage("--out makes a copy: it goes with neither --follow, --copy nor --public")
        return FOLDER
    if PlainUrls.of(volume.store) is None and Presign.of(volume.store) is None:
        raise BadUsage(
            f"{volume.url.partition(':')[0]} stores give nothing to people without an account:"
            " --out DIR makes a folder that any web server can serve"
        )
    if args.public:
        return PUBLIC
    if Presign.of(volume.store) is None:
        raise BadUsage("this store cannot sign requests ahead: --public if anybody may read it")
    if args.expires is not None and args.expires > LONGEST and not await _reads_manifests(volume):
        raise BadUsage(
            "a link ends after 7 days at most where the store lets nobody read without a signature:"
            " --expires 7d, or let anybody read share/ (megafs share setup) and the mount renews"
            " the rest"
        )
    return PRESIGNED


async def _publish(
    volume: Volume, record: LinkRecord, content: SharedContent, on_progress: OnProgress
) -> LinkRecord:
    """Put the manifest where the link leads; return the record as it is then."""
    if record.reach == FOLDER:
        return await _publish_folder(volume, record, content)
    now = clock.now_ns()
    seconds = int(LONGEST)
    if record.expires_ns:
        seconds = max(1, min(seconds, -(-(record.expires_ns - now) // 10**9)))
    until = 0 if record.reach == PUBLIC else now + seconds * 10**9
    sealed = await _sealed(volume, record, content, _address(volume, record, seconds))
    await volume.store.put(manifest_name(record.id), sealed)
    if not record.address:
        record = await _addressed(volume, record, seconds, content)
    if not _is_renewable(record) and record.reach == PRESIGNED and not record.expires_ns:
        record = replace(record, expires_ns=until)
    record = replace(record, reachable_until_ns=until)
    on_progress(Progress(1, 1, "the link is in the store"))
    await _record(volume, record, new=False)
    return record


def _address(volume: Volume, record: LinkRecord, seconds: int) -> Address:
    """Where each object is had, for whoever reads the manifest."""
    plain, signer = PlainUrls.of(volume.store), Presign.of(volume.store)

    async def address(pack: SharedPack) -> str:
        if record.reach == PUBLIC and plain is not None:
            return plain.plain_url(pack.name)
        assert signer is not None  # `_choose_reach` has asked
        return await signer.presign_get(pack.name, seconds)

    return address


async def _addressed(
    volume: Volume, record: LinkRecord, seconds: int, content: SharedContent
) -> LinkRecord:
    """The record with the manifest's address: unsigned, if the store serves it to anybody."""
    plain, signer = PlainUrls.of(volume.store), Presign.of(volume.store)
    name = manifest_name(record.id)
    if plain is not None and await _is_public(plain.plain_url(name)):
        if record.reach == PUBLIC:
            for pack in content.objects[:1]:
                if not await _is_public(plain.plain_url(pack.name)):
                    raise Denied(_NOT_PUBLIC)
        return replace(record, address=plain.plain_url(name))
    if record.reach == PUBLIC:
        raise Denied(_NOT_PUBLIC)
    assert signer is not None
    return replace(record, address=await signer.presign_get(name, seconds))


_NOT_PUBLIC: Final = (
    "--public: the store does not give its objects to people without credentials: its policy has to"
    " allow s3:GetObject to everybody, or leave --public out"
)


async def _is_public(url: str) -> bool:
    """Whether a recipient, who has no credentials, is given an object."""
    async with Fetcher() as fetcher:
        try:
            await fetcher.get(url, 0, 1)
        except (Denied, Missing):
            return False
    return True


async def _reads_manifests(volume: Volume) -> bool:
    """Whether anybody may read what lies below share/: tried with an object of no content."""
    plain = PlainUrls.of(volume.store)
    if plain is None:
        return False
    name = f"share/{link_text.new_id()}/probe"
    await volume.store.put_new(name, b"megafs: can this be read without credentials?\n")
    try:
        return await _is_public(plain.plain_url(name))
    finally:
        with trio.move_on_after(30, shield=True):
            await volume.store.delete(name)


def _putter(volume: Volume, record: LinkRecord) -> shared_content.Put:
    if not record.directory:
        return volume.store.put_new

    async def put(name: str, data: bytes) -> None:
        await offload(_write_file, Path(record.directory) / name, data, kind="disk")

    return put


def _write_file(path: Path, data: bytes) -> None:
    """Write what a web server shall serve: readable by it, and never seen half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.new")
    with half.open("wb") as file:
        file.write(data)
    half.chmod(0o644)
    half.replace(path)


async def _publish_folder(volume: Volume, record: LinkRecord, content: SharedContent) -> LinkRecord:
    async def address(pack: SharedPack) -> str:
        await trio.lowlevel.checkpoint()
        return pack.id.hex()  # beside the manifest

    sealed = await _sealed(volume, record, content, address)
    file = Path(record.directory) / manifest_name(record.id)
    await offload(_write_file, file, sealed, kind="disk")
    if record.page == link_text.NO_PAGE:
        record = replace(record, address=file.as_uri())
    await _record(volume, record, new=False)
    return record


async def _sealed(
    volume: Volume, record: LinkRecord, content: SharedContent, address: Address
) -> bytes:
    objects = [
        SharedObject(await address(pack), pack.id.hex(), pack.epoch) for pack in content.objects
    ]
    made = LinkManifest(
        version=manifest.FORMAT,
        name=record.name,
        folder=record.folder,
        volume=volume.fsid.hex(),
        created=record.created_ns // 10**9,
        expires=-(-record.expires_ns // 10**9),
        objects=tuple(objects),
        files=tuple(content.files),
        left_out=content.left_out,
    )
    salt = record.salt or bytes(manifest.SALT_SIZE)
    return await offload(
        lambda: manifest.seal(made, record.id, record.secret, record.password_key, salt)
    )


# ---- renewing ----------------------------------------------------------------------------------


async def _renewed(volume: Volume, record: LinkRecord) -> LinkRecord:
    """Sign the URLs in the manifest anew; its files stay what they are."""
    now = await _manifest_of(volume, record)
    content = SharedContent(list(now.files), [], list(record.packs), record.copies, now.left_out)
    names = {row.name: row for row in map(volume.replica.tree.pack, record.packs)}
    for item in now.objects:
        pack = bytes.fromhex(item.id)
        name = pack_name(pack) if pack in names else shared_content.own_name(record.id, pack)
        content.objects.append(SharedPack(name, pack, item.epoch))
    if not _is_renewable(record):
        record = replace(record, address="")  # the link itself changes, too
    return await _publish(volume, record, content, ignore)


async def _refreshed(volume: Volume, record: LinkRecord) -> None:
    """Bring the listing of a followed folder up to date, if it is not."""
    inode = volume.replica.tree.find(record.ino)
    if inode is None or not inode.is_dir or inode.nlink == 0:
        raise BadUsage("its folder was removed: the link gives out what was there last")
    await commit_written(volume)
    state = await shared_content.state_of(volume.replica.tree, inode)
    if state == record.state:
        if _is_due(record, clock.now_ns()):
            await _renewed(volume, record)
        return
    content = await shared_content.gather(
        volume, inode, record.id, copy=False, put=_putter(volume, record), on_progress=ignore
    )
    record = replace(
        record,
        packs=tuple(content.packs),
        copies=content.copies,
        size=content.size,
        files=content.file_count,
        state=state,
    )
    await _record(volume, record, new=False)
    await _publish(volume, record, content, ignore)
    await _remove_earlier(volume, record, content)


async def _remove_earlier(volume: Volume, record: LinkRecord, content: SharedContent) -> None:
    """Remove what was sealed for an earlier listing of a followed folder."""
    needed = {pack.name for pack in content.objects} | {manifest_name(record.id)}
    async for page in list_all(volume.store, f"share/{record.id}/"):
        for entry in page.entries:
            if entry.name not in needed:
                await volume.store.delete(entry.name)


async def _manifest_of(volume: Volume, record: LinkRecord) -> LinkManifest:
    name = manifest_name(record.id)
    data = await volume.store.get(name, 0, manifest.LARGEST)
    return await offload(
        lambda: manifest.open_manifest(data, record.id, record.secret, record.password_key)
    )


# ---- showing -----------------------------------------------------------------------------------


def _shown(record: LinkRecord, left_out: int = 0) -> SharedLink:
    ended = record.is_expired(clock.now_ns())
    return SharedLink(
        id=record.id,
        link=link_text.of_record(record).text,
        path=paths.show(record.path),
        name=record.name,
        folder=record.folder,
        files=record.files,
        size=record.size,
        created=record.created_ns / 1e9,
        expires=record.expires_ns / 1e9,
        reachable_until=record.reachable_until_ns / 1e9,
        renewable=_is_renewable(record),
        password=bool(record.password_key),
        copy=bool(record.copies),
        follow=record.follow,
        how=record.reach,
        host=record.host,
        state="expired" if ended else "live",
        left_out=left_out,
        path_b64=paths.exact(record.path),
    )


def _at(volume: Volume, path: bytes) -> Inode:
    tree = volume.replica.tree
    try:
        inode = tree.inode(tree.walk(path))
    except Refused:
        raise BadUsage(f"{paths.show(path)}: there is no such file in the volume") from None
    if not inode.is_file and not inode.is_dir:
        raise BadUsage(
            f"{paths.show(path)} is neither a file nor a folder: share what it stands for"
        )
    return inode


def _host(volume: Volume) -> str:
    return volume.replica.host
