"""A log in a file that only its owner reads, and that does not grow for ever."""

from __future__ import annotations

import os
import stat
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from typing import Final

from megafs.private_files import others_may_write

#: Bytes after which a file is rotated away; two are kept.
SIZE: Final = 4 << 20


class LogFile(RotatingFileHandler):
    """A file for the owner alone, each time anew after it was rotated away."""

    def __init__(self, path: str) -> None:
        super().__init__(
            path, maxBytes=SIZE, backupCount=2, encoding="utf-8", errors="backslashreplace"
        )

    def _open(self) -> TextIOWrapper:
        # A link is the administrator's to make, not anybody's in /tmp.
        link = os.O_NOFOLLOW if others_may_write(os.path.dirname(self.baseFilename)) else 0
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | link
        fd = os.open(self.baseFilename, flags | os.O_NONBLOCK, 0o600)
        os.set_blocking(fd, True)
        found = os.fstat(fd)
        if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid():
            os.fchmod(fd, 0o600)
        return TextIOWrapper(open(fd, "ab"), self.encoding, self.errors)
