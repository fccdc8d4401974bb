"""Whether a mount can be made at all: looked at before anything slow or secret is done.

Apart from session.py, which imports all that a mount is made of.
"""

from __future__ import annotations

from megafs.errors import Busy, MountFailed
from megafs.mount import control_client, mountpoint
from megafs.mount.options import MountOptions


def prepare(at: str, options: MountOptions) -> None:
    """Raise a sentence if the mount cannot be made, before anything slow or secret is done."""
    mountpoint.check_fuse(allow_other=options.allow_other)
    card = control_client.card_of(at)
    if card is not None and control_client.is_running(card.pid):
        try:
            told = control_client.call(card, "status", patience=5.0)
        except MountFailed:
            pass  # its pid is somebody else's by now
        else:
            if told.get("state") == "draining":
                raise Busy(
                    f"the mount before at {at} (process {card.pid}) is still sending"
                    f" {told.get('staged_bytes', 0)} bytes: megafs umount {at} waits for it"
                )
    mountpoint.check(at, nonempty=options.nonempty)
