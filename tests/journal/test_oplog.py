"""The log of operations: what was synced is there, and what is there is a prefix."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megafs.crypto.volume_keys import Keyring
from megafs.journal import operation_log
from megafs.journal.operation_log import OperationLog

RING = Keyring(bytes(range(16)), {0: bytes(range(32))}, 0)


def opened(directory: Path, mount: int = 1) -> tuple[OperationLog, list[tuple[int, bytes]]]:
    log = OperationLog(directory, RING, mount)
    return log, [(batch, b"".join(f.operations for f in frames)) for batch, frames in log.read()]


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_what_was_appended_is_read(tmp_path: Path) -> None:
    log, _ = opened(tmp_path)
    batches = [(n, b"ops %d" % n) for n in (3, 4, 5, 1000)]
    for batch, ops in batches:
        log.append(batch, ops)
    log.sync()

    assert opened(tmp_path)[1] == batches


def test_a_second_process_goes_on_in_a_new_file(tmp_path: Path) -> None:
    first, _ = opened(tmp_path)
    first.append(1, b"a")
    second, found = opened(tmp_path)
    second.append(2, b"b")

    assert found == [(1, b"a")]
    assert opened(tmp_path)[1] == [(1, b"a"), (2, b"b")]
    assert len(files(tmp_path)) == 2


def restored(directory: Path) -> list[tuple[int, int, bytes]]:
    found: list[tuple[int, int, bytes]] = []
    OperationLog(directory, RING, 1).read(
        lambda *piece: found.append((*piece[:2], bytes(piece[2])))
    )
    return found


def test_chunks_come_along_and_are_given_back(tmp_path: Path) -> None:
    log, _ = opened(tmp_path)
    pieces = [(7, 0, b"x" * 3000), (1 << 62, 12345, b"y")]
    log.append(5, b"a", pieces=pieces)
    log.append(5, b"b", 1, pieces=[(7, 3000, b"z")])
    log.append(6, b"c")
    log.sync()

    assert opened(tmp_path)[1] == [(5, b"ab"), (6, b"c")]
    assert restored(tmp_path) == [*pieces, (7, 3000, b"z")]


@pytest.mark.parametrize("at", [60, 2000, 3100])
def test_a_chunk_that_is_not_whole_ends_the_log(tmp_path: Path, at: int) -> None:
    log, _ = opened(tmp_path)
    log.append(4, b"before")
    size = (tmp_path / "ops-00000001").stat().st_size
    log.append(5, b"a", pieces=[(7, 0, bytes(3000))])
    data = bytearray((tmp_path / "ops-00000001").read_bytes())
    data[size + at] ^= 1
    (tmp_path / "ops-00000001").write_bytes(data)

    assert opened(tmp_path)[1] == [(4, b"before")]
    assert restored(tmp_path) == ([(7, 0, bytes(3000))] if at > 3080 else [])


def test_a_file_with_a_chunk_of_an_uncommitted_batch_stays(tmp_path: Path) -> None:
    log, _ = opened(tmp_path)
    log.append(5, b"a", pieces=[(7, 0, bytes(9 << 20))])
    log.append(6, b"b", pieces=[(7, 9 << 20, b"z")])
    log.forget(4)
    assert [offset for _, offset, _ in restored(tmp_path)] == [0, 9 << 20]
    log.forget(5)
    assert [offset for _, offset, _ in restored(tmp_path)] == [9 << 20]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.binary(max_size=300), min_size=1, max_size=8), st.data())
def test_any_truncation_gives_a_prefix(
    tmp_path_factory: pytest.TempPathFactory, operations: list[bytes], data: st.DataObject
) -> None:
    base = tmp_path_factory.mktemp("log")
    log, _ = opened(base)
    ends = []
    for n, ops in enumerate(operations, 1):
        log.append(n, ops)
        ends.append((base / "ops-00000001").stat().st_size)
    keep = data.draw(st.integers(0, ends[-1]))
    os.truncate(base / "ops-00000001", keep)

    found = opened(base)[1]

    whole = sum(end <= keep for end in ends)
    assert found == list(enumerate(operations, 1))[:whole]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_garbage_behind_or_inside_ends_the_log_quietly(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    base = tmp_path_factory.mktemp("log")
    log, _ = opened(base)
    expected = [(n, b"operations %d" % n) for n in range(1, 6)]
    for batch, ops in expected:
        log.append(batch, ops)
    path = base / "ops-00000001"
    spoilt = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(spoilt)))
    spoilt[at:] = data.draw(st.binary(max_size=100)) if data.draw(st.booleans()) else bytes(200)
    path.write_bytes(spoilt)

    found = opened(base)[1]

    assert found == expected[: len(found)]


def test_another_mounts_log_does_not_open(tmp_path: Path) -> None:
    log, _ = opened(tmp_path, mount=1)
    log.append(1, b"a")

    assert opened(tmp_path, mount=2)[1] == []


def test_files_go_when_all_their_batches_are_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operation_log, "_SEGMENT_SIZE", 1000)
    log, _ = opened(tmp_path)
    for n in range(1, 41):
        log.append(n, bytes(100))
    before = len(files(tmp_path))
    log.forget(20)
    left = [batch for batch, _ in opened(tmp_path)[1]]

    assert before > 4
    assert len(files(tmp_path)) < before
    assert left[-1] == 40
    assert set(range(21, 41)) <= set(left)
    log.close(40)
    assert files(tmp_path) == []


def test_a_close_with_work_left_keeps_it(tmp_path: Path) -> None:
    log, _ = opened(tmp_path)
    log.append(1, b"a")
    log.append(2, b"b")
    log.close(1)

    assert opened(tmp_path)[1][-1] == (2, b"b")


def test_keep_only_leaves_exactly_that(tmp_path: Path) -> None:
    log, _ = opened(tmp_path)
    for n in range(1, 6):
        log.append(n, b"%d" % n)
    log.keep_only([(1, b"1"), (2, b"2")])
    log.append(6, b"6")

    assert opened(tmp_path)[1] == [(1, b"1"), (2, b"2"), (6, b"6")]


def test_a_crash_inside_keep_only_gives_no_batch_twice(tmp_path: Path) -> None:
    log, _ = opened(tmp_path)
    log.append(1, b"1")
    log.append(2, b"2")
    old = (tmp_path / "ops-00000001").read_bytes()
    log.keep_only([(1, b"1")])
    (tmp_path / "ops-00000001").write_bytes(old)

    assert opened(tmp_path)[1] == [(1, b"1"), (2, b"2")]


def test_a_full_disk_is_told_by_sync_and_mended_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, _ = opened(tmp_path)
    log.append(1, b"a")
    log.sync()
    write = os.write

    def full(fd: int, data: bytes) -> int:
        if len(data) < 60:
            raise OSError(28, "No space left on device")
        return write(fd, data[:50])

    monkeypatch.setattr(os, "write", full)
    log.append(2, b"b" * 20)
    with pytest.raises(OSError, match="No space"):
        log.sync()
    assert opened(tmp_path)[1] == [(1, b"a")]
    monkeypatch.undo()
    log.append(3, b"c")
    log.sync()

    assert opened(tmp_path)[1] == [(1, b"a"), (2, b"b" * 20), (3, b"c")]


def test_a_sync_beside_appends_that_change_the_file_never_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operation_log, "_SEGMENT_SIZE", 200)
    log, _ = opened(tmp_path)
    log.append(1, b"x")
    failures: list[BaseException] = []
    done = threading.Event()

    def syncs() -> None:
        while not done.is_set():
            try:
                log.sync()
            except BaseException as exc:
                failures.append(exc)

    thread = threading.Thread(target=syncs)
    thread.start()
    for n in range(2, 200):
        log.append(n, bytes(50))
    done.set()
    thread.join()

    assert failures == []
    assert len(opened(tmp_path)[1]) == 199
