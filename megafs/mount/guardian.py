"""The guardian of a mount: a small process that aborts the FUSE connection when the mount dies.

The kernel does that itself once the last descriptor of /dev/fuse is closed, which a killed process
does when its last thread has ended.  But a thread may be telling the kernel that a name is gone
(fuse_reverse_inval_entry), for which the kernel wants the directory's lock.  A program that makes
or removes a name there holds that lock until the mount answers, which it will never do: the thread
cannot end, the program cannot be killed.  The same holds for a thread in umount(2) or statvfs(2) of
the mount itself.  No news of names can be told without that lock (Linux 6.16 has an epoch that
takes none, and makes every name of the mount be looked up again), so somebody else has to abort.

The guardian holds neither a descriptor of the mount nor a secret: it is started afresh, with an
empty environment.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys

from megafs.mount import connection, guardian_process
from megafs.mount.mountpoint import Mounted

log = logging.getLogger(__name__)


class Guardian:
    """Watches over our process for the mount at *at*, and ends when our main thread has ended.

    To be made on that thread: the kernel tells the guardian of the end of the one that made it.
    """

    def __init__(self, at: Mounted) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        device = ""
        try:
            abort = connection.open_abort(at.connection)
        except OSError as exc:
            if os.geteuid() != 0:
                log.info(
                    "nobody watches over this mount: fusectl is not mounted at %s (%s)",
                    connection.FUSECTL,
                    exc.strerror,
                )
                return
            abort, device = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), at.device
        try:
            self._process = _start(abort, device)
        except OSError as exc:
            log.warning("nobody watches over this mount: %s", exc)
        finally:
            os.close(abort)

    @property
    def pid(self) -> int | None:
        """Of its process, if there is one."""
        return None if self._process is None else self._process.pid


def _start(abort: int, device: str) -> subprocess.Popen[bytes]:
    ours = [entry for entry in sys.path if os.path.isabs(entry)]
    code = (
        f"import sys; sys.path[:] = {ours!r}; from {guardian_process.__name__} import main;"
        " main(int(sys.argv[1]), sys.argv[2])"
    )
    # It starts with our mask, so that no signal ends it, from its first moment on.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        return subprocess.Popen(
            # -I: nothing from the environment; -S: no site, whose .pth files take their time.
            [sys.executable, "-I", "-S", "-c", code, str(os.getpid()), device],
            env={},
            stdin=abort,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
