"""megafs cache: what is cached can go at any time."""

from __future__ import annotations

import json
import os

import pytest

from tests.mount.machine import Machine

pytestmark = pytest.mark.fuse


def test_show_and_clear(volume: Machine) -> None:
    volume.mount()
    data = os.urandom(2 << 20)
    (volume.mnt / "f").write_bytes(data)
    volume.umount()

    volume.mount()
    assert (volume.mnt / "f").read_bytes() == data
    shown = json.loads(volume.run("cache", "show", volume.mnt, "--json").stdout)
    assert shown["cache_limit"] == 10 << 30
    volume.run("cache", "clear", volume.mnt)
    assert json.loads(volume.run("cache", "show", volume.mnt, "--json").stdout)["cache_bytes"] == 0
    assert (volume.mnt / "f").read_bytes() == data
    volume.umount()

    shown = json.loads(volume.run("cache", "show", volume.url, "--json").stdout)
    assert shown["directory"].startswith(volume.environ["MEGAFS_CACHE_DIR"])
    volume.run("cache", "clear", volume.url)
    assert json.loads(volume.run("cache", "show", volume.url, "--json").stdout)["cache_bytes"] == 0
