"""Where the code that these tests look at stands, and how they read it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]


def modules(*folders: str) -> Iterator[tuple[str, Path]]:
    """(name for messages, path) of every module below the folders, which are relative to ROOT."""
    for folder in folders:
        found = sorted((ROOT / folder).rglob("*.py"))
        assert found, f"no module below {folder}: was it renamed?"
        for path in found:
            yield str(path.relative_to(ROOT)), path


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))
