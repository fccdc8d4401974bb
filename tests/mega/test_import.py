"""`megafs import`: from MEGA into a mounted volume, through /dev/fuse."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from megafs.mega.transfer import part_of
from tests.mega.conftest import Run
from tests.mega.test_mount import Machine
from tests.services.mega.server import MegaServer, Owner

pytestmark = pytest.mark.fuse

MTIME = 1_400_000_000
CONTENT = random.Random(7).randbytes(2_500_000)


@pytest.fixture
def volume(mega: MegaServer, environ: dict[str, str], tmp_path: Path) -> Iterator[Machine]:
    """A volume in a directory, mounted."""
    machine = Machine(mega, environ | {"MEGAFS_PASSPHRASE": "a good passphrase"}, tmp_path)
    url = f"file://{tmp_path}/store"
    done = machine.run("format", url, "--recovery-key-file", tmp_path / "recovery")
    assert done.returncode == 0, done.stderr
    done = machine.run("mount", url, machine.at)
    assert done.returncode == 0, done.stderr
    machine.mounted = True
    yield machine
    machine.end()


def test_a_folder_a_file_and_an_account(
    volume: Machine, run: Run, owner: Owner, mega: MegaServer, tmp_path: Path
) -> None:
    owner.put("/Papers/a/thesis.pdf", CONTENT, mtime=MTIME)
    owner.put("/Papers/notes.txt", b"notes", mtime=MTIME + 1)
    owner.put("/Papers/a/b/\u00e4/empty", b"", mtime=MTIME + 2)
    at = volume.at
    part = part_of(at / "thesis.pdf")
    part.write_bytes(CONTENT[:1_000_000])
    done = run("import", owner.link(owner.put("/thesis.pdf", CONTENT, mtime=MTIME)), at)
    assert done.returncode == 0, done.stderr
    assert (at / "thesis.pdf").read_bytes() == CONTENT and not part.exists()
    assert min(first for _, first, _ in mega.ranges) == 1_000_000

    done = run("import", owner.link(owner.folder("/Papers")), at)
    assert done.returncode == 0, done.stderr
    assert (at / "Papers/a/thesis.pdf").read_bytes() == CONTENT
    assert int((at / "Papers/a/thesis.pdf").stat().st_mtime) == MTIME
    assert (at / "Papers/notes.txt").read_bytes() == b"notes"
    assert (at / "Papers/a/b/\u00e4/empty").stat().st_size == 0

    volume.keep_login(owner)
    asked = len(mega.ranges)
    done = run("import", "mega:/Papers", at)
    assert done.returncode == 0, done.stderr
    assert b"3 of them there already" in done.stderr and len(mega.ranges) == asked
    assert run("import", "mega:/Papers/a", at / "other").returncode == 0
    assert (at / "other" / "thesis.pdf").read_bytes() == CONTENT

    mega.tampered.add(owner.put("/bad", CONTENT).handle)
    bad = run("import", "mega:/bad", at)
    assert bad.returncode == 16 and not (at / "bad").exists()

    outside = run("import", "mega:/Papers", tmp_path)
    assert outside.returncode == 2 and b"does not lie in a megafs mount" in outside.stderr
    volume.umount()


def test_from_nowhere(run: Run, tmp_path: Path) -> None:
    done = run("import", "ftp://example.org/x", tmp_path)
    assert done.returncode == 2 and b"not a place to import from" in done.stderr
