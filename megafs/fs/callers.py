"""A caller's groups and capabilities, which a FUSE request does not carry.

A FUSE request names a user, one group and a thread.  The rest is read from /proc/TID/status
(proc(5)): the thread waits for our answer, so it is still there.  Where it cannot be read (the
caller is in another process namespace), the caller has no more groups and no capabilities.
"""

from __future__ import annotations

import functools

from msgspec import Struct

from megafs.fs.requests import Caller

_CAP_FSETID = 1 << 4
_CAP_SYS_ADMIN = 1 << 21


class _Credentials(Struct, frozen=True):
    """groups: the supplementary ones.  capabilities: the effective set, as bits."""

    groups: frozenset[int] = frozenset()
    capabilities: int = 0


def may_keep_setgid(caller: Caller, gid: int) -> bool:
    """Whether set-group-ID of a file of group *gid* stays when *caller* changes its mode.

    Linux asks for a member of the group, or CAP_FSETID (posix_acl_update_mode, CVE-2016-7097).
    """
    if caller.gid == gid:
        return True
    found = _credentials(caller.pid)
    return gid in found.groups or bool(found.capabilities & _CAP_FSETID)


def sees_trusted(caller: Caller) -> bool:
    """Whether *caller* has CAP_SYS_ADMIN, which xattr(7) asks for to see `trusted.*` names."""
    return bool(_credentials(caller.pid).capabilities & _CAP_SYS_ADMIN)


def _credentials(thread: int) -> _Credentials:
    if not thread:
        return _Credentials()
    groups: frozenset[int] = frozenset()
    capabilities = 0
    try:
        with open(f"/proc/{thread}/status", "rb") as file:
            for line in file:
                if line.startswith(b"Groups:"):
                    groups = frozenset(map(int, line.split()[1:]))
                elif line.startswith(b"CapEff:"):
                    capabilities = int(line.split()[1], 16)
        # The root of a user namespace has all capabilities, and none over what is outside of it.
        if capabilities and _user_ids(str(thread)) != _own_user_ids():
            capabilities = 0
    except (OSError, ValueError):
        return _Credentials()
    return _Credentials(groups, capabilities)


def _user_ids(process: str) -> bytes:
    with open(f"/proc/{process}/uid_map", "rb") as file:
        return file.read()


@functools.cache
def _own_user_ids() -> bytes:
    return _user_ids("self")
