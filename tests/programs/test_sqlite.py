"""sqlite3 in rollback and WAL mode, with readers beside the writer, and killed in between."""

from __future__ import annotations

import sqlite3
import sys
import threading
from pathlib import Path

import pytest

from tests.mount.conftest import Processes
from tests.programs.conftest import Disk, run

pytestmark = [pytest.mark.fuse, pytest.mark.timeout(150)]


def connect(path: Path, mode: str) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=30, isolation_level=None)
    got = db.execute(f"PRAGMA journal_mode={mode}").fetchone()[0]
    assert got == mode
    return db


@pytest.mark.parametrize("mode", ["delete", "truncate", "persist", "wal"])
def test_written_read_and_sound(here: Path, mode: str) -> None:
    db = connect(here / "db", mode)
    db.execute("PRAGMA synchronous=NORMAL")
    db.execute("CREATE TABLE t(n INTEGER PRIMARY KEY, text)")
    for n in range(5):
        with db:
            db.execute("BEGIN")
            db.executemany("INSERT INTO t(text) VALUES(?)", [("x" * 100 + str(n),)] * 500)
    db.execute("BEGIN")
    db.execute("DELETE FROM t")
    db.execute("ROLLBACK")
    assert db.execute("SELECT count(*) FROM t").fetchone() == (2500,)
    db.execute("DELETE FROM t WHERE n % 3 = 0")
    db.execute("VACUUM")
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()
    assert run("sqlite3", here / "db", "PRAGMA integrity_check; SELECT count(*) FROM t") == (
        "ok\n1667\n"
    )


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_readers_see_whole_transactions_while_one_writes(here: Path, mode: str) -> None:
    db = connect(here / "db", mode)
    db.execute("PRAGMA synchronous=OFF")
    db.execute("CREATE TABLE t(n)")
    stop = threading.Event()
    wrong: list[object] = []
    looks = 0

    def read() -> None:
        nonlocal looks
        try:
            mine = sqlite3.connect(here / "db", timeout=30)
            while not stop.is_set():
                (count,) = mine.execute("SELECT count(*) FROM t").fetchone()
                looks += 1
                if count % 10:
                    wrong.append(count)
            mine.close()
        except Exception as exc:
            wrong.append(exc)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        for _ in range(20):
            db.execute("BEGIN IMMEDIATE")
            db.executemany("INSERT INTO t VALUES(?)", [(n,) for n in range(10)])
            db.execute("COMMIT")
    finally:
        stop.set()
        for reader in readers:
            reader.join(60)
    assert not wrong
    assert looks > 0
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert db.execute("SELECT count(*) FROM t").fetchone() == (200,)
    db.close()


WRITER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
db.execute("PRAGMA journal_mode=" + sys.argv[2])
# FULL does not sync the directory after the journal's removal, which is what commits.
db.execute("PRAGMA synchronous=EXTRA")
db.execute("CREATE TABLE IF NOT EXISTS t(n)")
for n in range(10**6):
    db.execute("BEGIN IMMEDIATE")
    db.executemany("INSERT INTO t VALUES(?)", [(n,)] * 10)
    db.execute("COMMIT")
    print(n, flush=True)
"""


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_a_killed_writer_leaves_whole_transactions(
    here: Path, programs: Processes, mode: str
) -> None:
    writer = programs.start(sys.executable, "-c", WRITER, here / "db", mode)
    assert writer.stdout is not None
    for _ in range(5):
        done = int(writer.stdout.readline())
    writer.kill()
    writer.wait()
    db = sqlite3.connect(here / "db", timeout=30)
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    (count,) = db.execute("SELECT count(*) FROM t").fetchone()
    assert count % 10 == 0
    assert count >= (done + 1) * 10
    db.close()


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_the_mount_killed_under_a_writer_what_was_committed_is_there(
    own_disk: Disk, programs: Processes, mode: str
) -> None:
    own_disk.mount("-o", "fsync=local")
    writer = programs.start(sys.executable, "-c", WRITER, own_disk.mnt / "db", mode)
    assert writer.stdout is not None
    for _ in range(10):
        done = int(writer.stdout.readline())
    own_disk.crash()
    writer.kill()
    done = max([done, *map(int, writer.stdout.read().split())])
    writer.wait()
    own_disk.mount()
    db = sqlite3.connect(own_disk.mnt / "db", timeout=30)
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    (count,) = db.execute("SELECT count(*) FROM t").fetchone()
    assert count % 10 == 0
    assert count >= (done + 1) * 10
    db.close()
    own_disk.compared_elsewhere()
