"""/run/mount/utab: what libmount keeps of a mount beside what the kernel keeps of it.

systemd and findmnt read both through libmount, and systemd orders a mount by `_netdev`.  mount(8)
writes a line of its own, but only when mount.megafs has ended, and with the URL: util-linux before
2.39 looks for the source that the kernel shows (source.py).  Meanwhile, or for good, systemd takes
the mount for a local one and orders it anew; then remote-fs.target may wait for it for ever
(systemd 252), and the network may go first at shutdown.  So our line is there before the mount.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)

DIRECTORY = Path("/run/mount")
#: Seconds to wait for others who change the file, which takes them milliseconds.
PATIENCE = 2.0


def note(source: str, target: str, options: Sequence[str], directory: Path | None = None) -> None:
    """Say that what the kernel shows as *source* has *options* at *target*.

    For root alone.  What cannot be written is logged: nothing but an order depends on it.
    """
    words = {"SRC": source, "TARGET": target, "ROOT": "/", "OPTS": ",".join(options)}
    line = " ".join(f"{name}={_mangled(value)}" for name, value in words.items())
    _change(target, (source,), [line], directory)


def forget(target: str, sources: Collection[str], directory: Path | None = None) -> None:
    """Take back what was said of any of *sources* at *target*."""
    _change(target, sources, [], directory)


def _change(
    target: str, sources: Collection[str], lines: list[str], directory: Path | None
) -> None:
    directory = DIRECTORY if directory is None else directory
    if os.geteuid() != 0:
        return
    gone = {(f"SRC={_mangled(source)}", f"TARGET={_mangled(target)}") for source in sources}
    try:
        with _alone(directory):
            utab = directory / "utab"
            before = utab.read_bytes().decode(errors="surrogateescape") if utab.exists() else ""
            kept = [line for line in before.splitlines() if not _is_of(line, gone)]
            after = "".join(f"{line}\n" for line in kept + lines)
            if after != before:
                _replace(utab, after.encode(errors="surrogateescape"))
    except OSError as exc:
        log.warning("%s/utab could not be changed: %s", directory, exc.strerror)


def _is_of(line: str, pairs: Collection[tuple[str, str]]) -> bool:
    words = set(line.split(" "))
    return any(set(pair) <= words for pair in pairs)


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Keep libmount from changing the file in the block, as it does us.

    Its readers are told by the lock's end (inotify), whether anything was changed or not.
    """
    directory.mkdir(mode=0o755, exist_ok=True)
    fd = os.open(directory / "utab.lock", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        yield
    finally:
        os.close(fd)


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f"utab.megafs-{os.getpid()}")
    temporary.unlink(missing_ok=True)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    with os.fdopen(fd, "wb") as file:
        os.fchmod(fd, 0o644)
        file.write(data)
    temporary.replace(path)


def _mangled(text: str) -> str:
    """As getmntent(3) has it: words are separated by spaces."""
    for char in "\\ \t\n#":
        text = text.replace(char, f"\\{ord(char):03o}")
    return text
