"""A tree that answers from memory answers what the rows say, whatever changed them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from megafs.errors import Corrupt, Full, Refused
from megafs.journal import replica as replica_module
from megafs.journal.commit import VerifiedCommit
from megafs.tree import ops
from megafs.tree.inode import ROOT
from megafs.tree.ops import RENAME_EXCHANGE
from megafs.tree.schema import SequenceNumber
from megafs.tree.tree import Tree
from tests.tree.mounts import LONGEST, Journal, Mount

NAMES = ["a", "b", "c", "a/x", "a/y", "b/x"]
PATHS = st.sampled_from([f"/{name}" for name in NAMES])
KINDS = ["create", "mkdir", "write", "unlink", "rmdir", "chmod", "setxattr", "open", "mend"]
STEP = st.one_of(
    st.tuples(st.sampled_from(KINDS), PATHS),
    st.tuples(st.sampled_from(["rename", "exchange", "link", "unlink"]), PATHS, PATHS),
    st.tuples(
        st.sampled_from(["close", "log", "seal", "rewind", "bad commit", "full", "reader"]),
    ),
)
# Which mount, whether it first sees what the other did, what it does, and whether that goes out.
TURN = st.tuples(st.booleans(), st.booleans(), STEP, st.booleans())


class Watched:
    """A mount, with everything that its tree was ever asked for."""

    def __init__(self, mount: Mount) -> None:
        self.mount = mount
        self.inos: set[int] = {ROOT, 99}
        self.places: set[tuple[int, bytes]] = {(ROOT, b"nothing")}

    def check(self) -> None:
        """Both ways to ask agree, twice: the second time much of it is remembered."""
        plain = Tree(self.mount.replica.db, LONGEST)
        for _ in range(2):
            for parent, name, ino in list(
                plain.db.execute("SELECT parent, name, ino FROM dirents")
            ):
                self.places.add((parent, name))
                self.inos.add(ino)
            tree = self.mount.tree
            for ino in self.inos:
                found = tree.find(ino)
                assert found == plain.find(ino)
                if found is not None:
                    found.nlink = found.size = -1  # callers do such things
            for parent, name in self.places:
                assert tree.child(parent, name) == plain.child(parent, name)
                there = tree.lookup(parent, name)
                assert there == plain.lookup(parent, name)
                if there is not None:
                    there.mode = -1

    def do(self, step: tuple[str, ...]) -> None:
        mount = self.mount
        replica = mount.replica
        try:
            match step:
                case ("create", path):
                    mount.create(path, b"1")
                case ("mkdir", path):
                    mount.mkdir(path)
                case ("write", path):
                    mount.write(path, b"22")
                case ("unlink", path) | ("unlink", path, _):
                    mount.unlink(path)
                case ("rmdir", path):
                    mount.rmdir(path)
                case ("chmod", path):
                    mount.chmod(path, 0o700)
                case ("setxattr", path):
                    mount.setxattr(path, b"user.x", b"1")
                case ("open", path):
                    if mount.tree.inode(mount.ino(path)).is_file:
                        mount.open(path)
                case ("mend", path):
                    parent, name = mount.at(path)
                    sql = "SELECT * FROM dirents WHERE parent=? AND name=?"
                    row: Any = replica.db.execute(sql, (parent, name)).fetchone()
                    if row is not None:
                        for new in ((*row[:2], ROOT, row[3]), None):
                            replica.record(ops.Mend("dirents", tuple(row), new))
                            self.check()
                            replica.record(ops.Mend("dirents", new, tuple(row)))
                case ("rename", old, new):
                    mount.rename(old, new)
                case ("exchange", old, new):
                    mount.rename(old, new, RENAME_EXCHANGE)
                case ("link", old, new):
                    mount.link(old, new)
                case ("close",):
                    for ino in list(mount.opened):
                        mount.close(ino)
                case ("log",):
                    replica.log()
                case ("seal",):
                    replica.close_batch()
                case ("rewind",):
                    replica.rewind()
                case ("reader",):
                    replica.committed_reader().close()
                case ("full",):
                    self.full()
                case ("bad commit",):
                    self.bad_commit()
        except Refused:
            pass

    def full(self) -> None:
        """The disk is full when the batch is to be sealed."""
        replica = self.mount.replica
        put_state = replica._put_state

        def fails() -> None:
            raise apsw.FullError("full")

        replica._put_state = fails  # type: ignore[method-assign]
        try:
            replica.close_batch()
        except Full:
            pass
        finally:
            replica._put_state = put_state  # type: ignore[method-assign]

    def bad_commit(self) -> None:
        """Commits are applied, and given up when the last one does not fit."""
        commits = self.mount.journal.commits[self.mount.replica.sequence :]
        if commits:
            last = commits[-1]
            bad = VerifiedCommit(SequenceNumber(last.sequence + 2), last.hash, last.commit)
            with pytest.raises(Corrupt):
                self.mount.replica.follow([*commits, bad])


@pytest.fixture(autouse=True, params=[3, 1000])
def remembered(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(replica_module, "_REMEMBERED", request.param)
    yield request.param


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(turns=st.lists(TURN, max_size=25))
# A name that fsck puts back, of a file that another mount has removed.
@example(turns=[(False, True, ("unlink", "/b"), True), (True, False, ("mend", "/b"), False)])
def test_memory_and_rows_agree(
    tmp_path_factory: pytest.TempPathFactory,
    turns: list[tuple[bool, bool, tuple[str, ...], bool]],
) -> None:
    base = tmp_path_factory.mktemp("two")
    journal = Journal()
    both = []
    for number, name in ((1, "one"), (2, "two")):
        (base / name).mkdir()
        mount = Mount(journal, base / name, number, name)
        mount.replica.recover()
        both.append(Watched(mount))
    both[0].mount.mkdir("/a")
    both[0].mount.create("/b", b"b")
    both[0].mount.create("/a/x", b"x")
    both[0].mount.publish()
    for first, follows, step, publishes in turns:
        watched = both[0] if first else both[1]
        if follows:
            watched.mount.follow()
            watched.check()
        watched.do(step)
        watched.check()
        if publishes:
            watched.mount.publish()
            watched.check()
    for watched in both:
        watched.mount.publish()
        watched.check()
    both[0].mount.follow()
    both[0].check()
    assert both[0].mount.files() == both[1].mount.files()
    for watched in both:
        watched.mount.replica.close()


def test_memory_is_bounded_and_used(tmp_path: Path, remembered: int) -> None:
    (tmp_path / "one").mkdir()
    mount = Mount(Journal(), tmp_path / "one", 1, "one")
    for n in range(50):
        mount.create(f"/f{n}")
    for _ in range(2):
        for n in range(50):
            assert mount.tree.lookup(ROOT, b"f%d" % n) is not None
    tree = mount.tree
    tree.find(ROOT)
    assert len(tree._inodes) <= remembered
    assert len(tree._names) <= remembered
    asked: list[str] = []
    mount.replica.db.trace_v2(apsw.SQLITE_TRACE_STMT, lambda event: asked.append(event["sql"]))
    for n in range(45, 50):
        tree.lookup(ROOT, b"f%d" % n)
        tree.find(ROOT)
    assert bool(asked) == (remembered < 50)
    mount.replica.db.trace_v2(0, None)
    mount.replica.close()
