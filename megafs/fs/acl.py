"""POSIX access control lists, as Linux keeps them in extended attributes.

The kernel checks them (FUSE_POSIX_ACL); the filesystem keeps an access ACL and the mode in step
and hands a directory's default ACL down to what is made in it.  Bytes: u32 version 2, then for
each entry u16 tag, u16 permissions, u32 id, all little-endian (linux/posix_acl_xattr.h).  Rules:
POSIX.1e draft 17, section 23, as in acl(5).
"""

from __future__ import annotations

import errno as e
import struct
from typing import NamedTuple

from megafs.errors import Refused

ACCESS = b"system.posix_acl_access"
DEFAULT = b"system.posix_acl_default"

USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20

_VERSION = struct.pack("<I", 2)
_ENTRY = struct.Struct("<HHI")
_UNDEFINED_ID = 0xFFFFFFFF


class AclEntry(NamedTuple):
    """One entry: a tag and an id say for whom, the permissions are of rwx (4, 2, 1)."""

    tag: int
    permissions: int
    id: int


def parse(value: bytes) -> list[AclEntry]:
    """The entries of an ACL; EINVAL if it is not one, EOPNOTSUPP for another version."""
    if value[:4] != _VERSION:
        raise Refused(e.EOPNOTSUPP)
    if (len(value) - 4) % _ENTRY.size:
        raise Refused(e.EINVAL)
    entries = [AclEntry(*fields) for fields in _ENTRY.iter_unpack(value[4:])]
    tags = [entry.tag for entry in entries]
    if entries and (
        any(tags.count(tag) != 1 for tag in (USER_OBJ, GROUP_OBJ, OTHER))
        or tags.count(MASK) > 1
        or ((USER in tags or GROUP in tags) and MASK not in tags)
        or any(entry.permissions > 7 for entry in entries)
        or not set(tags) <= {USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER}
    ):
        raise Refused(e.EINVAL)
    return entries


def build(entries: list[AclEntry]) -> bytes:
    """The bytes of an ACL."""
    return _VERSION + b"".join(_ENTRY.pack(*entry) for entry in entries)


def is_minimal(entries: list[AclEntry]) -> bool:
    """Whether the mode alone says the same."""
    return len(entries) <= 3


def mode_of(entries: list[AclEntry], mode: int) -> int:
    """The mode that goes with an access ACL: its group bits are the mask, if there is one."""
    by_tag = {entry.tag: entry.permissions for entry in entries}
    group = by_tag.get(MASK, by_tag[GROUP_OBJ])
    return mode & ~0o777 | by_tag[USER_OBJ] << 6 | group << 3 | by_tag[OTHER]


def with_mode(entries: list[AclEntry], mode: int) -> list[AclEntry]:
    """The access ACL after chmod(2) to *mode*."""
    has_mask = any(entry.tag == MASK for entry in entries)
    changed = []
    for entry in entries:
        if entry.tag == USER_OBJ:
            entry = entry._replace(permissions=mode >> 6 & 7)
        elif entry.tag == OTHER:
            entry = entry._replace(permissions=mode & 7)
        elif entry.tag == (MASK if has_mask else GROUP_OBJ):
            entry = entry._replace(permissions=mode >> 3 & 7)
        changed.append(entry)
    return changed


def inherit(default: bytes, mode: int) -> tuple[int, list[AclEntry]]:
    """The mode and access ACL of a new file in a directory with this default ACL.

    Each class gets what both the ACL and the mode that was asked for allow.
    """
    entries = parse(default)
    has_mask = any(entry.tag == MASK for entry in entries)
    made = []
    for entry in entries:
        if entry.tag == USER_OBJ:
            entry = entry._replace(permissions=entry.permissions & mode >> 6 & 7)
        elif entry.tag == OTHER:
            entry = entry._replace(permissions=entry.permissions & mode & 7)
        elif entry.tag == (MASK if has_mask else GROUP_OBJ):
            entry = entry._replace(permissions=entry.permissions & mode >> 3 & 7)
        made.append(entry)
    return mode_of(made, mode), made
