"""The numbers of mounts: every process that opens a volume has its own.

A number is 40 random bits and, below them, 23 bits that it shares with all processes of one state
directory and of its copies: they are kin.
"""

from __future__ import annotations

from megafs import clock

_FAMILY_BITS = 23
_FAMILY = (1 << _FAMILY_BITS) - 1


def fresh_number(state_number: int) -> int:
    """A number that no mount has had.  state_number: that of the state directory."""
    while True:
        drawn = int.from_bytes(clock.random_bytes(5), "big")
        number = drawn << _FAMILY_BITS | (state_number & _FAMILY)
        if drawn and number != state_number:
            return number


def is_kin(one: int, other: int) -> bool:
    """Whether two mounts ran from one state directory, or from copies of one.

    Two that did not are taken for kin once in 8 million times: nothing is decided by it but what is
    told to the user, and whose unlinked files are to be cleared away when they are long dead.
    """
    return one & _FAMILY == other & _FAMILY
