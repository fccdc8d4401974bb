"""Inodes, whether a name leads to them or not."""

from __future__ import annotations

from typing import Any

import apsw


def link_counts(db: apsw.Connection) -> list[tuple[int, int]]:
    """Every inode's number and link count, in order of the numbers."""
    rows: list[Any] = db.execute("SELECT ino, nlink FROM inodes ORDER BY ino").fetchall()
    return rows
