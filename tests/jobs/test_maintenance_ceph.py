"""fsck, scrub, gc and salvage on a real object store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from megafs.config import Parameters, Settings
from megafs.jobs import registry
from megafs.jobs.gc import Limits, collect
from megafs.jobs.messages import GcArgs
from megafs.jobs.salvage import salvage
from megafs.stores.limit import Limited
from megafs.stores.retry import Retrying
from megafs.stores.s3.driver import S3Store
from megafs.volume.create import format_volume
from megafs.volume.open import open_volume
from tests.fakes.machine import KEY, URL, mkdir, snapshot, truncate, unlink, write_file

pytestmark = pytest.mark.ceph


def silent(_: object) -> None:
    pass


async def test_on_ceph(connect: Callable[..., S3Store], tmp_path: Path) -> None:
    store = Retrying(Limited(connect("maintenance"), 4, 8), 30)
    await format_volume(
        store, KEY, Parameters(chunk_size=65536, pack_size=1 << 20, compression="none")
    )
    settings = Settings(
        state_dir=tmp_path / "state", cache_dir=tmp_path / "cache", stage_min_free=0
    )
    async with open_volume(URL, KEY, settings, store=store) as volume:
        await mkdir(volume.fs, "d")
        for n in range(8):
            await write_file(volume.fs, f"d/{n}", bytes([n]) * 500_000)
        await write_file(volume.fs, "gone", b"g" * 3_000_000)
        await volume.flush()
        for n in range(8):
            await truncate(volume.fs, f"d/{n}", 70_000)
        await unlink(volume.fs, "gone")
        await volume.flush()
        wanted = await snapshot(volume.fs)
        before = (await store.list("packs/")).entries
        # At once, which the command refuses: nobody else has this volume open.
        now = Limits(retention=0, grace=0, unknown_grace=0, compact_age=-60)
        for _ in range(3):
            result = await collect(volume, now, GcArgs(), silent)
        assert result.exit_code == 0
        after = (await store.list("packs/")).entries
        assert sum(e.size for e in after) < sum(e.size for e in before) // 2
        volume.chunks.clear()
        assert await snapshot(volume.fs) == wanted
        assert (await registry.run(volume, "fsck", {}, silent))["exit_code"] == 0
        scrubbed = await registry.run(volume, "scrub", {}, silent)
        assert scrubbed["exit_code"] == 0
        assert scrubbed["unnamed_count"] == 0
    salvaged = await salvage(store, URL, KEY, settings, tmp_path / "out")
    assert salvaged.exit_code == 0
    for n in range(8):
        assert (tmp_path / f"out/d/{n}").read_bytes() == bytes([n]) * 70_000
