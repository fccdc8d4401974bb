"""Links: made, read without the volume, kept by gc, revoked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from megafs.crypto import aead
from megafs.errors import BadPassphrase, BadUsage, Corrupt, Missing
from megafs.jobs import gc, registry, share
from megafs.jobs.link_messages import ShareArgs
from megafs.jobs.messages import GcArgs
from megafs.jobs.shared_content import SharedPack, gather
from megafs.links import link_text
from megafs.links.fetch import Fetcher
from megafs.links.manifest import SharedFile
from megafs.links.reader import SharedFiles, open_link
from megafs.progress import ignore
from megafs.stores.base import Buffer
from megafs.tree.link_records import LinkRecord
from megafs.volume.volume import Volume
from tests.fs.opened import ROOT, new_store_here, opened, put_file


async def job(volume: Volume, name: str, /, **args: Any) -> dict[str, Any]:
    return await registry.run(volume, name, args, ignore)


async def read(shared: SharedFiles, file: SharedFile, start: int = 0) -> bytes:
    out = bytearray(file.size)

    async def sink(at: int, data: Buffer) -> None:
        out[at : at + len(data)] = data

    await shared.copy(file, sink, start)
    return bytes(out)


async def opened_link(text: str, password: str | None = None) -> SharedFiles:
    async with Fetcher() as fetcher:
        return await open_link(link_text.parse(text), fetcher, password)


async def test_a_file_is_read_without_the_volume(tmp_path: Path) -> None:
    data = os.urandom(300_000) + bytes(100_000) + b"end"
    async with opened(tmp_path / "m") as volume:
        await put_file(volume.fs, 1, "Grüße.txt".encode(), data)
        made = await job(volume, "share", path="/Grüße.txt", out=str(tmp_path / "www"))
    shared = await opened_link(made["link"])
    assert (shared.manifest.name, shared.manifest.folder) == ("Grüße.txt", False)
    (file,) = shared.manifest.files
    assert await read(shared, file) == data
    # From the middle on, as a download that was cut short goes on.
    assert (await read(shared, file, 250_000))[250_000:] == data[250_000:]


async def test_nothing_of_the_secret_lies_in_the_folder(tmp_path: Path) -> None:
    async with opened(tmp_path / "m") as volume:
        await put_file(volume.fs, 1, b"plain-name", b"plain content" * 1000)
        made = await job(volume, "share", path="/plain-name", out=str(tmp_path / "www"))
    secret = link_text.parse(made["link"]).secret
    for path in (tmp_path / "www").rglob("*"):
        if path.is_file():
            lying = path.read_bytes()
            assert secret not in lying and b"plain" not in lying


async def test_a_folder_with_odd_names(tmp_path: Path) -> None:
    names = [b"a\nb", b"\xff\xfe", b" ", "日本".encode(), b"con", b"-rf"]
    async with opened(tmp_path / "m") as volume:
        top = (await volume.fs.mkdir(1, b"d", 0o755, ROOT)).ino
        inner = (await volume.fs.mkdir(top, b"inner", 0o755, ROOT)).ino
        for n, name in enumerate(names):
            await put_file(volume.fs, inner, name, bytes([n]) * n * 70_000)
        await volume.fs.symlink(top, b"link", b"/etc/passwd", ROOT)
        made = await job(volume, "share", path="/d", out=str(tmp_path / "www"))
        assert (made["files"], made["left_out"], made["folder"]) == (len(names), 1, True)
    shared = await opened_link(made["link"])
    import base64

    found = {}
    for file in shared.manifest.files:
        raw = base64.b64decode(file.path_b64) if file.path_b64 else file.path.encode()
        if not file.folder:
            found[raw] = await read(shared, file)
    assert found == {b"inner/" + name: bytes([n]) * n * 70_000 for n, name in enumerate(names)}


async def test_a_link_needs_its_password(tmp_path: Path) -> None:
    async with opened(tmp_path / "m") as volume:
        await put_file(volume.fs, 1, b"f", b"secret" * 9999)
        made = await job(volume, "share", path="/f", out=str(tmp_path / "w"), password="Lösung")
        assert made["password"]
    for wrong in (None, "lösung"):
        with pytest.raises(BadPassphrase):
            await opened_link(made["link"], wrong)
    shared = await opened_link(made["link"], "Lösung")
    assert await read(shared, shared.manifest.files[0]) == b"secret" * 9999


async def test_bytes_overwritten_since_are_not_given_away(tmp_path: Path) -> None:
    """A key opens a whole chunk: a chunk that the file uses in part is sealed anew."""
    async with opened(tmp_path / "m") as volume:
        ino = await put_file(volume.fs, 1, b"f", b"OLD SECRET " * 5000)
        await volume.drain()
        handle, _ = await volume.fs.open(ino, os.O_WRONLY, ROOT)
        await volume.fs.write(handle, 0, b"new" * 9000)
        await volume.fs.flush(handle)
        await volume.fs.release(handle)
        await volume.drain()
        uploaded: dict[str, bytes] = {}

        async def put(name: str, data: bytes) -> None:
            uploaded[name] = data

        content = await gather(
            volume,
            volume.replica.tree.inode(ino),
            "i" * 22,
            copy=False,
            put=put,
            on_progress=ignore,
        )
        (file,) = content.files
        for chunk in file.chunks:
            assert chunk.length == chunk.plain, "a recipient could open more than the file"
        assert uploaded


async def test_gc_leaves_what_a_link_needs(tmp_path: Path) -> None:
    """Also when the file is gone, and its packs were marked before the link was made."""
    store = await new_store_here()
    limits = gc.Limits(retention=0, grace=0, unknown_grace=0, compact_age=0)
    data = os.urandom(200_000)
    async with opened(tmp_path / "m", store) as volume:
        await put_file(volume.fs, 1, b"f", data)
        await volume.drain()
        record = await share_in_store(volume, "/f")
        packs = {volume.replica.tree.pack(number).name.hex() for number in record.packs}
        assert packs
        await volume.fs.unlink(1, b"f", ROOT)
        await volume.drain()
        for _ in range(3):
            await gc.collect(volume, limits, GcArgs(), ignore)
        there = {name.rpartition("/")[2] for name in store.objects if name.startswith("packs/")}
        assert packs <= there
        await job(volume, "share-revoke", which=record.id)
        for _ in range(3):
            await gc.collect(volume, limits, GcArgs(), ignore)
        there = {name.rpartition("/")[2] for name in store.objects if name.startswith("packs/")}
        assert not packs & there
        assert not [name for name in store.objects if name.startswith("share/")]


async def test_gc_removes_what_no_link_needs(tmp_path: Path) -> None:
    store = await new_store_here()
    async with opened(tmp_path / "m", store) as volume:
        await put_file(volume.fs, 1, b"f", b"x")
        record = await share_in_store(volume, "/f")
        await store.put(f"share/{'o' * 22}/manifest", b"left by a machine that died")
        limits = gc.Limits(unknown_grace=3600)
        await gc.collect(volume, limits, GcArgs(), ignore)
        assert f"share/{'o' * 22}/manifest" in store.objects, "it may be a link in the making"
        counts = await gc.collect(volume, gc.Limits(unknown_grace=0), GcArgs(), ignore)
        assert counts.removed_shares == 1
        assert [n for n in store.objects if n.startswith("share/")] == [
            f"share/{record.id}/manifest"
        ]


async def share_in_store(volume: Volume, path: str) -> LinkRecord:
    """A link as one in a bucket is, but with names for URLs: a store in memory has none."""
    raw = path.encode()
    inode = share._at(volume, raw)
    record = share._new_record(volume, ShareArgs(path), raw, inode, "presigned")
    content = await gather(
        volume, inode, record.id, copy=False, put=volume.store.put_new, on_progress=ignore
    )
    record = replace(record, packs=tuple(content.packs))
    await share._record(volume, record, new=True)

    async def address(pack: SharedPack) -> str:
        return pack.name

    sealed = await share._sealed(volume, record, content, address)
    await volume.store.put(f"share/{record.id}/manifest", sealed)
    return record


async def test_two_machines_list_and_revoke(tmp_path: Path) -> None:
    store = await new_store_here()
    async with opened(tmp_path / "a", store) as one, opened(tmp_path / "b", store) as two:
        await put_file(one.fs, 1, b"f", b"x")
        made = await job(one, "share", path="/f", out=str(tmp_path / "w"))
        await two.writer.catch_up()
        (listed,) = (await job(two, "share-list"))["links"]
        assert listed["link"] == made["link"]
        await job(two, "share-revoke", which="/f")
        await one.writer.catch_up()
        assert (await job(one, "share-list"))["links"] == []
        with pytest.raises(BadUsage):
            await job(one, "share-revoke", which=made["id"])


async def test_a_revoked_link_is_not_brought_back_by_a_machine_that_renews_it(
    tmp_path: Path,
) -> None:
    store = await new_store_here()
    async with opened(tmp_path / "a", store) as one, opened(tmp_path / "b", store) as two:
        await put_file(one.fs, 1, b"f", b"x")
        record = await share_in_store(one, "/f")
        await two.writer.catch_up()
        await job(one, "share-revoke", which=record.id)
        with pytest.raises(Missing):  # it has not heard of it yet
            await share._record(two, record, new=False)
        await one.writer.catch_up()
        assert (await job(one, "share-list"))["links"] == []


async def test_revoking_removes_the_folder(tmp_path: Path) -> None:
    async with opened(tmp_path / "m") as volume:
        await put_file(volume.fs, 1, b"f", b"x" * 100_000)
        made = await job(volume, "share", path="/f", out=str(tmp_path / "w"))
        await job(volume, "share-revoke", which=made["id"][:6])
        assert list((tmp_path / "w" / "share").iterdir()) == []
    with pytest.raises(Missing):
        await opened_link(made["link"])


async def test_a_link_is_an_attribute_of_its_file(tmp_path: Path) -> None:
    async with opened(tmp_path / "m") as volume:
        ino = await put_file(volume.fs, 1, b"f", b"x")
        from megafs.errors import Refused

        with pytest.raises(Refused):
            volume.fs.getxattr(ino, b"user.megafs.link")
        made = await job(volume, "share", path="/f", out=str(tmp_path / "w"))
        assert volume.fs.getxattr(ino, b"user.megafs.link").decode() == made["link"]
        assert volume.fs.listxattr(ino) == [] and volume.fs.listxattr(1) == []
        name = f"megafs.link.{made['id']}".encode()
        with pytest.raises(Refused):
            volume.fs.getxattr(1, name)
        with pytest.raises(Refused):
            await volume.fs.removexattr(1, name, ROOT)
        with pytest.raises(Refused):
            await volume.fs.setxattr(ino, b"user.megafs.link", b"x", 0, ROOT)


async def test_a_chunk_that_another_recipient_forged_is_refused(tmp_path: Path) -> None:
    """Everybody with a link to a chunk has its key: only the digest tells a forgery (row 34)."""
    async with opened(tmp_path / "m") as volume:
        await put_file(volume.fs, 1, b"f", b"honest" * 20_000)
        made = await job(volume, "share", path="/f", out=str(tmp_path / "w"))
    shared = await opened_link(made["link"])
    (file,) = shared.manifest.files
    source = shared.manifest.objects[file.chunks[0].object]
    place = tmp_path / "w" / "share" / made["id"] / source.id
    body = bytearray(place.read_bytes())
    chunk = file.chunks[0]
    context = aead.context(
        "chunk",
        bytes.fromhex(shared.manifest.volume),
        source.epoch,
        bytes.fromhex(source.id),
        chunk.offset,
    )
    old = bytes(body[chunk.at : chunk.at + chunk.sealed])
    forged = aead.seal(chunk.key, context, aead.open_sealed(chunk.key, context, old))
    assert len(forged) == chunk.sealed and forged != old
    body[chunk.at : chunk.at + chunk.sealed] = forged
    place.write_bytes(body)
    with pytest.raises(Corrupt):
        await read(shared, file)


@pytest.mark.parametrize(
    ("args", "word"),
    [
        ({"path": "/nothing"}, "no such file"),
        ({"path": "/f"}, "--out"),
        ({"path": "/f", "expires": -1.0}, "ends"),
        ({"path": "/f", "name": "a/b", "out": "/tmp/never"}, "--name"),
        ({"path": "/f", "follow": True}, "folders"),
        ({"path": "/s", "out": "/tmp/never"}, "neither a file nor a folder"),
    ],
)
async def test_mistakes(tmp_path: Path, args: dict[str, Any], word: str) -> None:
    async with opened(tmp_path / "m") as volume:
        await put_file(volume.fs, 1, b"f", b"x")
        await volume.fs.symlink(1, b"s", b"f", ROOT)
        with pytest.raises(BadUsage, match=word):
            await job(volume, "share", **args)
        assert (await job(volume, "share-list"))["links"] == []
