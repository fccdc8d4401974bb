"""A volume to attack, as it lies in a directory, and the machines that mount it."""

from __future__ import annotations

import random
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megafs.volume.state_directory import remember_fsid
from tests.mount.machine import Machine

#: Incompressible, several chunks each, and each in a pack of its own.
FILES = ("a", "b", "c", "d", "e")
SIZE = 700_000


def rng_bytes(name: str) -> bytes:
    return random.Random(name).randbytes(SIZE)


def newest_pack(store: Path, known: set[str]) -> str:
    (found,) = {str(p.relative_to(store)) for p in (store / "packs").glob("*/*")} - known
    return found


@dataclass(frozen=True)
class Site:
    """packs: the pack of each file.  half, end: the mount's status when the store was copied to
    `half`, and at the end."""

    base: Path
    machine: Machine
    packs: dict[str, str]
    half: dict[str, Any]
    end: dict[str, Any]


class Place:
    """A copy of a site's store, at a URL of its own that the machine `known` has had mounted."""

    def __init__(self, site: Site, place: Path) -> None:
        self.site = site
        self.place = place
        self.store = place / "store"
        self.machines: list[Machine] = []
        shutil.copytree(site.base / "store", self.store)

    def machine(self, name: str = "new", store: Path | None = None) -> Machine:
        """A machine that has never seen the volume."""
        made = Machine(self.place, name, f"file://{store or self.store}")
        self.machines.append(made)
        return made

    def known(self, name: str = "known") -> Machine:
        """A machine that saw the volume as it was at the end, under this URL."""
        made = self.machine(name)
        shutil.copytree(self.site.machine.place / "state", made.place / "state")
        # The copy has a URL of its own.
        remember_fsid(made.place / "state", made.url, bytes.fromhex(self.site.end["volume"]))
        return made

    def roll_back(self) -> None:
        """Put the store back to how it was halfway."""
        shutil.rmtree(self.store)
        shutil.copytree(self.site.base / "half", self.store)

    def pack(self, name: str) -> Path:
        """The pack that holds a file."""
        return self.store / self.site.packs[name]

    def commits(self) -> list[Path]:
        return sorted((self.store / "commits").iterdir())


def flip(path: Path, bit: int) -> None:
    """Change one bit of a file in place."""
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.chmod(0o600)
    path.write_bytes(data)


def plain(said: str) -> str:
    """One line of it, whatever the terminal's width did."""
    return re.sub(r"\s+", " ", said)
