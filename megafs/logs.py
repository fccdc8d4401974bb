"""Where log lines go, and what they must never hold.

stderr, with systemd's priority prefixes (``<3>``, sd-daemon(3)) when that is the journal; syslog;
or a file.  A record is one line, whatever names and answers of servers its text holds
(megafs/printable.py); the lines of a traceback follow it, indented.  Every line passes `redacted`,
the last of several guards: no text in megafs is made from a passphrase, a key, a token or a signed
URL in the first place.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from megafs.errors import BadUsage
from megafs.printable import indented, printable

# Compiled when the first line is written: they take 3 ms, of every start.
_SECRETS = (
    # Signed URLs and headers of AWS.
    r"(?i)(x-amz-(?:signature|credential|security-token)=)[^&\s'\"]+",
    r"(?i)(authorization['\"]?\s*[:=]\s*['\"]?(?:bearer|basic|aws4-hmac-sha256)?\s*)\S.*",
    (
        r"(?i)((?:aws_secret_access_key|aws_session_token|access_token|refresh_token|client_secret"
        r"|passphrase|password)['\"]?\s*[:=]\s*['\"]?)[^\s'\",;]+"
    ),
    # user:password@ in URLs.
    r"(://[^/\s:@]*:)[^/\s@]+(?=@)",
    # The recovery key: fourteen groups of four.
    r"()\b(?:[0-9A-Z]{4}-){8,}[0-9A-Z]{2,4}\b",
)

_PRIORITIES = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
    (0, 7),
)


@functools.cache
def _patterns() -> list[re.Pattern[str]]:
    return [re.compile(pattern) for pattern in _SECRETS]


def redacted(text: str) -> str:
    """Return *text* without what looks like a secret."""
    for pattern in _patterns():
        text = pattern.sub(r"\1[redacted]", text)
    return text


class _Escaping(logging.Formatter):
    """A record's text on one line, its traceback indented below it, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        record.message = record.getMessage()
        if self.usesTime():
            record.asctime = self.formatTime(record, self.datefmt)
        lines = [printable(self.formatMessage(record))]
        if record.exc_info:
            lines += indented(self.formatException(record.exc_info))
        if record.stack_info:
            lines += indented(self.formatStack(record.stack_info))
        return redacted("\n".join(lines))


class _Journal(_Escaping):
    """Every line with its priority, so that a traceback is not one error and fifty notices."""

    def format(self, record: logging.LogRecord) -> str:
        priority = next(p for level, p in _PRIORITIES if record.levelno >= level)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).splitlines())


def in_journal(environ: Mapping[str, str], fd: int = 2) -> bool:
    """Whether *fd* is the journal's stream (JOURNAL_STREAM, systemd.exec(5))."""
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def set_up(target: str, *, debug: bool = False, environ: Mapping[str, str] | None = None) -> None:
    """Send all logging to *target*: "stderr", "syslog", or the path of a file.

    "terminal": what a person at a terminal should see while a command works.

    Where there is no syslog, its lines go nowhere: a background mount has no other place, and
    `megafs status` shows the last errors all the same.
    """
    environ = os.environ if environ is None else environ
    handler = _handler(target, environ)
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING if target == "terminal" and not debug else logging.INFO)
    logging.getLogger("megafs").setLevel(logging.DEBUG if debug else logging.NOTSET)
    for noisy in ("httpx", "httpcore", "botocore", "pyfuse3"):
        logging.getLogger(noisy).setLevel(logging.INFO if debug else logging.WARNING)
    # A full disk or a closed terminal must not turn a log line into an error of the mount.
    logging.raiseExceptions = False
    logging.captureWarnings(True)


def check_file(path: str) -> None:
    """Make sure that the log can be written to *path*; BadUsage says why not.

    For while there is somebody to tell: a mount in the background opens its log after the fork.
    """
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as exc:
        raise BadUsage(f"option log: {path}: {exc.strerror}") from None


def _handler(target: str, environ: Mapping[str, str]) -> logging.Handler:
    handler: logging.Handler
    if target == "syslog":
        from logging.handlers import SysLogHandler

        if not Path("/dev/log").exists():
            return logging.NullHandler()
        handler = SysLogHandler("/dev/log", facility=SysLogHandler.LOG_DAEMON)
        handler.ident = f"megafs[{os.getpid()}]: "
        handler.setFormatter(_Escaping("%(message)s"))
    elif target == "terminal":
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_Escaping("megafs: %(message)s"))
    elif target == "stderr":
        handler = logging.StreamHandler(sys.stderr)
        if in_journal(environ):
            handler.setFormatter(_Journal("%(name)s: %(message)s"))
        else:
            handler.setFormatter(_Escaping("%(asctime)s %(levelname).1s %(name)s: %(message)s"))
    else:
        from megafs.log_file import LogFile

        handler = LogFile(target)
        handler.setFormatter(_Escaping("%(asctime)s %(levelname).1s %(name)s: %(message)s"))
    return handler
