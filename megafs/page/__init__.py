"""The page that links open: static files, which any web server can serve (static/).

`megafs share page` writes them where they shall be served; never into the store, which could then
serve another page in their place.  sums.txt beside them has the SHA-256 of each.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

SUMS = "sums.txt"


def write_page(out: Path) -> list[str]:
    """Write the page into *out* and return the names of its files."""
    written = []
    for name, data in _contents(files(__name__) / "static", ""):
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(0o644)
        written.append(name)
    sums = [hashlib.sha256((out / name).read_bytes()).hexdigest() for name in written]
    lines = [f"{digest}  {name}\n" for digest, name in zip(sums, written, strict=True)]
    (out / SUMS).write_text("".join(lines))
    return [*written, SUMS]


def _contents(folder: Traversable, prefix: str) -> list[tuple[str, bytes]]:
    """Every file below *folder*: (name, contents), in order of name; types are for us alone."""
    found = []
    for item in sorted(folder.iterdir(), key=lambda item: item.name):
        name = prefix + item.name
        if item.is_dir():
            found += _contents(item, name + "/")
        elif not item.name.endswith(".d.ts"):
            found.append((name, item.read_bytes()))
    return found
