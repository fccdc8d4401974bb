"""Which names need one winner, and how each of them gets it.

    commits/<16 digits>       the id of the next commit lies on the one before (chain.py)
    packs/*, mounts/*, and    one writer ever makes them, under a name that was drawn at random:
    checkpoints/<n>/<32 hex>  any fresh id will do
    everything else           the id that a claim binds to the name (claims.py): keys/*,
                              checkpoints/<n>/manifest, probe/*

docs/decisions/0023-ids-agreed-beforehand.md
"""

from __future__ import annotations

import re

_COMMIT = re.compile(r"commits/([0-9]{16})\Z")
_ONE_WRITER = re.compile(r"(packs|mounts)/|checkpoints/[0-9]{16}/[0-9a-f]{32}\Z")
COMMITS = "commits/"
#: What the files of claims end with; names of objects have no dot.
CLAIM = ".claim"
#: Names that are drawn at random, raced for, deleted, and never used again.
_ONCE = "probe/"


def commit_number(name: str) -> int | None:
    """Return the number of the commit *name*, from 1 on; None if it is none."""
    found = _COMMIT.match(name)
    return int(found[1]) or None if found else None


def commit_name(number: int) -> str:
    return f"{COMMITS}{number:016d}"


def has_one_writer(name: str) -> bool:
    """Whether nobody else wants to create an object of the name."""
    return bool(_ONE_WRITER.match(name))


def comes_back(name: str) -> bool:
    """Whether a name may be used again after its object was deleted."""
    return not name.startswith(_ONCE)
