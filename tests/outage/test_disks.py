"""A full or broken disk under the cache or the state, and little memory: docs/outage.md."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from megafs.mount import mount_record
from tests.mount.machine import Machine, eventually, is_mounted

pytestmark = pytest.mark.fuse

MIB = 1 << 20
SmallDisk = Callable[[str, int], Path]


def data(name: str, size: int = MIB) -> bytes:
    return random.Random(name).randbytes(size)


def fill(disk: Path) -> Path:
    """Write a file until nothing more goes onto the disk."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        while True:
            try:
                file.write(bytes(64 << 10))
                file.flush()
            except OSError:
                break
        try:
            file.close()
        except OSError:
            pass
    return filler


def away(store: Path) -> Callable[[], None]:
    """Take the store away; returns what brings it back."""
    hidden = store.with_name("store.away")
    store.rename(hidden)

    def back() -> None:
        if store.exists():
            shutil.rmtree(store)
        hidden.rename(store)

    return back


def check_alive(machine: Machine) -> None:
    """Somebody answers, and it is not frozen."""
    assert not machine.status()["frozen"]
    os.statvfs(machine.mnt)
    os.listdir(machine.mnt)


# -- the state directory


def test_a_full_state_disk_is_enospc_and_passes(volume: Machine, small_disk: SmallDisk) -> None:
    disk = small_disk("disk", 24 * MIB)
    volume.environ["MEGAFS_STATE_DIR"] = str(disk / "state")
    volume.mount("-o", "stage_min_free=4M,fsync=local")
    (volume.mnt / "before").write_bytes(data("before"))
    back = away(Path(volume.url.removeprefix("file://")))
    kept = []
    with pytest.raises(OSError) as failure:
        for n in range(40):
            (volume.mnt / f"f{n}").write_bytes(data(str(n)))
            kept.append(n)
    assert failure.value.errno == errno.ENOSPC
    assert len(kept) >= 3
    check_alive(volume)
    assert any("stage_min_free" in e["text"] for e in volume.status()["errors"])
    for n in kept:
        assert (volume.mnt / f"f{n}").read_bytes() == data(str(n))
    back()
    eventually(lambda: volume.status()["staged_bytes"] == 0, within=60)

    def is_written() -> bool:
        try:
            (volume.mnt / "after").write_bytes(data("after"))
        except OSError as exc:
            assert exc.errno == errno.ENOSPC
            return False
        return True

    # The log of operations is cut a moment after the last pack has gone.
    eventually(is_written)
    volume.umount()
    _all_there(volume, {f"f{n}": str(n) for n in kept} | {"after": "after", "before": "before"})


def test_not_a_byte_left_on_the_state_disk(volume: Machine, small_disk: SmallDisk) -> None:
    disk = small_disk("disk", 16 * MIB)
    volume.environ["MEGAFS_STATE_DIR"] = str(disk / "state")
    volume.mount("-o", f"stage_min_free=0,log={volume.place / 'log'}")
    (volume.mnt / "before").write_bytes(data("before"))
    eventually(lambda: volume.status()["staged_bytes"] == 0)
    filler = fill(disk)
    refused = 0
    written = []
    for n in range(20):
        try:
            with (volume.mnt / f"f{n}").open("wb") as file:
                file.write(data(str(n), 300_000))
            written.append(n)
        except OSError as exc:
            assert exc.errno in (errno.ENOSPC, errno.EIO)
            refused += exc.errno == errno.ENOSPC
    assert refused
    assert (volume.mnt / "before").read_bytes() == data("before")
    check_alive(volume)
    filler.unlink()

    def works() -> bool:
        try:
            (volume.mnt / "after").write_bytes(data("after"))
        except OSError:
            return False
        return True

    eventually(works, within=30)
    volume.umount()
    assert "Traceback" not in (volume.place / "log").read_text()
    volume.mount()
    for n in written:
        assert (volume.mnt / f"f{n}").read_bytes() == data(str(n), 300_000)
    volume.umount()
    _all_there(volume, {"before": "before", "after": "after"})


def _all_there(machine: Machine, files: dict[str, str]) -> None:
    """Another machine reads them."""
    other = Machine(machine.place, "other", machine.url)
    try:
        other.mount()
        for name, seed in files.items():
            assert (other.mnt / name).read_bytes() == data(seed)
        other.umount()
    finally:
        other.kill()


# -- the disk of the store


def test_a_full_disk_below_a_store_of_files_is_enospc_and_passes(
    machine: Machine, small_disk: SmallDisk
) -> None:
    disk = small_disk("store", 16 * MIB)
    machine.url = f"file://{disk}/volume"
    machine.format()
    machine.mount("-o", "deadline=2s")
    (machine.mnt / "before").write_bytes(data("before"))
    filler = fill(disk)
    for name, size in (("large", 3 * MIB), ("small", 100)):
        with (machine.mnt / name).open("wb") as file:
            file.write(data(name, size))
            file.flush()
            with pytest.raises(OSError) as failure:
                os.fsync(file.fileno())
        assert failure.value.errno == errno.ENOSPC
        assert (machine.mnt / name).read_bytes() == data(name, size)
    status = machine.status()
    assert status["staged_bytes"] >= 3 * MIB
    assert status["store"]["state"] == "degraded"
    said = machine.run("status", machine.mnt).stdout
    assert "free some space there" in said
    assert not any((disk / "volume" / ".tmp").iterdir()), "what did not fit takes no room"
    filler.unlink()
    eventually(lambda: machine.status()["staged_bytes"] == 0, within=30)
    eventually(lambda: machine.status()["store"]["state"] == "ok", within=30)
    machine.umount()
    _all_there(machine, {"before": "before"})
    machine.mount()
    assert (machine.mnt / "large").read_bytes() == data("large", 3 * MIB)
    machine.umount()


# -- the cache directory


def test_a_full_cache_disk_is_nobodys_business(volume: Machine, small_disk: SmallDisk) -> None:
    disk = small_disk("disk", 8 * MIB)
    volume.environ["MEGAFS_CACHE_DIR"] = str(disk / "cache")
    volume.mount("-o", "cache_min_free=0,memory_cache=1M")
    for n in range(12):
        (volume.mnt / f"f{n}").write_bytes(data(str(n)))
    fill(disk)
    for _ in range(2):
        for n in range(12):
            assert (volume.mnt / f"f{n}").read_bytes() == data(str(n))
    (volume.mnt / "new").write_bytes(data("new"))
    check_alive(volume)
    volume.umount()
    _all_there(volume, {"new": "new"})


@pytest.mark.parametrize("how", ["removed", "replaced by a file", "read-only"])
def test_a_cache_that_breaks_under_a_mount(
    volume: Machine, small_disk: SmallDisk, how: str
) -> None:
    disk = small_disk("disk", 64 * MIB)
    volume.environ["MEGAFS_CACHE_DIR"] = str(disk / "cache")
    volume.mount("-o", f"memory_cache=1M,cache_min_free=0,log={volume.place / 'log'}")
    for n in range(6):
        (volume.mnt / f"f{n}").write_bytes(data(str(n)))
        assert (volume.mnt / f"f{n}").read_bytes() == data(str(n))
    if how == "read-only":
        subprocess.run(["mount", "-o", "remount,ro", disk], check=False, timeout=20)
    else:
        shutil.rmtree(disk / "cache", ignore_errors=True)  # while it writes there
        if how == "replaced by a file":
            (disk / "cache").rename(disk / "gone") if (disk / "cache").exists() else None
            (disk / "cache").write_text("not a directory")
    for n in range(6):
        assert (volume.mnt / f"f{n}").read_bytes() == data(str(n))
    (volume.mnt / "new").write_bytes(data("new"))
    assert (volume.mnt / "new").read_bytes() == data("new")
    check_alive(volume)
    volume.umount()
    assert "Traceback" not in (volume.place / "log").read_text()
    _all_there(volume, {"new": "new"})


# -- memory


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """A control group in which a process may use 160 MiB of memory, its cache pages included."""
    parent = Path("/sys/fs/cgroup/memory")
    unified = Path("/sys/fs/cgroup/cgroup.controllers")
    if unified.exists():
        parent, limit = Path("/sys/fs/cgroup"), "memory.max"
    else:
        limit = "memory.limit_in_bytes"
    group = parent / f"megafs-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / limit).write_text(str(160 * MIB))
    except OSError as exc:
        if group.exists():
            group.rmdir()
        pytest.skip(f"no memory control group can be made here: {exc}")
    yield group
    for _ in range(50):
        try:
            group.rmdir()
            break
        except OSError:
            time.sleep(0.1)


def test_with_little_memory_all_goes_on(volume: Machine, memory_group: Path) -> None:
    volume.mount()
    (memory_group / "cgroup.procs").write_text(str(volume.pid))
    _work_through(volume)


def test_an_address_space_limit_is_survived_or_ends_the_mount_with_nothing_lost(
    volume: Machine,
) -> None:
    """What cannot be had is ENOMEM or EIO for who asked; closed files are kept in any case."""
    volume.mount()
    used = int(Path(f"/proc/{volume.pid}/statm").read_text().split()[0]) * 4096
    subprocess.run(
        ["prlimit", f"--as={used + 24 * MIB}", f"--pid={volume.pid}"], check=True, timeout=20
    )
    kept = []
    for n in range(40):
        try:
            (volume.mnt / f"f{n}").write_bytes(data(str(n)))
            if not is_mounted(volume.mnt) and (volume.mnt / f"f{n}").exists():
                (volume.mnt / f"f{n}").unlink()  # it had ended: this went to the directory below
                break
            kept.append(n)
        except OSError as exc:
            assert exc.errno in (errno.ENOMEM, errno.EIO, errno.ENOTCONN, errno.ECONNABORTED)
            if not mount_record.records(volume.place / "run"):
                break
    assert kept
    volume.kill()
    volume.mount()
    for n in kept:
        assert (volume.mnt / f"f{n}").read_bytes() == data(str(n))
    volume.umount()
    assert not is_mounted(volume.mnt)


def _work_through(machine: Machine) -> None:
    for n in range(60):
        (machine.mnt / f"f{n}").write_bytes(data(str(n), 2 * MIB))
    for n in range(60):
        assert (machine.mnt / f"f{n}").read_bytes() == data(str(n), 2 * MIB)
    check_alive(machine)
    machine.umount()
