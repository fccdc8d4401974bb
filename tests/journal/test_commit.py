"""A commit opens only in its place, and its object's size says next to nothing."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megafs.crypto import aead
from megafs.crypto.volume_keys import Keyring, digest
from megafs.errors import Corrupt, TooNew
from megafs.journal import commit as format_
from megafs.journal.commit import Commit

FSID = bytes(range(16))
RING = Keyring(FSID, {0: bytes(range(32))}, 0)


def commit(changeset: bytes = b"changes", **changes: object) -> Commit:
    fields: dict[str, object] = {
        "prev": format_.genesis(FSID),
        "mount": 7,
        "host": "host",
        "commit_id": bytes(16),
        "first_batch": 1,
        "last_batch": 2,
        "time_ns": 3,
        "generation": 1,
        "operations": 4,
        "changeset": format_.pack_changeset(changeset),
    }
    return Commit(**(fields | changes))  # type: ignore[arg-type]


def test_what_was_sealed_opens() -> None:
    given = commit(host="höst", sig=b"later")

    opened = format_.open_commit(RING, 12, format_.seal(RING, 12, given))

    assert opened == given
    assert format_.unpack_changeset(opened) == b"changes"


@pytest.mark.parametrize("n", [0, 11, 13, 1 << 40])
def test_it_opens_under_no_other_number(n: int) -> None:
    data = format_.seal(RING, 12, commit())

    with pytest.raises(Corrupt, match=format_.object_name(n)):
        format_.open_commit(RING, n, data)


def test_it_opens_in_no_other_volume_and_with_no_other_key() -> None:
    data = format_.seal(RING, 12, commit())
    others = [
        Keyring(bytes(16), {0: bytes(range(32))}, 0),
        Keyring(FSID, {0: bytes(32)}, 0),
        Keyring(FSID, {1: bytes(range(32))}, 1),
    ]
    for ring in others:
        with pytest.raises(Corrupt):
            format_.open_commit(ring, 12, data)


def test_an_older_epoch_opens_when_a_newer_one_is_current() -> None:
    data = format_.seal(RING, 12, commit())

    assert format_.open_commit(RING.with_master(1, bytes(32), current=True), 12, data) == commit()


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_changed_bit_or_cut_is_found(data: st.DataObject) -> None:
    sealed = format_.seal(RING, 12, commit())
    spoilt = bytearray(sealed)
    if data.draw(st.booleans()):
        bit = data.draw(st.integers(0, len(sealed) * 8 - 1))
        spoilt[bit // 8] ^= 1 << bit % 8
    else:
        del spoilt[data.draw(st.integers(0, len(sealed) - 1)) :]

    with pytest.raises((Corrupt, TooNew)):
        format_.open_commit(RING, 12, bytes(spoilt))


def test_a_later_format_says_so() -> None:
    data = bytearray(format_.seal(RING, 12, commit()))
    data[0] = 2

    with pytest.raises(TooNew, match="newer megafs"):
        format_.open_commit(RING, 12, bytes(data))


def test_an_object_of_another_kind_does_not_open_as_a_commit() -> None:
    body = b"x" * 100
    for purpose in ("ckpt", "mount", "chunk"):
        sealed = format_.seal_padded(RING, purpose, 1, body, 12)
        with pytest.raises(Corrupt):
            format_.open_commit(RING, 12, sealed)


@given(st.integers(0, 200_000) | st.integers(16_000, 17_000) | st.integers(32_000, 34_000))
@settings(max_examples=150, deadline=None)
def test_sizes_are_padme_sizes_or_a_tag_more(size: int) -> None:
    body = random.Random(size).randbytes(size)

    sealed = format_.seal_padded(RING, "log", 1, body, 1)

    assert format_.open_padded(RING, "log", 1, sealed, "it", 1) == body
    assert len(sealed) == aead.padme(len(sealed))
    assert len(sealed) <= aead.padme(5 + aead.sealed_size(4 + size) + 64)


def test_the_size_is_all_that_a_store_learns_of_similar_commits() -> None:
    sizes = {len(format_.seal_padded(RING, "log", 1, bytes(n), 1)) for n in range(1000, 5000)}

    assert len(sizes) < 80


def test_the_chain_begins_with_the_volume() -> None:
    assert format_.genesis(FSID) != format_.genesis(bytes(16))
    assert format_.genesis(FSID) == digest(aead.encode_fields("genesis", FSID))


@pytest.mark.parametrize(
    "name", ["commits/1", "commits/00000000000000001", "commits/x" + "0" * 15, "packs/" + "0" * 16]
)
def test_names_that_are_not_commits(name: str) -> None:
    with pytest.raises(Corrupt):
        format_.sequence_of(name)
    assert format_.sequence_of(format_.object_name(42)) == 42
