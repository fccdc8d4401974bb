"""One volume, made once through a real mount; every test tampers with a copy of its store."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.site import FILES, Place, Site, newest_pack, rng_bytes
from tests.mount.conftest import mounts_below, place, processes
from tests.mount.machine import Machine

__all__ = ["place", "processes"]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A volume with a pack for each file, and what the store and the machine held halfway."""
    base = tmp_path_factory.mktemp("hostile")
    machine = Machine(base)
    try:
        machine.format()
        store = base / "store"
        machine.mount("-o", "sync_interval=100ms")
        packs: dict[str, str] = {}
        for name in FILES:
            with (machine.mnt / name).open("wb") as file:
                file.write(rng_bytes(name))
                file.flush()
                os.fsync(file.fileno())
            packs[name] = newest_pack(store, set(packs.values()))
        half = machine.status()
        shutil.copytree(store, base / "half")
        for n in range(3):
            (machine.mnt / f"later{n}").write_text(f"later {n}")
            fd = os.open(machine.mnt, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
        machine.umount()
        machine.mount()
        end = machine.status()
        machine.umount()
        yield Site(base, machine, packs, half, end)
    finally:
        machine.kill()
        for point in mounts_below(base):
            os.system(f"umount -l {point}")


@pytest.fixture
def attacked(site: Site, place: Path) -> Iterator[Place]:
    """A copy of the store to tamper with, and of what the machine that knows it remembers."""
    copy = Place(site, place)
    try:
        yield copy
    finally:
        for machine in copy.machines:
            machine.kill()
