"""Whether a mount can be made at all: looked at before anything slow or secret is done.

Apart from lifecycle.py, which imports all that a mount is made of.
"""

from __future__ import annotations

from megafs.errors import Busy, MountFailed
from megafs.mount import control_client, guard, mountpoint
from megafs.mount.control_messages import MountStatus, StatusRequest
from megafs.mount.mount_record import is_alive, record_of
from megafs.mount.mountpoint import Directory
from megafs.mount.options import MountOptions


def prepare(at: str, options: MountOptions) -> Directory:
    """Return which directory *at* is; raise MegafsError if nothing can be mounted there."""
    mountpoint.check_fuse(allow_other=options.allow_other)
    record = record_of(at)
    if record is not None and is_alive(record):
        try:
            status = control_client.ask(record, StatusRequest(), MountStatus, patience=5.0)
        except MountFailed:
            pass  # its pid is somebody else's by now
        else:
            if status.state == "draining":
                raise Busy(
                    f"the mount before at {at} (process {record.pid}) is still sending"
                    f" {status.staged_bytes} bytes: megafs umount {at} waits for it"
                )
    with guard.lifted(at):
        return mountpoint.check(at, nonempty=options.nonempty)
