"""Read and write the golden objects of this directory; see README.md."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
SUMS = HERE / "SHA256SUMS"


@dataclass(frozen=True)
class Golden:
    """One object.  fields: all lines before the bytes, by name."""

    name: str
    fields: dict[str, str]
    data: bytes

    def hex(self, name: str) -> bytes:
        """The field of that name as bytes."""
        return bytes.fromhex(self.fields[name])


def read(path: Path) -> Golden:
    """Read one golden object."""
    head, _, body = path.read_text("utf-8").partition("\n\n")
    fields = dict(line.split(": ", 1) for line in head.splitlines())
    return Golden(path.stem, fields, base64.b64decode(body))


def all_objects() -> list[Golden]:
    """Every golden object, by name."""
    return [read(path) for path in sorted(HERE.glob("*.golden"))]


def add(name: str, fields: dict[str, str], data: bytes) -> bool:
    """Write a golden object and its sum unless it is there; return whether it was written."""
    path = HERE / f"{name}.golden"
    if path.exists():
        return False
    lines = [f"{key}: {value}" for key, value in fields.items()]
    body = base64.encodebytes(data).decode("ascii")
    path.write_text("\n".join(lines) + "\n\n" + body, "utf-8")
    with SUMS.open("a", encoding="ascii") as sums:
        sums.write(f"{digest(path)}  {path.name}\n")
    return True


def digest(path: Path) -> str:
    """The SHA-256 of a file, as in SHA256SUMS."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
