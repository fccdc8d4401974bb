"""Nothing that a store does to the header goes unnoticed, or costs more than a bounded time."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from megafs.config import Parameters
from megafs.crypto import kdf
from megafs.crypto.volume_keys import Keyring
from megafs.errors import (
    BadPassphrase,
    BadUsage,
    Corrupt,
    NotAVolume,
    Rollback,
    TooNew,
)
from megafs.volume import header as headers
from megafs.volume.header import Credential, Header, Remembered

FSID = bytes(range(16))
MASTER = bytes(range(100, 132))
RING = Keyring(FSID, {0: MASTER}, 0)
FLOOR = kdf.Cost(time=1, memory=64 << 10, lanes=4)

FILE = bytes(range(64))
OTHER_FILE = bytes(range(64, 128))
RECOVERY = kdf.format_recovery(bytes(range(50, 82)))


def slot(number: int, credential: Credential, keyring: Keyring = RING, **more: Any) -> headers.Slot:
    entropy = bytes([number]) * headers.ENTROPY_SIZE
    return headers.enroll(
        keyring, credential, entropy=entropy, created_ns=1000 + number, cost=FLOOR, **more
    )


def made(*slots: headers.Slot, keyring: Keyring = RING, **more: Any) -> Header:
    return headers.new(
        keyring,
        parameters=more.pop("parameters", Parameters()),
        create_if_absent=True,
        created_ns=1000,
        slots=slots,
    )


# Slots with a key file alone need no Argon2id: most rules are tried on them.
BY_FILE = Credential(keyfile=FILE)
BY_OTHER_FILE = Credential(keyfile=OTHER_FILE)
HEADER = made(slot(1, BY_FILE), slot(2, BY_OTHER_FILE, label="spare"))
BYTES = HEADER.encode()
NAME = "keys/00000001"

# Argon2id slots, made once.
BY_PASSPHRASE = Credential(passphrase="correct horse")
WITH_PASSPHRASE = made(
    slot(1, BY_PASSPHRASE), slot(2, Credential(recovery=RECOVERY)), slot(3, BY_OTHER_FILE)
)


def edited(change: Callable[[dict[str, Any]], object], data: bytes = BYTES) -> bytes:
    document = json.loads(data)
    change(document)
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def opened(data: bytes, credential: Credential = BY_FILE, name: str = NAME) -> headers.Unlocked:
    return headers.unlock(headers.parse(data, name), credential)


# What is right opens


def test_a_header_reads_back_as_it_was_written() -> None:
    again = headers.parse(BYTES, NAME)

    assert again == HEADER
    assert again.encode() == BYTES
    assert len(BYTES) < 1400


def test_each_way_in_gives_the_master_key() -> None:
    both = Credential(passphrase="correct horse", keyfile=FILE)
    header = made(slot(1, both), slot(2, BY_FILE), slot(3, Credential(recovery=RECOVERY)))

    for number, credential in ((1, both), (2, BY_FILE), (3, Credential(recovery=RECOVERY.lower()))):
        remembered = Remembered(FSID, 1, bytes([number]) * 8)
        unlocked = headers.unlock(header, credential, remembered)
        assert unlocked.slot_id == bytes([number]) * 8
        assert unlocked.keyring.master(0) == MASTER
        assert unlocked.keyring.fsid == FSID


def test_a_passphrase_opens_its_slot() -> None:
    unlocked = headers.unlock(WITH_PASSPHRASE, BY_PASSPHRASE)

    assert unlocked.slot_id == b"\1" * 8
    assert unlocked.keyring.master(0) == MASTER
    assert unlocked.remembered() == Remembered(
        FSID, 1, b"\1" * 8, headers.digest_of(WITH_PASSPHRASE)
    )


def test_parameters_come_back() -> None:
    parameters = Parameters(
        chunk_size=65536, pack_size=1 << 20, inline_limit=0, compression="none", quota=None
    )
    header = made(slot(1, BY_FILE), parameters=parameters)

    assert opened(header.encode()).header.parameters == parameters


def test_a_slot_per_epoch_gives_that_epochs_key() -> None:
    ring = RING.with_master(5, bytes(32), current=True)
    header = made(slot(1, BY_FILE, ring), keyring=ring)

    unlocked = headers.unlock(header, BY_FILE)

    assert (unlocked.keyring.epoch, unlocked.keyring.epochs) == (5, [5])
    assert unlocked.keyring.master(5) == bytes(32)


# What is wrong does not, and says why


@pytest.mark.parametrize(
    ("credential", "why"),
    [
        (Credential(passphrase="Correct horse"), "the passphrase is wrong"),
        (Credential(keyfile=FILE), "the key file is wrong"),
        (Credential(recovery=kdf.format_recovery(bytes(32))), "of another volume"),
        (Credential(recovery="0000"), "4 characters"),
    ],
    ids=["passphrase", "keyfile", "recovery", "mistyped"],
)
def test_the_wrong_credential_is_named(credential: Credential, why: str) -> None:
    with pytest.raises(BadPassphrase, match=why):
        headers.unlock(WITH_PASSPHRASE, credential)


def test_a_missing_key_file_is_asked_for() -> None:
    both = Credential(passphrase="correct horse", keyfile=FILE)
    header = made(slot(1, both))

    with pytest.raises(BadPassphrase, match="needs its key file as well"):
        headers.unlock(header, BY_PASSPHRASE)
    with pytest.raises(BadPassphrase, match=r"there are slots for: passphrase\+keyfile"):
        headers.unlock(header, BY_FILE)
    with pytest.raises(BadPassphrase, match="the passphrase or the key file is wrong"):
        headers.unlock(header, replace(both, keyfile=OTHER_FILE))


def test_nothing_at_all_is_refused() -> None:
    with pytest.raises(BadUsage, match="neither"):
        Credential()
    with pytest.raises(BadUsage, match="empty"):
        headers.unlock(WITH_PASSPHRASE, Credential(passphrase=""))


def test_secrets_are_not_shown() -> None:
    credential = Credential(passphrase="hunter2", keyfile=b"k" * 40, recovery=RECOVERY)
    unlocked = headers.unlock(HEADER, BY_FILE)

    shown = repr((credential, unlocked, HEADER))

    for secret in ("hunter2", "kkkk", RECOVERY, MASTER.hex(), repr(MASTER)[2:10], "wrap"):
        assert secret not in shown


# Row 4: any flipped bit


@given(st.integers(0, len(BYTES) * 8 - 1))
@settings(max_examples=400)
def test_any_flipped_bit_is_refused(bit: int) -> None:
    data = bytearray(BYTES)
    data[bit // 8] ^= 1 << bit % 8

    with pytest.raises((Corrupt, NotAVolume, TooNew, BadPassphrase)):
        opened(bytes(data))


@given(st.integers(0, len(BYTES) * 8 - 1), st.integers(0, len(BYTES) * 8 - 1))
def test_two_flipped_bits_are_refused(one: int, other: int) -> None:
    data = bytearray(BYTES)
    data[one // 8] ^= 1 << one % 8
    data[other // 8] ^= 1 << other % 8
    if data != BYTES:
        with pytest.raises((Corrupt, NotAVolume, TooNew, BadPassphrase)):
            opened(bytes(data))


@given(st.integers(0, len(BYTES) - 1))
def test_a_header_cut_short_is_refused(length: int) -> None:
    with pytest.raises((Corrupt, NotAVolume)):
        headers.parse(BYTES[:length], NAME)


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_any_bytes_are_refused_with_one_of_ours(data: bytes) -> None:
    with pytest.raises((Corrupt, NotAVolume, TooNew)):
        headers.parse(data, NAME)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
PATHS: list[tuple[Any, ...]] = [
    *((name,) for name in json.loads(BYTES)),
    *(("parameters", name) for name in json.loads(BYTES)["parameters"]),
    *(("slots", 0, name) for name in json.loads(BYTES)["slots"][0]),
    ("slots", 0),
]


@given(path=st.sampled_from(PATHS), value=json_values)
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
def test_any_other_value_in_any_field_is_refused(path: tuple[Any, ...], value: Any) -> None:
    def change(document: Any) -> None:
        for step in path[:-1]:
            document = document[step]
        document[path[-1]] = value

    data = edited(change)
    if data != BYTES:
        with pytest.raises((Corrupt, NotAVolume, TooNew, BadPassphrase)):
            opened(data)


# Rows 23 to 27: slots and parameters edited by somebody without the key


def test_a_slot_taken_away_is_noticed() -> None:
    with pytest.raises(Corrupt, match="authentication code"):
        opened(edited(lambda d: d["slots"].pop()))


def test_a_slot_added_is_noticed() -> None:
    theirs = json.loads(made(slot(9, BY_FILE)).encode())["slots"][0]

    with pytest.raises(Corrupt, match="authentication code"):
        opened(edited(lambda d: d["slots"].append(theirs)), BY_OTHER_FILE)


def test_slots_in_another_order_are_noticed() -> None:
    with pytest.raises(Corrupt, match="authentication code"):
        opened(edited(lambda d: d["slots"].reverse()))


def test_a_removed_slot_put_back_is_noticed() -> None:
    after = headers.with_slot_removed(HEADER, RING, b"\2" * 8)
    old = json.loads(BYTES)["slots"][1]

    with pytest.raises(Corrupt, match="authentication code"):
        opened(edited(lambda d: d["slots"].append(old), after.encode()), BY_OTHER_FILE, after.name)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["parameters"].update(chunk_size=1 << 20),
        lambda d: d["parameters"].update(compression="none"),
        lambda d: d["parameters"].update(quota=None),
        lambda d: d.update(create_if_absent=False),
        lambda d: d.update(created=999),
        lambda d: d["slots"][1].update(label="mine"),
        lambda d: d.update(mac="00" * 32),
    ],
)
def test_parameters_and_labels_are_authentic(change: Callable[[Any], object]) -> None:
    with pytest.raises(Corrupt, match="authentication code"):
        opened(edited(change))


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(fsid="00" * 16),
        lambda d: d.update(epoch=1),
        lambda d: d["slots"][0].update(salt="00" * 16),
        lambda d: d["slots"][0].update(label="mine"),
        lambda d: d["slots"][0].update(id="09" * 8),
        lambda d: d["slots"][0].update(created=1),
    ],
)
def test_a_slot_opens_only_where_and_as_it_was_made(change: Callable[[Any], object]) -> None:
    with pytest.raises(BadPassphrase):
        opened(edited(change))


@pytest.mark.parametrize(
    "cost", [(2, 65536, 4), (1, 65537, 4), (1, 65536, 3)], ids=["time", "memory", "lanes"]
)
def test_a_cost_edited_inside_the_bounds_does_not_open(cost: tuple[int, int, int]) -> None:
    names = ("time", "memory", "lanes")
    data = edited(
        lambda d: d["slots"][0].update(kdf=dict(zip(names, cost, strict=True))),
        WITH_PASSPHRASE.encode(),
    )

    with pytest.raises(BadPassphrase):
        opened(data, BY_PASSPHRASE)


@pytest.mark.parametrize(
    "kdf_json",
    [
        {"time": 1, "memory": 65535, "lanes": 4},
        {"time": 1, "memory": 8, "lanes": 1},
        {"time": 0, "memory": 65536, "lanes": 4},
        {"time": 17, "memory": 65536, "lanes": 4},
        {"time": 1, "memory": (4 << 20) + 1, "lanes": 4},
        {"time": 1, "memory": 65536, "lanes": 17},
        {"time": 2**39, "memory": 2**39, "lanes": 2**39},
        {"time": 2**70, "memory": 2**70, "lanes": 2**70},
        {"time": 1, "memory": 65536},
        {"time": 1, "memory": 65536, "lanes": 4, "secret": 1},
        None,
        [],
    ],
    ids=str,
)
def test_a_cost_out_of_bounds_is_refused_before_any_work(kdf_json: Any) -> None:
    data = edited(lambda d: d["slots"][0].update(kdf=kdf_json), WITH_PASSPHRASE.encode())
    began, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    with pytest.raises(Corrupt):
        opened(data, BY_PASSPHRASE)

    assert time.process_time() - began < 0.05
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 8 << 10  # KiB


class Counted:
    """Stands for Argon2id: counts the work asked for instead of doing it."""

    def __init__(self) -> None:
        self.costs: list[kdf.Cost] = []

    def __call__(
        self, passphrase: str, salt: bytes, cost: kdf.Cost, keyfile: bytes | None = None
    ) -> bytes:
        self.costs.append(kdf.check_cost(cost))
        return (passphrase.encode() + salt + bytes(32))[:32]


@pytest.fixture
def argon2(monkeypatch: pytest.MonkeyPatch) -> Counted:
    counted = Counted()
    monkeypatch.setattr(kdf, "from_passphrase", counted)
    return counted


def with_bogus_slots(count: int) -> bytes:
    """A header to which the store has added slots of the greatest cost, before the true one."""
    header = made(slot(99, BY_PASSPHRASE))

    def change(document: dict[str, Any]) -> None:
        true = document["slots"][0]
        bogus = [
            {**true, "id": f"{i:016x}", "kdf": {"time": 16, "memory": 4 << 20, "lanes": 16}}
            for i in range(count)
        ]
        document["slots"] = [*bogus, true]

    return edited(change, header.encode())


def test_bogus_slots_cost_a_known_machine_nothing(argon2: Counted) -> None:
    header = headers.parse(with_bogus_slots(15), NAME)

    with pytest.raises(Corrupt, match="authentication code"):
        headers.unlock(header, BY_PASSPHRASE, Remembered(FSID, 1, b"\x63" * 8))

    assert argon2.costs[-1:] == [FLOOR]
    assert len(argon2.costs) == 2  # one when it was made, one when it was opened


def test_bogus_slots_cost_a_new_machine_nothing_with_the_right_passphrase(argon2: Counted) -> None:
    with pytest.raises(Corrupt, match="authentication code"):
        opened(with_bogus_slots(15), BY_PASSPHRASE)

    assert len(argon2.costs) == 2


def test_with_a_wrong_passphrase_the_work_is_bounded(argon2: Counted) -> None:
    data = with_bogus_slots(15)
    argon2.costs.clear()

    with pytest.raises(BadPassphrase, match="15 key slots were not tried"):
        opened(data, Credential(passphrase="wrong"))

    assert sum(cost.work for cost in argon2.costs) <= headers.WORK_LIMIT


def test_sixteen_slots_of_the_costliest_profile_are_all_tried(argon2: Counted) -> None:
    entropies = [bytes([n]) * headers.ENTROPY_SIZE for n in range(16)]
    costly = [
        headers.enroll(RING, BY_PASSPHRASE, entropy=e, created_ns=0, cost=kdf.PROFILES["rfc9106"])
        for e in entropies
    ]
    header = made(*costly)
    argon2.costs.clear()

    with pytest.raises(BadPassphrase):
        headers.unlock(header, Credential(passphrase="wrong"))

    assert len(argon2.costs) == 16


def test_a_crafted_slot_tests_one_key_only() -> None:
    # Without a commitment, one ciphertext can be made to open under many keys.
    from megafs.crypto import aead

    wrapped = HEADER.slots[0].wrap
    for guess in range(200):
        with pytest.raises(Corrupt):
            aead.open_sealed(bytes([guess]) * 32, b"any context", wrapped)


# Rows 22, 25, 26: other volumes and older generations


def test_a_slot_of_another_volume_does_not_open_here() -> None:
    other = Keyring(bytes(16), {0: bytes(32)}, 0)
    theirs = json.loads(made(slot(7, BY_FILE, other), keyring=other).encode())["slots"][0]

    with pytest.raises(BadPassphrase):
        opened(edited(lambda d: d.update(slots=[theirs])))


def test_an_older_generation_is_refused_where_a_newer_was_seen() -> None:
    newer = headers.with_slot_removed(HEADER, RING, b"\2" * 8)
    remembered = headers.unlock(newer, BY_FILE).remembered()

    assert newer.generation == 2
    with pytest.raises(Rollback, match=r"keys/00000001.*keys/00000002"):
        headers.unlock(HEADER, BY_FILE, remembered)
    assert headers.unlock(newer, BY_FILE, remembered).header == newer
    later = headers.with_slot_added(newer, RING, slot(3, BY_OTHER_FILE))
    assert headers.unlock(later, BY_FILE, remembered).header.generation == 3


def test_another_header_of_the_same_generation_is_refused() -> None:
    one = headers.with_slot_removed(HEADER, RING, b"\2" * 8)
    fork = headers.with_slot_added(HEADER, RING, slot(3, BY_OTHER_FILE))
    remembered = headers.unlock(one, BY_FILE).remembered()

    with pytest.raises(Rollback, match="not the one this machine has seen"):
        headers.unlock(fork, BY_FILE, remembered)


def test_another_volume_in_its_place_is_refused_before_any_work() -> None:
    other = Keyring(bytes(16), {0: bytes(32)}, 0)
    replaced = made(slot(1, BY_FILE, other), keyring=other)

    with pytest.raises(Rollback, match="another volume"):
        headers.unlock(replaced, BY_FILE, headers.unlock(HEADER, BY_FILE).remembered())


def test_one_generation_under_the_name_of_another_is_refused() -> None:
    with pytest.raises(Corrupt, match="it says that it is keys/00000001"):
        headers.parse(BYTES, "keys/00000002")
    renumbered = edited(lambda d: d.update(generation=2))
    with pytest.raises(Corrupt, match="authentication code"):
        opened(renumbered, name="keys/00000002")


def test_a_copy_on_disk_is_read_by_its_own_number() -> None:
    later = headers.with_slot_removed(HEADER, RING, b"\2" * 8)

    assert headers.parse_copy(later.encode(), "/var/lib/megafs/header") == later
    with pytest.raises(Corrupt, match=r"^/var/lib/megafs/header: "):
        headers.parse_copy(BYTES[:-1], "/var/lib/megafs/header")


# Form


def test_other_formats_are_told_apart() -> None:
    with pytest.raises(TooNew, match=r"format 2.*install a newer megafs"):
        headers.parse(edited(lambda d: d.update(format=2, news="x")), NAME)
    for bad in (0, -1, "1", 1.0, True, None):
        with pytest.raises(Corrupt):
            headers.parse(edited(lambda d, bad=bad: d.update(format=bad)), NAME)  # type: ignore[misc]
    for other in (b"{}", b"[]", b"7", b'{"magic":"restic"}'):
        with pytest.raises(NotAVolume):
            headers.parse(other, NAME)


@pytest.mark.parametrize(
    "data",
    [
        BYTES + b"\n",
        b" " + BYTES,
        json.dumps(json.loads(BYTES), indent=1).encode(),
        json.dumps(json.loads(BYTES)).encode(),
        BYTES.replace(b'"epoch":0', b'"epoch":0,"epoch":0'),
        BYTES.replace(b'"epoch":0', b'"epoch":1,"epoch":0'),
        BYTES.replace(b'"epoch":0', b'"epoch":-0'),
        BYTES.replace(b'"spare"', b'"sp\\u0061re"'),
        BYTES.replace(b'"spare"', '"späre"'.encode()),
        BYTES.replace(b'"epoch":0', b'"epoch":' + b"9" * 5000),
        BYTES.replace(b'"epoch":0', b'"epoch":NaN'),
        b"[" * 60000,
        b'{"magic":' * 7000,
        BYTES + b" " * headers.SIZE_LIMIT,
    ],
    ids=lambda d: d[:20].decode("latin-1") + str(len(d)),
)
def test_another_spelling_of_the_same_is_refused(data: bytes) -> None:
    with pytest.raises(Corrupt):
        headers.parse(data, NAME)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(extra=1),
        lambda d: d.pop("epoch"),
        lambda d: d["parameters"].update(extra=1),
        lambda d: d["parameters"].pop("quota"),
        lambda d: d["slots"][0].update(extra=1),
        lambda d: d["slots"][0].pop("label"),
        lambda d: d.update(slots=[]),
        lambda d: d.update(slots=d["slots"] * 9),
        lambda d: d.update(slots=d["slots"] * 2),
        lambda d: d.update(slots={}),
        lambda d: d["slots"][0].update(kind="fingerprint"),
        lambda d: d["slots"][0].update(kind=["keyfile"]),
        lambda d: d["slots"][0].update(kind="passphrase"),
        lambda d: d["slots"][0].update(wrap=d["slots"][0]["wrap"][2:]),
        lambda d: d["slots"][0].update(wrap=d["slots"][0]["wrap"].upper()),
        lambda d: d["slots"][0].update(label="a\nb"),
        lambda d: d["slots"][0].update(label="\ud800"),
        lambda d: d["slots"][0].update(label="x" * 65),
        lambda d: d["slots"][0].update(kdf={"time": 1, "memory": 65536, "lanes": 4}),
        lambda d: d.update(generation=0),
        lambda d: d.update(generation=10**8),
        lambda d: d.update(epoch=True),
        lambda d: d.update(create_if_absent=1),
        lambda d: d.update(fsid="x" * 32),
        lambda d: d.update(fsid="0" * 31),
        lambda d: d.update(fsid="٠" * 32),
        lambda d: d["parameters"].update(chunk_size=1 << 21),
        lambda d: d["parameters"].update(chunk_size=8192),
        lambda d: d["parameters"].update(chunk_size=100000),
        lambda d: d["parameters"].update(pack_size=1 << 40),
        lambda d: d["parameters"].update(inline_limit=1 << 30),
        lambda d: d["parameters"].update(compression="xz"),
        lambda d: d["parameters"].update(compression=None),
        lambda d: d["parameters"].update(deduplication=0),
        lambda d: d["parameters"].update(quota=0),
        lambda d: d["parameters"].update(quota=-1),
        lambda d: d["parameters"].update(quota=2**64),
    ],
)
def test_what_no_megafs_writes_is_refused_in_form(change: Callable[[Any], object]) -> None:
    with pytest.raises(Corrupt):
        headers.parse(edited(change), NAME)


@pytest.mark.parametrize(
    ("name", "generation"),
    [
        ("keys/00000001", 1),
        ("keys/99999999", 99999999),
        ("keys/00000000", None),
        ("keys/1", None),
        ("keys/000000001", None),
        ("keys/0000000a", None),
        ("keys/٠٠٠٠٠٠٠١", None),
        ("keys/00000001\n", None),
        ("xkeys/00000001", None),
        ("keys/00000001/x", None),
    ],
)
def test_names_of_generations(name: str, generation: int | None) -> None:
    assert headers.generation_of(name) == generation
    if generation:
        assert headers.name_of(generation) == name


# Changes


def test_the_last_slot_cannot_be_removed() -> None:
    one = headers.with_slot_removed(HEADER, RING, b"\1" * 8)

    with pytest.raises(BadUsage, match="last key slot"):
        headers.with_slot_removed(one, RING, b"\2" * 8)
    with pytest.raises(BadUsage, match="no key slot 0101"):
        headers.with_slot_removed(one, RING, b"\1" * 8)


def test_sixteen_slots_are_all() -> None:
    header = HEADER
    for number in range(3, 17):
        header = headers.with_slot_added(header, RING, slot(number, BY_FILE))

    assert len(header.slots) == 16
    assert len(header.encode()) < headers.SIZE_LIMIT // 4
    assert opened(header.encode(), name=header.name).keyring.master(0) == MASTER
    with pytest.raises(BadUsage, match="all 16"):
        headers.with_slot_added(header, RING, slot(17, BY_FILE))


def test_a_changed_slot_takes_the_place_of_the_old_one() -> None:
    after = headers.with_slot_changed(
        HEADER, RING, b"\2" * 8, slot(3, Credential(recovery=RECOVERY))
    )

    assert [s.id for s in after.slots] == [b"\1" * 8, b"\3" * 8]
    with pytest.raises(BadPassphrase):
        headers.unlock(after, BY_OTHER_FILE)
    assert headers.unlock(after, Credential(recovery=RECOVERY)).keyring.master(0) == MASTER


def test_what_could_not_be_read_back_is_never_written() -> None:
    with pytest.raises(Corrupt, match="same id"):
        headers.with_slot_added(HEADER, RING, slot(1, BY_FILE))
    with pytest.raises(BadUsage, match="chunk size"):
        made(slot(1, BY_FILE), parameters=Parameters(chunk_size=3))
    with pytest.raises(BadUsage, match="printable"):
        slot(1, BY_FILE, label="a\tb")
    with pytest.raises(Corrupt):
        made()


def test_new_slots_take_our_cost_and_not_the_stores() -> None:
    defaults = headers.enroll.__kwdefaults__

    assert defaults is not None
    assert defaults["cost"] == kdf.PROFILES["default"]


def test_the_successor_of_a_genuine_header_must_be_genuine_and_later() -> None:
    after = headers.with_slot_removed(HEADER, RING, b"\2" * 8)
    headers.check_successor(after, HEADER, RING)

    with pytest.raises(Rollback):
        headers.check_successor(HEADER, HEADER, RING)
    with pytest.raises(Corrupt):
        headers.check_successor(replace(after, create_if_absent=False), HEADER, RING)
    with pytest.raises(Corrupt, match="another volume"):
        headers.check_successor(replace(after, fsid=bytes(16)), HEADER, RING)
