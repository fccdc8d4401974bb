"""The log of operations and the batch that is open: each operation is done once, whatever was lost.

A batch is written to the log piece by piece while SQLite's transaction is open; "lost" below means
that the process ended, so that only the log has what came after the last closed batch.
"""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import apsw
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megafs.errors import Full
from megafs.journal import database
from megafs.journal import replica as replica_module
from megafs.journal.operation_log import OperationLog
from megafs.tree import ops
from tests.tree.mounts import KEYRING, Journal, Mount

Files = dict[str, bytes | None]


def place(base: Path, name: str) -> Path:
    directory = base / name
    directory.mkdir()
    return directory


def again(mount: Mount, directory: Path, base: Path, name: str) -> Mount:
    """The mount of another process, from a copy of what lies in *directory* now."""
    shutil.copytree(directory, base / name)
    other = Mount(mount.journal, base / name, mount.replica.mount, mount.replica.host)
    other.replica.recover()
    return other


def logged(directory: Path) -> list[tuple[int, list[ops.Operation]]]:
    """What another process would find in the log."""
    log = OperationLog(directory, KEYRING, 1)
    return [
        (batch, [op for frame in frames for op in ops.decode(frame.operations)])
        for batch, frames in log.read()
    ]


@pytest.fixture
def mount(tmp_path: Path) -> Mount:
    made = Mount(Journal(), place(tmp_path, "a"), 1, "a")
    made.replica.recover()
    return made


def test_frames_of_an_open_batch_are_one_batch_to_the_next_process(
    tmp_path: Path, mount: Mount
) -> None:
    first = tmp_path / "a"
    batch = 0
    states: list[Files] = []
    for n in range(6):
        mount.mkdir(f"/d{n}")
        mount.create(f"/d{n}/f", b"%d" % n)
        mount.rename(f"/d{n}/f", f"/g{n}")
        number = mount.replica.log()
        assert batch in (0, number)
        batch = number
        states.append(mount.files())
        mount.create(f"/not logged {n}", b"")
        found = again(mount, first, tmp_path, f"copy{n}")
        assert list(found.replica.pending) == [batch]
        assert found.files() == states[-1]
        mount.unlink(f"/not logged {n}")
    assert mount.replica.close_batch() == batch
    assert again(mount, first, tmp_path, "sealed").files() == states[-1]


def test_a_log_cut_anywhere_gives_the_closes_before_the_cut(tmp_path: Path, mount: Mount) -> None:
    first = tmp_path / "a"
    states = [mount.files()]
    ends = [0]
    for n in range(5):
        mount.create(f"/f{n}", b"%d" % n)
        mount.replica.log()
        states.append(mount.files())
        ends.append((first / "ops-00000001").stat().st_size)
    for n, keep in enumerate([*ends, *(end - 1 for end in ends[1:]), *(e + 9 for e in ends[:-1])]):
        shutil.copytree(first, tmp_path / f"cut{n}")
        with (tmp_path / f"cut{n}" / "ops-00000001").open("r+b") as file:
            file.truncate(keep)
        found = Mount(mount.journal, tmp_path / f"cut{n}", 1, "a")
        found.replica.recover()
        assert found.files() == states[sum(end <= keep for end in ends[1:])]


def test_a_process_that_ends_between_the_log_and_sqlites_commit(
    tmp_path: Path, mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount.create("/a", b"a")
    mount.replica.log()
    mount.create("/b", b"b")
    rebase = mount.replica._rebase
    finish = rebase.finish

    def copied(*args: Any) -> bytes:
        shutil.copytree(tmp_path / "a", tmp_path / "between")
        return finish(*args)

    monkeypatch.setattr(rebase, "finish", copied)
    batch = mount.replica.close_batch()

    found = Mount(mount.journal, tmp_path / "between", 1, "a")
    assert found.files() == {}
    found.replica.recover()
    assert found.files() == {"/a": b"a", "/b": b"b"}
    assert list(found.replica.pending) == [batch]


@pytest.mark.parametrize("logged_before", [True, False])
def test_a_full_disk_at_the_seal_logs_nothing_twice(
    tmp_path: Path, mount: Mount, monkeypatch: pytest.MonkeyPatch, logged_before: bool
) -> None:
    mount.create("/a", b"a")
    if logged_before:
        mount.replica.log()
    mount.create("/b", b"b")
    with monkeypatch.context() as patched:
        patched.setattr(
            mount.replica, "_put_state", lambda: (_ for _ in ()).throw(apsw.FullError("full"))
        )
        with pytest.raises(Full):
            mount.replica.close_batch()
    assert mount.files() == {"/a": b"a", "/b": b"b"}
    assert mount.replica.pending == {}
    mount.create("/c", b"c")
    batch = mount.replica.log()
    mount.create("/d", b"d")
    copy = again(mount, tmp_path / "a", tmp_path, "copy")

    assert mount.replica.close_batch() == batch
    ((number, found),) = logged(tmp_path / "a")
    assert number == batch
    assert found == mount.replica.operations(batch)
    assert copy.files() == {"/a": b"a", "/b": b"b", "/c": b"c"}


def test_the_end_of_a_batch_that_only_sqlite_has_is_logged_again(
    tmp_path: Path, mount: Mount
) -> None:
    """A power cut took it from the log; what comes next stands upon it."""
    mount.mkdir("/d")
    mount.replica.log()
    half = (tmp_path / "a" / "ops-00000001").stat().st_size
    mount.mkdir("/d/e")
    mount.replica.close_batch()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with (tmp_path / "b" / "ops-00000001").open("r+b") as file:
        file.truncate(half)
    second = Mount(mount.journal, tmp_path / "b", 1, "a")
    second.replica.recover()
    second.create("/d/e/f", b"f")
    second.replica.log()
    for path in (tmp_path / "b").glob("replica.db*"):
        path.unlink()

    third = Mount(mount.journal, tmp_path / "b", 1, "a")
    third.replica.recover()
    assert third.files() == {"/d": None, "/d/e": None, "/d/e/f": b"f"}


def test_what_was_dropped_within_a_batch_stays_dropped(tmp_path: Path, mount: Mount) -> None:
    for n in range(4):
        mount.create(f"/f{n}", b"%d" % n)
        mount.replica.log()
    found = again(mount, tmp_path / "a", tmp_path, "b")
    found.mkdir("/later")
    found.replica.close_batch()
    batch = min(found.replica.pending)
    third = next(
        n
        for n, op in enumerate(found.replica.operations(batch))
        if isinstance(op, ops.Create) and op.name == b"f2"
    )

    # The contents are named; its making was written to the log with them, and goes with them.
    # (f2, f3, /later, and the range that the second process took its numbers from.)
    assert found.replica.drop_pending_from(batch, third + 1) == 2 + 2 + 1 + 1
    assert found.files() == {"/f0": b"0", "/f1": b"1"}
    assert [number for number, _ in logged(tmp_path / "b")] == [batch]
    for path in (tmp_path / "b").glob("replica.db*"):
        path.unlink()
    last = again(found, tmp_path / "b", tmp_path, "c")
    assert last.files() == {"/f0": b"0", "/f1": b"1"}


def test_a_batch_that_nobody_commits_does_not_grow_for_ever(
    mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_module, "_BATCH_OPERATIONS", 10)
    batches = set()
    for n in range(50):
        mount.create(f"/f{n}")
        batches.add(mount.replica.log())
    assert len(mount.replica.pending) >= 4
    assert mount.replica.open_operations < 10
    assert batches >= set(mount.replica.pending)
    monkeypatch.setattr(replica_module, "_BATCH_OPERATIONS", 10**6)
    monkeypatch.setattr(replica_module, "_BATCH_MEMORY", 1000)
    mount.create("/large", bytes(2000))
    mount.replica.log()
    assert mount.replica.open_operations == 0


def test_a_batch_that_others_commits_changed_is_taken_up_once(tmp_path: Path, mount: Mount) -> None:
    """Frames of an open batch, a lost race, more frames: then the replica is lost."""
    other = Mount(mount.journal, place(tmp_path, "other"), 2, "other")
    mount.create("/f", b"ours")
    mount.replica.log()
    mount.create("/g", b"g")
    other.create("/f", b"theirs")
    other.publish()
    mount.follow()
    mount.create("/h", b"h")
    mount.replica.log()
    mount.create("/i", b"i")
    mount.replica.log()
    expected = mount.files()
    found = again(mount, tmp_path / "a", tmp_path, "b")
    assert found.files() == expected
    shutil.copytree(tmp_path / "b", tmp_path / "c")
    for path in (tmp_path / "c").glob("replica.db*"):
        path.unlink()
    rebuilt = Mount(mount.journal, tmp_path / "c", 1, "a")
    rebuilt.replica.recover()

    def plain(files: Files) -> list[bytes | None]:
        return sorted(files.values(), key=repr)

    assert plain(rebuilt.files()) == plain(expected)
    rebuilt.publish()
    other.follow()
    assert other.files() == rebuilt.files()


STEPS = st.lists(
    st.sampled_from(["create", "write", "rename", "unlink", "log", "seal", "publish", "die"]),
    min_size=1,
    max_size=30,
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(STEPS, st.randoms(use_true_random=False))
def test_any_lives_end_where_the_log_was(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str], rng: Any
) -> None:
    """However often the process ends: what was logged is there, once, and nothing else."""
    base = tmp_path_factory.mktemp("lives")
    place(base, "0")
    journal = Journal()
    mount = Mount(journal, base / "0", 1, "a")
    mount.replica.recover()
    safe = mount.files()
    lives = 0
    for n, step in enumerate(steps):
        files = [path for path, data in mount.files().items() if data is not None]
        if step == "create":
            mount.create(f"/f{n}", b"%d" % n)
        elif step == "write" and files:
            mount.write(rng.choice(files), b"again %d" % n)
        elif step == "rename" and files:
            mount.rename(rng.choice(files), f"/r{n}")
        elif step == "unlink" and files:
            mount.unlink(rng.choice(files))
        elif step in ("log", "seal", "publish"):
            batch = mount.replica.log() if step == "log" else mount.replica.close_batch()
            assert batch >= max(mount.replica.pending, default=0)
            if step == "publish":
                mount.publish()
            safe = mount.files()
        elif step == "die":
            lives += 1
            if rng.random() < 0.3:
                for path in (base / str(lives - 1)).glob("replica.db*"):
                    path.unlink()
            dead, mount = mount, again(mount, base / str(lives - 1), base, str(lives))
            dead.replica.close()  # only its files: the next one works on a copy
            assert mount.files() == safe
    mount.replica.log()
    final = mount.files()
    last = again(mount, base / str(lives), base, "last")
    assert last.files() == final
    last.publish()
    other = Mount(journal, place(base, "other"), 2, "other")
    assert other.files() == final
    for left in (mount, last, other):
        left.replica.close()


def test_a_further_frame_of_another_place_does_not_open(tmp_path: Path) -> None:
    """Where a frame belongs in its batch is sealed with it."""
    directory = place(tmp_path, "x")
    log = OperationLog(directory, KEYRING, 1)
    log.read()
    log.append(7, b"a")
    log.append(7, b"b", 1)
    path = directory / "ops-00000001"
    data = bytearray(path.read_bytes())
    at = data.rindex(b"\0\0\0\1", 0, data.index(b"\0\0\0\1", 20) + 4)
    data[at + 3] = 2
    path.write_bytes(data)
    again = OperationLog(directory, KEYRING, 1)

    ((batch, frames),) = again.read()
    assert (batch, [frame.operations for frame in frames]) == (7, [b"a"])


@pytest.mark.parametrize("tidied", [True, False])
def test_sqlites_own_log_stays_short(
    tmp_path: Path, mount: Mount, monkeypatch: pytest.MonkeyPatch, tidied: bool
) -> None:
    """A thread copies it; should none, a COMMIT does."""
    monkeypatch.setattr(database, "_WAL_PAGES", 50)
    monkeypatch.setattr(database, "_WAL_MOST", 100 if not tidied else 10**6)
    mount.replica._database._wal_due = 50
    copied = 0
    for n in range(200):
        mount.create(f"/f{n}", b"%d" % n)
        mount.replica.close_batch()
        tidying = mount.replica.wal_copier() if tidied else None
        if tidying is not None:
            thread = threading.Thread(target=tidying)
            thread.start()
            thread.join()
            copied += 1
    assert (tmp_path / "a" / "replica.db-wal").stat().st_size < 200 * 4096
    assert (copied > 3) == tidied
    assert len(again(mount, tmp_path / "a", tmp_path, "copy").files()) == 200
