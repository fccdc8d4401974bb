"""What happens to the journal and the keys: the mount refuses, or freezes read-only; one line says
why, and the exit code is the documented one.  Rows of docs/threats.md, with real mounts.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.hostile.site import Place, flip, plain, rng_bytes
from tests.mount.machine import Machine, eventually, is_mounted

pytestmark = pytest.mark.fuse

CORRUPT, ROLLBACK, BAD_PASSPHRASE, TOO_NEW = 16, 17, 12, 11


def any_end(machine: Machine, *args: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command, whatever its exit code."""
    return subprocess.run(
        machine.command(*args),
        env=machine.environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def refused(machine: Machine, code: int, *args: str) -> str:
    """Mounting must fail with *code*; returns what was said, which must be one sentence."""
    said = machine.mount(*args, code=code).stderr.strip()
    assert not is_mounted(machine.mnt)
    assert "Traceback" not in said
    assert len(said.splitlines()) <= 2, said
    return plain(said)


def frozen(machine: Machine) -> str:
    """The mount must freeze: reads go on, writes say EROFS, status says why, which is returned."""
    with pytest.raises(OSError) as failure:
        for _ in range(200):
            (machine.mnt / "late").write_text("not to be believed")
            os.sync()
            eventually(lambda: machine.status()["frozen"], within=5)
    assert failure.value.errno == errno.EROFS
    status = machine.status()
    assert status["read_only"]
    assert "FROZEN, read-only" in machine.run("status", machine.mnt).stdout
    assert (machine.mnt / "e").read_bytes() == rng_bytes("e")
    return str(status["frozen"])


# -- while nobody has it mounted


def test_row_02_a_flipped_bit_in_a_commit(attacked: Place) -> None:
    broken = attacked.commits()[3]
    flip(broken, 8 * 100)
    said = refused(attacked.machine(), CORRUPT)
    assert broken.name in said


def test_row_09_commits_in_another_order(attacked: Place) -> None:
    first, second = attacked.commits()[3:5]
    swapped = attacked.place / "swapped"
    first.rename(swapped)
    second.rename(first)
    swapped.rename(second)
    assert first.name in refused(attacked.machine(), CORRUPT)


def test_row_10_a_commit_missing_in_the_middle(attacked: Place) -> None:
    attacked.commits()[4].unlink()
    said = refused(attacked.machine(), CORRUPT)
    assert re.search(r"commits/0*5 is missing although later commits exist", said)


def test_rows_11_19_a_rollback_is_refused_and_explained_and_can_be_accepted(
    attacked: Place,
) -> None:
    machine = attacked.known()
    before, half = attacked.site.end, attacked.site.half
    attacked.roll_back()

    said = refused(machine, ROLLBACK)
    assert "rolled back" in said
    assert "accept_state" in said
    # What was seen and what is there: numbers, words, times, hosts.
    host = attacked.site.end["host"]
    for status in (before, half):
        assert f"commit {status['sequence']} ({status['head_words']}), written 20" in said
    assert said.count(f"by {host}") == 2

    said = plain(machine.mount("--accept-state").stderr)
    assert "another state of the store is accepted" in said
    assert f"commit {before['sequence']} ({before['head_words']})" in said
    assert f"in the store now: commit {half['sequence']} ({half['head_words']})" in said
    assert sorted(p for p in os.listdir(machine.mnt) if len(p) == 1) == [*"abcde"]
    assert not (machine.mnt / "later0").exists()
    (machine.mnt / "after").write_text("goes on from there")
    machine.umount()
    machine.mount()  # accepted once, known from then on
    assert (machine.mnt / "after").read_text() == "goes on from there"
    machine.umount()


def test_row_11_a_rollback_is_refused_without_the_replica_too(attacked: Place) -> None:
    machine = attacked.known()
    for path in (machine.place / "state" / "volumes").glob("*/replica.db*"):
        path.unlink()
    attacked.roll_back()
    said = refused(machine, ROLLBACK)
    assert f"has seen commit {attacked.site.end['sequence']}" in said
    machine.mount("-o", "accept_state")
    machine.umount()


def test_row_12_on_a_new_machine_only_the_head_tells(attacked: Place) -> None:
    attacked.roll_back()
    end, half = attacked.site.end, attacked.site.half
    machine = attacked.machine()
    words = str(end["head_words"]).replace(" ", "-")
    said = refused(machine, ROLLBACK, "--expect-head", words)
    assert str(half["head_words"]) in said

    said = plain(machine.mount("--expect-head", str(half["head_words"])).stderr)
    assert f"commit {half['sequence']} ({half['head_words']})" in said
    assert f"by {half['host']}" in said
    assert str(half["head_words"]) in machine.run("status", machine.mnt).stdout
    machine.umount()


def test_row_20_history_folded_away_past_what_was_seen(attacked: Place) -> None:
    machine = attacked.known()
    for path in (machine.place / "state" / "volumes").glob("*/replica.db*"):
        path.unlink()
    for commit in attacked.commits():
        commit.unlink()
    said = refused(machine, ROLLBACK)
    assert f"commit {attacked.site.end['sequence']}" in said


def test_row_22_a_commit_of_another_volume_with_the_same_passphrase(attacked: Place) -> None:
    other = attacked.machine("other", attacked.place / "other-store")
    other.format()
    other.mount()
    other.umount()
    theirs = attacked.place / "other-store" / "commits" / attacked.commits()[0].name
    shutil.copy(theirs, attacked.commits()[0])
    refused(attacked.machine(), CORRUPT)


def test_rows_04_24_27_a_key_header_that_was_tampered_with(attacked: Place) -> None:
    (header,) = (attacked.store / "keys").iterdir()
    whole = header.read_bytes()
    machine = attacked.machine()
    for bit in range(13, len(whole) * 8, len(whole) * 2):
        flip(header, bit)
        done = any_end(machine, "mount", machine.url, machine.mnt)
        assert done.returncode in (CORRUPT, BAD_PASSPHRASE, TOO_NEW), done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        header.write_bytes(whole)
    machine.mount()
    machine.umount()


def test_row_25_keys_rolled_back_on_a_known_machine(attacked: Place) -> None:
    machine = attacked.known()
    (header,) = (attacked.store / "keys").iterdir()
    old = header.read_bytes()
    machine.run("key", "recovery-key", machine.url)
    (renewed,) = (attacked.store / "keys").iterdir()
    assert renewed != header
    machine.mount()
    (machine.mnt / "with the new keys").write_text("x")
    machine.umount()
    renewed.unlink()
    header.write_bytes(old)
    said = refused(machine, ROLLBACK)
    assert "keys" in said


def test_row_26_another_volume_in_its_place(attacked: Place) -> None:
    machine = attacked.known()
    shutil.rmtree(attacked.store)
    other = attacked.machine("other")
    other.format()
    other.mount()
    (other.mnt / "bait").write_text("bait")
    other.umount()
    said = refused(machine, ROLLBACK)
    assert "another volume was put in its place" in said
    said = plain(machine.mount("--accept-state").stderr)
    assert "another volume is accepted" in said
    assert os.listdir(machine.mnt) == ["bait"]
    machine.umount()


def test_row_39_everything_deleted(attacked: Place) -> None:
    machine = attacked.known()
    for commit in attacked.commits():
        commit.unlink()
    assert "rolled back" in refused(machine, ROLLBACK)
    shutil.rmtree(attacked.store / "keys")
    assert "key header" in refused(machine, CORRUPT)


# -- while it is mounted


def test_rows_02_21_a_commit_that_nobody_wrote_freezes_the_mount(attacked: Place) -> None:
    machine = attacked.machine()
    machine.mount("-o", f"sync_interval=200ms,log={machine.place / 'log'}")
    number = machine.status()["sequence"] + 1
    injected = attacked.store / "commits" / f"{number:016d}"
    injected.write_bytes(os.urandom(700))
    why = frozen(machine)
    assert f"{number}" in why
    log = (machine.place / "log").read_text()
    assert log.count("the mount is read-only from here on") == 1
    assert injected.name in log or f"commit {number}" in log
    any_end(machine, "umount", "--force", machine.mnt)


def test_rows_14_16_a_fork_shown_to_two_mounts(attacked: Place) -> None:
    """Each wrote commit N+1 in a world of its own; then one is shown the other's N+2."""
    elsewhere = attacked.place / "elsewhere"
    shutil.copytree(attacked.store, elsewhere)
    here, there = attacked.machine("here"), attacked.machine("there", elsewhere)
    for machine in (here, there):
        machine.mount("-o", f"sync_interval=200ms,log={machine.place / 'log'}")
    number = here.status()["sequence"]
    _commit(there.mnt / "their-first")
    _commit(there.mnt / "their-second")
    _commit(here.mnt / "our-first")
    eventually(lambda: here.status()["sequence"] == number + 1)
    eventually(lambda: there.status()["sequence"] >= number + 2)
    theirs = f"commits/{number + 2:016d}"
    shutil.copy(elsewhere / theirs, attacked.store / theirs)

    why = frozen(here)
    assert "history" in why or "fork" in why or "follow" in why, why
    assert (here.mnt / "our-first").read_text() == "x"
    assert not (here.mnt / "their-second").exists()
    any_end(here, "umount", "--force", here.mnt)
    there.umount()


def _commit(path: Path) -> None:
    with path.open("w") as file:
        file.write("x")
        file.flush()
        os.fsync(file.fileno())
