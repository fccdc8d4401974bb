"""Databases that live as long as the process that made them."""

from __future__ import annotations

import os
from pathlib import Path

import apsw

from megafs import clock
from megafs.errors import Fault, Full
from megafs.private_files import check_directory, make_directories


def scratch(directory: Path, cache_kib: int = 4096) -> apsw.Connection:
    """A database for a while: a file without a name, under a key that only memory holds."""
    path = directory / f"scratch-{clock.random_bytes(8).hex()}"
    old = os.umask(0o077)
    try:
        make_directories(directory)
        check_directory(directory, instead="choose another directory with --cache-dir")
        db = apsw.Connection(str(path))
        try:
            db.pragma("hexkey", clock.random_bytes(32).hex())
            db.pragma("temp_store", 2)
            db.pragma("cache_size", -cache_kib)
            db.pragma("journal_mode", "memory")
            db.pragma("synchronous", 0)
            db.pragma("locking_mode", "exclusive")
            db.execute("CREATE TABLE scratch(x)")  # opens the file, which may then lose its name
        except BaseException:
            db.close()
            raise
        finally:
            path.unlink(missing_ok=True)
    except apsw.FullError as exc:
        raise Full(f"{directory}: the disk is full") from exc
    except (apsw.Error, OSError) as exc:
        raise Fault(f"{directory}: {exc}") from exc
    finally:
        os.umask(old)
    return db
