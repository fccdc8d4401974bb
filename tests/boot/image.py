"""The disks of the virtual machine: Debian from its packages, and megafs by `make install`.

Kept in $MEGAFS_BOOT, else ~/.cache/megafs-boot: the packages as one archive, the root file system
as a directory in which megafs is installed, pip's cache.  Nothing else of the host is changed.
Needs root: the packages' scripts run in a chroot, in a mount namespace of its own.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
SUITE = "bookworm"
MIRROR = "http://deb.debian.org/debian"
#: A bootable Debian, and what `make install` needs.
PACKAGES = (
    *("systemd", "systemd-sysv", "udev", "dbus", "kmod", "linux-image-cloud-amd64"),
    *("initramfs-tools", "zstd", "e2fsprogs", "mount", "iproute2", "procps", "ca-certificates"),
    *("fuse3", "make", "gcc", "libc6-dev", "pkg-config", "libfuse3-dev"),
    *("python3", "python3-dev", "python3-venv"),
)
UNWANTED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*")
#: What of the checkout is installed from.
SOURCES = (
    *("Makefile", "LICENSE", "README.md", "pyproject.toml"),
    *("contrib", "megafs", "tools/install.sh"),
)
INSTALLED_FROM = "opt/megafs-src"
#: Bytes of the root disk; 640 MB are used.
ROOT_SIZE = "1600M"

_IN_CHROOT = """
set -eu
root=$1
shift
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/tmp"
mount --bind /dev "$root/dev"
mount --bind "$1" "$root/root"
shift
for file in /etc/resolv.conf /etc/ssl/certs/ca-certificates.crt; do
    [ ! -e "$root$file" ] || mount --bind "$file" "$root$file"
done
exec chroot "$root" "$@"
"""


class ImageError(Exception):
    """The disks could not be made; the text says why."""


def cache() -> Path:
    """Where what is made once is kept."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("MEGAFS_BOOT") or Path(home) / "megafs-boot")


@contextmanager
def alone() -> Iterator[None]:
    """Nobody else changes the cache in the block."""
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def root(say: Path) -> Path:
    """Return the directory with the root file system, in which this checkout's megafs is installed.

    say: a file that the programs write to.
    """
    archive = _base(say)
    made, stamp = cache() / "root", cache() / "root.stamp"
    wanted = f"{archive.name} {_digest(_sources())}"
    if stamp.exists() and stamp.read_text() == wanted:
        return made
    stamp.unlink(missing_ok=True)
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(mode=0o755)
    _run(say, "tar", "-C", str(made), "--numeric-owner", "-xf", str(archive))
    for path in _sources():
        to = made / INSTALLED_FROM / path.relative_to(CHECKOUT)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, to)
    (made / "etc/resolv.conf").unlink(missing_ok=True)
    (made / "etc/resolv.conf").touch()
    home = cache() / "chroot-home"  # pip's cache: pyfuse3 is compiled once
    home.mkdir(exist_ok=True)
    _in_chroot(say, made, home, "make", "-C", f"/{INSTALLED_FROM}", "install")
    stamp.write_text(wanted)
    return made


def kernel(made: Path) -> tuple[Path, Path]:
    """Return the newest kernel and its initrd in a root file system."""
    (found,) = sorted((made / "boot").glob("vmlinuz-*"))[-1:]
    return found, found.with_name(found.name.replace("vmlinuz", "initrd.img"))


def disk(to: Path, size: str, contents: Path | None = None, label: str = "") -> None:
    """Make an ext4 disk of a directory, without mounting anything."""
    command = ["mke2fs", "-q", "-t", "ext4", "-F"]
    command += ["-L", label] if label else []
    command += ["-d", str(contents)] if contents else []
    done = subprocess.run(
        [*command, str(to), size], capture_output=True, text=True, check=False, env=_ENVIRON
    )
    if done.returncode:
        raise ImageError(f"{to.name} could not be made: {done.stderr.strip()}")


_ENVIRON = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}


def _base(say: Path) -> Path:
    """Return the archive of Debian's packages, installed."""
    key = hashlib.sha256(" ".join([SUITE, *PACKAGES, *UNWANTED]).encode()).hexdigest()[:16]
    archive = cache() / f"base-{key}.tar"
    if archive.exists():
        return archive
    for old in cache().glob("base-*"):
        old.unlink()
    new = archive.with_suffix(".new")
    _run(
        say,
        *("mmdebstrap", "--mode=root", "--variant=minbase", "--format=tar"),
        f"--include={','.join(PACKAGES)}",
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in UNWANTED),
        *(SUITE, str(new), os.environ.get("MEGAFS_BOOT_MIRROR", MIRROR)),
    )
    new.rename(archive)
    return archive


def _sources() -> list[Path]:
    found = []
    for name in SOURCES:
        path = CHECKOUT / name
        below = [path] if path.is_file() else path.rglob("*")
        found += [each for each in below if each.is_file() and "__pycache__" not in each.parts]
    return sorted(found)


def _digest(paths: list[Path]) -> str:
    total = hashlib.sha256()
    for path in paths:
        total.update(f"{path.relative_to(CHECKOUT)} {path.stat().st_mode}\0".encode())
        total.update(path.read_bytes())
    return total.hexdigest()


def _in_chroot(say: Path, made: Path, home: Path, *command: str) -> None:
    keep = (
        "PIP_",
        "http_proxy",
        "https_proxy",
        "no_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
    )
    kept = [f"{name}={value}" for name, value in os.environ.items() if name.startswith(keep)]
    environ = ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8", *kept]
    _run(
        say,
        *("unshare", "-m", "--propagation", "private", "sh", "-c", _IN_CHROOT, "sh"),
        *(str(made), str(home), "env", "-i", *environ, *command),
    )


def _run(say: Path, *command: str) -> None:
    with say.open("a") as out:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, check=False, env=_ENVIRON
        )
    if done.returncode:
        last = "\n".join(say.read_text(errors="replace").splitlines()[-15:])
        raise ImageError(f"{command[0]} ended with {done.returncode}\n{last}")
