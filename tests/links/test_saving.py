"""What a link gives out, saved: whole or not at all, gone on with, nothing replaced."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from megafs.errors import AlreadyThere, Corrupt, Unavailable
from megafs.jobs import registry
from megafs.links import link_text
from megafs.links.fetch import Fetcher
from megafs.links.reader import SharedFiles, open_link
from megafs.links.saving import Saving, checked_name
from megafs.progress import ignore
from megafs.stores.base import Buffer
from megafs.volume.volume import Volume
from tests.fs.opened import ROOT, opened, put_file

DATA = os.urandom(400_000) + bytes(300_000) + b"end"


class Breaking(Fetcher):
    """Breaks off after so many gets."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after
        self.came = 0

    async def get(self, url: str, start: int, length: int) -> bytes:
        if not self.left:
            raise Unavailable("the line is cut")
        self.left -= 1
        data = await super().get(url, start, length)
        self.came += len(data)
        return data


Share = Callable[..., Any]


@pytest.fixture
async def volume(tmp_path: Path) -> AsyncIterator[Volume]:
    async with opened(tmp_path / "machine") as made:
        yield made


async def share(volume: Volume, path: str, place: Path) -> str:
    args = {"path": path, "out": str(place / "www")}
    made = await registry.run(volume, "share", args, ignore)
    link: str = made["link"]
    return link


async def open_it(link: str, fetcher: Fetcher | None = None) -> SharedFiles:
    return await open_link(link_text.parse(link), fetcher or Fetcher())


async def test_a_file_and_again(volume: Volume, tmp_path: Path) -> None:
    await put_file(volume.fs, 1, b"f", DATA)
    shared = await open_it(await share(volume, "/f", tmp_path))
    dest = tmp_path / "f"
    seen: list[int] = []
    saved = await Saving(shared, seen.append).to_place(dest)
    assert dest.read_bytes() == DATA and (saved.files, saved.skipped) == (1, 0)
    assert (await Saving(shared).to_place(dest)).skipped == 1
    dest.write_bytes(b"mine")
    with pytest.raises(AlreadyThere):
        await Saving(shared).to_place(dest)
    assert dest.read_bytes() == b"mine"
    assert [path.name for path in tmp_path.glob("*megafs-part*")] == []


async def test_it_goes_on_where_it_stopped(volume: Volume, tmp_path: Path) -> None:
    data = os.urandom(30 << 20)
    await put_file(volume.fs, 1, b"big", data)
    link = await share(volume, "/big", tmp_path)
    dest = tmp_path / "big"
    broken = Breaking(after=4)
    shared = await open_it(link, broken)
    with pytest.raises(Unavailable):
        await Saving(shared).to_place(dest)
    assert not dest.exists()
    (part,) = tmp_path.glob("big.*.megafs-part")
    begun = part.stat().st_size
    assert begun > 4 << 20
    whole = Breaking(after=1000)
    await Saving(await open_it(link, whole)).to_place(dest)
    assert dest.read_bytes() == data
    assert whole.came < len(data) - begun + (5 << 20)


async def test_a_part_of_other_contents_is_not_gone_on_with(volume: Volume, tmp_path: Path) -> None:
    await put_file(volume.fs, 1, b"f", b"1" * 200_000)
    first = await open_it(await share(volume, "/f", tmp_path))
    await volume.fs.unlink(1, b"f", ROOT)
    await put_file(volume.fs, 1, b"f", b"2" * 200_000)
    second = await open_it(await share(volume, "/f", tmp_path))
    broken = SharedFiles(
        link_text.parse(await share(volume, "/f", tmp_path)), first.manifest, Breaking(after=0)
    )
    with pytest.raises(Unavailable):
        await Saving(broken).to_place(tmp_path / "f")
    await Saving(second).to_place(tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == b"2" * 200_000


async def test_a_folder_with_its_times(volume: Volume, tmp_path: Path) -> None:
    top = (await volume.fs.mkdir(1, b"d", 0o755, ROOT)).ino
    inner = (await volume.fs.mkdir(top, b"inner", 0o755, ROOT)).ino
    await put_file(volume.fs, inner, b"\xff\n", b"odd")
    await put_file(volume.fs, top, b"empty", b"")
    shared = await open_it(await share(volume, "/d", tmp_path))
    dest = tmp_path / "copy"
    saved = await Saving(shared).to_place(dest)
    assert (dest / "inner" / os.fsdecode(b"\xff\n")).read_bytes() == b"odd"
    assert (dest / "empty").read_bytes() == b"" and saved.files == 2
    (folder,) = [file for file in shared.manifest.files if file.path == "inner"]
    assert abs((dest / "inner").stat().st_mtime - folder.modified) < 0.001


@pytest.mark.parametrize("path", ["../up", "/etc/cron.d/x", "a/../../b", "a//b", "a/./b", "x\0y"])
async def test_whoever_made_the_link_cannot_leave_the_folder(
    volume: Volume, tmp_path: Path, path: str
) -> None:
    top = (await volume.fs.mkdir(1, b"d", 0o755, ROOT)).ino
    await put_file(volume.fs, top, b"f", b"x")
    good = await open_it(await share(volume, "/d", tmp_path))
    (file,) = good.manifest.files
    bad = replace(good.manifest, files=(replace(file, path=path),))
    with pytest.raises(Corrupt):
        await Saving(
            SharedFiles(link_text.parse(await share(volume, "/d", tmp_path)), bad, Fetcher())
        ).to_place(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


async def test_a_link_in_the_place_is_not_followed(volume: Volume, tmp_path: Path) -> None:
    await put_file(volume.fs, 1, b"f", DATA)
    shared = await open_it(await share(volume, "/f", tmp_path))
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    (tmp_path / "f").symlink_to(victim)
    with pytest.raises(AlreadyThere):
        await Saving(shared).to_place(tmp_path / "f")
    assert victim.read_bytes() == b"mine"


async def test_to_stdout_holes_are_zeros(volume: Volume, tmp_path: Path) -> None:
    handle, inode = await volume.fs.create(1, b"f", 0o644, 2, ROOT)
    await volume.fs.write(handle, 100_000, b"middle")
    await volume.fs.flush(handle)
    await volume.fs.release(handle)
    from megafs.tree.inode import SetAttr

    await volume.fs.setattr(inode.ino, SetAttr(size=300_000), ROOT)
    shared = await open_it(await share(volume, "/f", tmp_path))
    out = bytearray()

    def write(data: Buffer) -> None:
        out.extend(data)

    await Saving(shared).to_stdout(shared.manifest.files[0], write)
    assert bytes(out) == bytes(100_000) + b"middle" + bytes(199_994)


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\0b"])
def test_a_name_that_no_file_can_have(name: str) -> None:
    with pytest.raises(Corrupt):
        checked_name(name)
