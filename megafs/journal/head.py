"""What this machine has seen of a volume: the newest commit, and the key header it used.

`head` in the state directory, apart from the replica, so that a lost replica does not turn a known
machine into a new one.  JSON, replaced atomically and durably before any fsync(2) that needs the
commit returns.  It holds numbers and hashes, no secret and no name.  A store that serves less, or
another history, is refused (docs/threats.md).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from megafs.durable import replace_file
from megafs.errors import Corrupt


@dataclass(frozen=True, slots=True)
class Seen:
    """sequence, hash: of the newest commit.  generation: of the key header.  slot: which opened."""

    fsid: str
    sequence: int
    hash: str
    generation: int
    slot: str = ""


def read(directory: Path) -> Seen | None:
    """What was remembered, or None on a machine that has not seen the volume."""
    path = directory / "head"
    try:
        fields = json.loads(path.read_text())
        return Seen(**fields)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, OSError) as exc:
        raise Corrupt(
            f"{path} cannot be read ({exc}): it remembers how far this machine has seen the volume."
            " If you are sure the store is right, remove the file"
        ) from exc


def write(directory: Path, seen: Seen) -> None:
    """Remember *seen*, durably; blocks for two syncs."""
    replace_file(directory / "head", json.dumps(asdict(seen)).encode())


def words(digest: bytes) -> str:
    """Four words for a hash, to compare by eye or on the telephone.

    Each stands for 11 bits, two letter pairs from a fixed table: 44 bits in all, enough to notice a
    different head, too few to prove an equal one.
    """
    number = int.from_bytes(digest[:8], "big") >> 20
    made = []
    for _ in range(4):
        number, part = number >> 11, number & 0x7FF
        made.append(_syllables(part))
    return " ".join(reversed(made))


_CONSONANTS = "bdfghjklmnprstvz"
_VOWELS = "aiou"


def _syllables(part: int) -> str:
    """Eleven bits as consonant-vowel-consonant-vowel, pronounceable in most languages."""
    text = ""
    for bits, letters in ((4, _CONSONANTS), (2, _VOWELS), (4, _CONSONANTS), (1, "ae")):
        text += letters[part & ((1 << bits) - 1)]
        part >>= bits
    return text
