"""Argon2id in a process of its own, and begun before the store shows its header."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from megafs.config import Parameters
from megafs.crypto import kdf
from megafs.crypto.volume_keys import Keyring
from megafs.errors import BadPassphrase, Fault, Rollback
from megafs.journal import head
from megafs.volume import header as headers
from megafs.volume import isolated_unlock, kdf_process, state_directory
from megafs.volume.header import Credential, Header, Remembered

URL = "s3://bucket/volume"
FSID = bytes(range(16))
RING = Keyring(FSID, {0: bytes(range(32))}, 0)
#: The least that is not done in place.
COST = kdf.Cost(time=1, memory=kdf_process.IN_PLACE + 1024, lanes=4)
RIGHT = Credential(passphrase="correct horse")


def header_of(*entropies: bytes, credential: Credential = RIGHT, cost: kdf.Cost = COST) -> Header:
    slots = [
        headers.enroll(RING, credential, entropy=entropy, created_ns=1, cost=cost)
        for entropy in entropies
    ]
    return headers.new(
        RING, parameters=Parameters(), create_if_absent=True, created_ns=1, slots=slots
    )


ONE, TWO = bytes(range(24)), bytes(range(100, 124))
HEADER = header_of(ONE)


def remember(state: Path, header: Header, slot_id: bytes) -> None:
    """What a mount leaves in the state directory."""
    state_directory.remember_fsid(state, URL, FSID)
    kept = state_directory.StateDirectory.of(state, state / "cache", FSID).volume
    (kept / state_directory.HEADER).write_bytes(header.encode())
    head.write(
        kept, head.RememberedHead(FSID.hex(), 1, "00" * 32, header.generation, slot_id.hex())
    )


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[kdf.Task]:
    """The tasks of every child."""
    tasks: list[kdf.Task] = []
    real = kdf_process.Derivation.__init__

    def counted(self: kdf_process.Derivation, task: kdf.Task) -> None:
        tasks.append(task)
        real(self, task)

    monkeypatch.setattr(kdf_process.Derivation, "__init__", counted)
    return tasks


def test_a_child_derives_what_this_process_would() -> None:
    for keyfile in (None, bytes(range(64))):
        task = kdf.task("correct horse", bytes(16), COST, keyfile)
        assert kdf_process.Derivation(task).result() == kdf.derive(task)


def test_no_secret_in_what_a_child_is_started_with(monkeypatch: pytest.MonkeyPatch) -> None:
    child = kdf_process.Derivation(kdf.task("correct horse", bytes(16), COST))
    pid = child._child.pid
    seen = [Path(f"/proc/{pid}/{what}").read_bytes() for what in ("cmdline", "environ")]
    child.end()
    assert not any(b"correct" in text for text in seen)
    with pytest.raises(Fault):
        child.result()


async def test_the_remembered_slot_is_derived_before_the_header_is_here(
    tmp_path: Path, started: list[kdf.Task]
) -> None:
    remember(tmp_path, HEADER, HEADER.slots[0].id)

    early = kdf_process.begin(URL, RIGHT, tmp_path)
    assert early is not None
    unlocked = await isolated_unlock.unlock(HEADER, RIGHT, None, early)

    assert unlocked.keyring.master(0) == RING.master(0)
    assert len(started) == 1


async def test_a_header_that_asks_for_something_else_is_derived_for_again(
    tmp_path: Path, started: list[kdf.Task]
) -> None:
    remember(tmp_path, HEADER, HEADER.slots[0].id)
    changed = header_of(TWO)

    early = kdf_process.begin(URL, RIGHT, tmp_path)
    unlocked = await isolated_unlock.unlock(changed, RIGHT, None, early)

    assert unlocked.header == changed
    assert [task.salt for task in started] == [ONE[8:], TWO[8:]]
    assert early is not None
    assert early._child.returncode is not None  # no zombie of the one begun in vain
    assert early._child.stdout is not None
    assert early._child.stdout.closed


async def test_what_came_early_opens_nothing_that_is_refused(tmp_path: Path) -> None:
    remember(tmp_path, HEADER, HEADER.slots[0].id)
    early = kdf_process.begin(URL, RIGHT, tmp_path)
    with pytest.raises(Rollback):  # the store shows an older header than this machine has seen
        await isolated_unlock.unlock(HEADER, RIGHT, Remembered(FSID, 2), early)

    wrong = Credential(passphrase="wrong")
    early = kdf_process.begin(URL, wrong, tmp_path)
    with pytest.raises(BadPassphrase):
        await isolated_unlock.unlock(HEADER, wrong, None, early)


async def test_an_early_child_that_dies_costs_time_only(tmp_path: Path) -> None:
    remember(tmp_path, HEADER, HEADER.slots[0].id)
    early = kdf_process.begin(URL, RIGHT, tmp_path)
    assert early is not None
    early.end()

    unlocked = await isolated_unlock.unlock(HEADER, RIGHT, None, early)

    assert unlocked.slot_id == HEADER.slots[0].id


def test_nothing_is_begun_without_a_reason(tmp_path: Path, started: list[kdf.Task]) -> None:
    file = Credential(keyfile=bytes(range(64)))
    assert kdf_process.begin(URL, RIGHT, tmp_path) is None  # never seen
    remember(tmp_path, HEADER, HEADER.slots[0].id)
    assert kdf_process.begin(URL, file, tmp_path) is None
    assert kdf_process.begin("s3://bucket/other", RIGHT, tmp_path) is None
    remember(tmp_path, HEADER, bytes(8))  # a slot that is gone
    assert kdf_process.begin(URL, RIGHT, tmp_path) is None
    small = header_of(ONE, cost=replace(COST, memory=64 << 10))
    remember(tmp_path, small, small.slots[0].id)
    assert kdf_process.begin(URL, RIGHT, tmp_path) is None
    kept = state_directory.directory_of(tmp_path, FSID)
    (kept / state_directory.HEADER).write_bytes(b"not a header")
    assert kdf_process.begin(URL, RIGHT, tmp_path) is None
    assert started == []
