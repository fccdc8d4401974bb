"""The keyring of the desktop (Secret Service, KWallet), if this session has one.

Behind the package `keyring`, of which this is the one importer.  Everything here blocks, for long
if the desktop asks its user for a password: call it in a thread.
"""

from __future__ import annotations

import logging
import os

from megafs.errors import Unavailable

log = logging.getLogger(__name__)

#: How entries are named there.
_SERVICE = "megafs"
#: Backends below this keep what they are given in plain files (keyrings.alt has 0.5), or are none.
_LEAST_PRIORITY = 1.0


def is_there() -> bool:
    """Whether there is a keyring that can be used."""
    # Without a session bus, looking for one takes time, and may start a bus.
    if (
        not os.environ.get("DBUS_SESSION_BUS_ADDRESS")
        and "PYTHON_KEYRING_BACKEND" not in os.environ
    ):
        return False
    try:
        import keyring

        return float(keyring.get_keyring().priority) >= _LEAST_PRIORITY
    except Exception as exc:  # a foreign backend may raise anything
        log.debug("no keyring: %s", type(exc).__name__)
        return False


def get(name: str) -> str | None:
    """Return the secret called *name*; None if there is none.  Unavailable if it is locked."""
    try:
        import keyring

        return keyring.get_password(_SERVICE, name)
    except Exception as exc:
        raise Unavailable(f"the desktop's keyring does not answer ({type(exc).__name__})") from None


def put(name: str, secret: str) -> None:
    """Keep *secret* as *name*, over an older one."""
    try:
        import keyring

        keyring.set_password(_SERVICE, name, secret)
    except Exception as exc:
        raise Unavailable(f"the desktop's keyring does not answer ({type(exc).__name__})") from None


def delete(name: str) -> None:
    """Forget *name*, if it is there."""
    try:
        import keyring

        if keyring.get_password(_SERVICE, name) is not None:
            keyring.delete_password(_SERVICE, name)
    except Exception as exc:
        raise Unavailable(f"the desktop's keyring does not answer ({type(exc).__name__})") from None
