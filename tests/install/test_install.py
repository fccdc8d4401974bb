"""`make install` into a directory: the commands, the units, and what updatedb(8) leaves out."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

DEBIANS = (
    'PRUNE_BIND_MOUNTS="yes"\n'
    '# PRUNENAMES=".git .bzr .hg .svn"\n'
    'PRUNEPATHS="/tmp /var/spool /media"\n'
    'PRUNEFS="NFS afs autofs fuse.sshfs fuse.glusterfs"\n'
)


def install(
    dest: Path | None, *steps: str, prefix: str = "/usr/local", sbin: str = "/usr/sbin"
) -> None:
    subprocess.run(
        [
            "make",
            "-s",
            "install",
            f"DESTDIR={dest or ''}",
            f"PREFIX={prefix}",
            f"SBIN={sbin}",
            "STEPS=" + " ".join(steps),
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )


def test_commands_and_units(tmp_path: Path) -> None:
    for _ in range(2):
        install(tmp_path, "commands", "units", "updatedb", prefix="/opt/m")
    for name, module in (
        ("opt/m/bin/megafs", "megafs.__main__"),
        ("usr/sbin/mount.megafs", "megafs.cli.mount_helper"),
    ):
        path = tmp_path / name
        program, command = path.read_text().splitlines()
        assert program == "#!/bin/sh"
        assert command.startswith("exec /opt/m/lib/megafs/bin/python -P -c ")
        assert f"from {module} import main" in command
        assert stat.S_IMODE(path.stat().st_mode) == 0o755
    for name in ("umount.fuse.megafs", "mount.fuse.megafs"):
        assert os.readlink(tmp_path / "usr/sbin" / name) == "mount.megafs"
    for kind in ("system", "user"):
        unit = (tmp_path / f"opt/m/lib/systemd/{kind}/megafs@.service").read_text()
        assert "ExecStart=/opt/m/bin/megafs mount" in unit
        assert "/usr/local" not in unit
    assert not (tmp_path / "etc").exists()


@pytest.mark.parametrize(
    "before,after",
    [
        (DEBIANS, DEBIANS.replace('PRUNEFS="', 'PRUNEFS="fuse.megafs ')),
        ('PRUNEFS = ""\n', 'PRUNEFS = "fuse.megafs "\n'),
        ("PRUNEPATHS=/tmp", 'PRUNEPATHS=/tmp\nPRUNEFS="fuse.megafs"\n'),
        ('# PRUNEFS="fuse.megafs"\n', '# PRUNEFS="fuse.megafs"\nPRUNEFS="fuse.megafs"\n'),
        ('PRUNEFS="a fuse.megafs b"\n', 'PRUNEFS="a fuse.megafs b"\n'),
        ('PRUNEFS="fuse.megafs2"\n', 'PRUNEFS="fuse.megafs fuse.megafs2"\n'),
    ],
)
def test_updatedb(tmp_path: Path, before: str, after: str) -> None:
    path = tmp_path / "etc/updatedb.conf"
    path.parent.mkdir()
    path.write_text(before)
    path.chmod(0o640)
    for _ in range(3):
        install(tmp_path, "updatedb")
        assert path.read_text() == after
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [p.name for p in path.parent.iterdir()] == ["updatedb.conf"]


def test_the_commands_work_by_their_names(tmp_path: Path) -> None:
    """With this environment in place of the one that pip would make."""
    prefix = tmp_path / "usr"
    (prefix / "lib/megafs/bin").mkdir(parents=True)
    python = prefix / "lib/megafs/bin/python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    install(None, "commands", prefix=str(prefix), sbin=str(tmp_path / "sbin"))

    def said(*command: str | Path) -> str:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    assert said(prefix / "bin/megafs", "--version").startswith("megafs ")
    assert "usage: mount.megafs" in said(tmp_path / "sbin/mount.megafs", "-z")
    assert "usage: umount.megafs" in said(tmp_path / "sbin/umount.fuse.megafs", "-z")
