"""A process that stays: into the background, what it may use, systemd, signals, its end.

The order matters.  Everything that can ask the user something, or tell that the command cannot
work, happens before the fork.  The fork happens before trio or any thread starts.  The parent waits
on a pipe until the directory is usable, so `mount` returns when, and only when, it is.
"""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Collection, Mapping
from typing import NoReturn, Protocol

from msgspec import UNSET, Struct

from megafs.errors import MegafsError, MountFailed, leaf
from megafs.hardening import protect_memory
from megafs.mount.control_messages import (
    ErrorReply,
    Reply,
    converted,
    decode_reply,
    encode_reply,
)
from megafs.printable import printable
from megafs.side_thread import start_thread

log = logging.getLogger(__name__)

#: A mount that was told twice to stop ends after so many seconds, whatever it is doing.
LAST_RESORT = 10.0

_PR_SET_IO_FLUSHER = 57
_M_ARENA_MAX = -8
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_FILES = 65536


def harden() -> None:
    """Prepare this process for keys in its memory and a filesystem in its hands.

    Beside `protect_memory`: many files; few malloc arenas, since each thread's own keeps what it
    once used; and memory that is needed to free memory does not wait for the filesystem that this
    process serves (root only, prctl(2)).
    """
    protect_memory()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0)
    libc.mallopt(_M_ARENA_MAX, 2)
    # Naming one threshold ends glibc's own tuning of the other: chunks and bodies of 128 KiB and
    # more would each be mapped, faulted in page by page and unmapped, which costs more than
    # deciphering them.  32 MiB is the most that it takes.
    libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
    libc.mallopt(_M_TRIM_THRESHOLD, 32 << 20)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


class MountFacts(Struct, frozen=True):
    """The facts that `megafs mount` shows once the directory is usable.

    pid: of the mount.  head_time: seconds since 1970.  The others as in `megafs status --json`.
    """

    pid: int
    sequence: int
    head: str
    head_words: str
    head_time: float
    head_host: str
    offline: bool
    staged_bytes: int
    pending_operations: int


class ReadyListener(Protocol):
    """Is told when the directory is usable."""

    def ready(self, facts: MountFacts) -> None:
        """It is usable."""


class _ParentPipe:
    """Tells the parent how it went: one line, as a reply on the control socket."""

    def __init__(self, fd: int, on_ready: Callable[[], None]) -> None:
        self._fd: int | None = fd
        self._on_ready = on_ready

    def ready(self, facts: MountFacts) -> None:
        # Not before: below autofs (x-systemd.automount) the kernel lets only the process group of
        # whoever mounts reach the mountpoint until mount(8) has ended; others wait for that.
        os.setsid()
        self._on_ready()
        self._send(Reply(result=facts))

    def failed(self, exc: BaseException) -> bool:
        """It did not work.  Returns whether anyone still waited to hear it."""
        return self._send(Reply(error=ErrorReply.of(exc)))

    def _send(self, reply: Reply) -> bool:
        if self._fd is None:
            return False
        fd, self._fd = self._fd, None
        try:
            os.write(fd, encode_reply(reply))
        except BrokenPipeError:
            return False
        finally:
            os.close(fd)
        return True


def in_background(
    run: Callable[[ReadyListener], None],
    on_ready: Callable[[], None],
    keep: Collection[int] = (),
) -> MountFacts:
    """Run *run* in a new session of its own and return the facts it reports with `ready`.

    on_ready: called in the child just before.  keep: file descriptors that it goes on with.
    Only the parent returns.  Raises what ended the child, or MountFailed if it just ended.  Ctrl-C
    while waiting ends the child.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    first = os.fork()
    if first == 0:
        os.close(read_end)
        _become_child(run, _ParentPipe(write_end, on_ready), {write_end, *keep}, write_end)
    os.close(write_end)
    os.waitpid(first, 0)
    with os.fdopen(read_end, "rb") as lines:
        pid = 0
        try:
            pid = int(lines.readline() or b"0")
            line = lines.readline()
        except KeyboardInterrupt:
            if pid:
                os.kill(pid, signal.SIGTERM)
            raise
    if not line:
        raise MountFailed(
            f"the mount's process ({pid or 'never started'}) ended without a word;"
            " run it with --foreground --debug to see why"
        )
    reply = decode_reply(line)
    if reply.error is not UNSET:
        raise reply.error.exception()
    return converted(reply.result, MountFacts)


def _become_child(
    run: Callable[[ReadyListener], None], report: _ParentPipe, keep: set[int], fd: int
) -> NoReturn:
    """Leave the parent, then *run*; the session is left when the directory is usable.

    The second fork makes this a process that leads no group, which setsid(2) asks for.
    """
    code = MegafsError.exit_code
    try:
        if os.fork():
            os._exit(0)
        os.write(fd, b"%d\n" % os.getpid())
        close_inherited(keep)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.close(null)
        run(report)
        code = 0
    except BaseException as exc:  # noqa: ASYNC103  (the process ends here, and trio has ended)
        cause = leaf(exc)
        heard = report.failed(exc)
        if isinstance(cause, MegafsError):
            code = cause.exit_code
            if not heard:
                log.error("the mount ended: %s", cause)
        else:
            log.critical("the mount ended; this is a bug", exc_info=exc)
    finally:
        logging.shutdown()
        # Not Python's own end: a thread that is stuck in the kernel must not keep the process.
        os._exit(code)


def close_inherited(keep: set[int]) -> None:
    """Close every file descriptor above 2 but *keep*: whoever started us may wait for their end."""
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd > 2 and fd not in keep:
            try:
                os.close(fd)
            except OSError:
                pass


def detach_output() -> None:
    """Send what is still printed nowhere, so that the terminal or pipe is free to close."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.close(null)


class Notifier:
    """Tells systemd how the service is (sd_notify(3)); silent elsewhere."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        address = (os.environ if environ is None else environ).get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address

    def __call__(self, **fields: str | int) -> None:
        """Send READY=1, STATUS="...", ... as keyword arguments."""
        if not self._address:
            return
        # A newline in a value would begin a field of its own.
        text = "\n".join(f"{name}={printable(str(value))}" for name, value in fields.items())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to:
                to.sendto(text.encode(), self._address)
        except OSError as exc:
            log.debug("systemd was not told: %s", exc)


class Signals:
    """SIGTERM, SIGINT and SIGHUP, waited for in a thread of their own.

    A signal handler would run on the main thread, between two steps of the event loop, and so not
    at all while the loop hangs.  The first signal asks the mount to stop; the second ends it, if
    need be from this thread.
    """

    #: In the background nobody's terminal closes.
    WATCHED = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})

    def __init__(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, self.WATCHED)

    def watch(self, first: Callable[[], None], second: Callable[[], None]) -> None:
        """Call *first* at the first signal and *second* at the second, in a thread; then watch the
        process end, or end it.
        """

        def wait() -> None:
            for act in (first, second):
                number = signal.sigwait(self.WATCHED)
                log.warning("%s", signal.Signals(number).name)
                try:
                    act()
                except Exception:
                    log.exception("a signal was not obeyed; this is a bug")
            end_soon(LAST_RESORT, 128 + int(number))

        start_thread(wait)


def end_soon(patience: float, code: int) -> None:
    """End the process with *code* after *patience* seconds, unless it has ended by then."""

    def end() -> None:
        time.sleep(patience)
        log.critical("the mount did not end by itself within %.0f s: ending it", patience)
        os._exit(code)

    start_thread(end)
