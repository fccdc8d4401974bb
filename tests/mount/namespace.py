"""A mount namespace with mount.megafs where mount(8) looks for it, and an fstab of its own.

The real /usr/sbin, /etc/fstab and /run/mount stay as they are, whatever else runs on the machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.mount.conftest import Processes

ROOT = Path(__file__).parents[2]
#: What is called mount.megafs; the others are links to it, as tools/install.sh has them.
HELPERS = ("mount.megafs", "mount.fuse.megafs", "umount.fuse.megafs")

#: $1: a directory of the test's; the others: what must be reached by users who may not look into a
#: directory above it, as /root.  The namespace stays until its stdin is closed.
_SET_UP = """
set -eu
covered= back=
mkdir "$1/sbin"
mount --bind /usr/sbin "$1/sbin"
mount -t tmpfs -o mode=0755 tmpfs /usr/sbin
ln -s "$1/sbin"/* /usr/sbin/
mkdir -p /run/mount
mount -t tmpfs -o mode=0755 tmpfs /run/mount
for name in mount.megafs mount.fuse.megafs umount.fuse.megafs; do
    ln -sf "$1/$name" /usr/sbin/
done
for name in fstab passwd; do
    if [ -e "$1/$name" ]; then
        [ -e "/etc/$name" ] || : >"/etc/$name"
        mount --bind "$1/$name" "/etc/$name"
    fi
done
place=$1
shift
for path; do
    closed= above=$path number=$((${number:-0} + 1))
    while above=$(dirname "$above") && [ "$above" != / ]; do
        case $(stat -c %a "$above") in *[1357]) ;; *) closed=$above ;; esac
    done
    [ -n "$closed" ] || continue
    mkdir "$place/kept$number"
    mount --bind "$path" "$place/kept$number"
    case $covered in *" $closed "*) ;; *) covered="$covered $closed " ;; esac
    back="$back $number:$path"
done
for closed in $covered; do
    mount -t tmpfs -o mode=0755 tmpfs "$closed"
done
for each in $back; do
    mkdir -p "${each#*:}"
    mount --bind "$place/kept${each%%:*}" "${each#*:}"
done
echo ready
read -r end || :
"""


class Namespace:
    """Runs programs where mount(8) finds this checkout's helpers.

    fstab, passwd: what these files in /etc are there, if given.
    for_users: let every user reach this checkout and its interpreter, wherever they lie.
    """

    def __init__(
        self,
        place: Path,
        processes: Processes,
        fstab: str | None = None,
        passwd: str | None = None,
        *,
        for_users: bool = False,
    ) -> None:
        place = place / "namespace"
        place.mkdir(mode=0o755)
        for name in HELPERS:
            _write_helper(place / name)
        for name, text in (("fstab", fstab), ("passwd", passwd)):
            if text is not None:
                (place / name).write_text(text)
        needed = {os.path.realpath(path) for path in (ROOT, sys.prefix, sys.base_prefix)}
        self._holder = processes.start(
            *("unshare", "-m", "--propagation", "private"),
            *("sh", "-c", _SET_UP, "sh", place, *(sorted(needed) if for_users else ())),
            stdin=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n", self._holder.communicate()

    def command(self, *args: str | Path) -> list[str]:
        """The command that runs *args* in the namespace."""
        return ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", *map(str, args)]

    def run(
        self, environ: dict[str, str], *args: str | Path, code: int = 0, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run *args* there; the exit code must be *code*."""
        done = subprocess.run(
            self.command(*args),
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            start_new_session=True,
        )
        assert done.returncode == code, f"{args}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def is_mounted(self, path: Path) -> bool:
        """Whether something of ours is mounted at *path* there."""
        table = Path(f"/proc/{self._holder.pid}/mountinfo").read_text()
        rows = [line.split() for line in table.splitlines()]
        return any(row[4] == str(path) and "fuse.megafs" in row for row in rows)


def _write_helper(path: Path) -> None:
    """Write what an installation makes of the entry point."""
    path.write_text(
        f"#!{sys.executable}\n"
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from megafs.cli.mount_helper import main\n"
        "main()\n"
    )
    os.chmod(path, 0o755)
