"""Sealed bytes open where they belong, whole, or not at all."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import cryptography_vectors
import pytest
from cryptography.exceptions import InvalidTag
from hypothesis import given
from hypothesis import strategies as st

from megafs.crypto import aead
from megafs.errors import Corrupt
from tests.crypto import reference

KEY = bytes(range(32))
PLACE = aead.context("test", bytes(16), 0)

#: Around every edge of a 16 KiB segment.
EDGES = [0, 1, 100, 16383, 16384, 16385, 32767, 32768, 32769, 50000, 1 << 18]

fields = st.one_of(st.binary(max_size=40), st.text(max_size=20), st.integers(0, 2**64 - 1))


@pytest.mark.parametrize("n", EDGES)
def test_what_was_sealed_opens_and_sizes_are_exact(n: int) -> None:
    plaintext = bytes(i * 7 % 251 for i in range(n))

    sealed = aead.seal(KEY, PLACE, plaintext)

    assert len(sealed) == aead.sealed_size(n)
    assert aead.opened_size(len(sealed)) == n
    assert aead.open_sealed(KEY, PLACE, sealed) == plaintext
    assert type(sealed) is type(aead.open_sealed(KEY, PLACE, sealed)) is bytes


@given(st.integers(0, 1 << 40))
def test_sizes_are_inverse(n: int) -> None:
    assert aead.opened_size(aead.sealed_size(n)) == n


def test_impossible_sizes_are_refused_before_any_work() -> None:
    possible = {aead.sealed_size(n) for n in range(40000)}
    for size in range(33000):
        if size in possible:
            assert aead.sealed_size(aead.opened_size(size)) == size
        else:
            with pytest.raises(Corrupt):
                aead.opened_size(size)


@given(
    data=st.binary(max_size=100),
    bit=st.integers(0, 10**6),
    edge=st.sampled_from([0, 16384 - 100, 16384, 40000]),
)
def test_any_flipped_bit_is_found(data: bytes, bit: int, edge: int) -> None:
    sealed = bytearray(aead.seal(KEY, PLACE, bytes(edge) + data))
    bit %= len(sealed) * 8
    sealed[bit // 8] ^= 1 << bit % 8

    with pytest.raises(Corrupt):
        aead.open_sealed(KEY, PLACE, sealed)


@pytest.mark.parametrize("n", EDGES)
def test_cutting_lengthening_and_swapping_segments_is_found(n: int) -> None:
    sealed = aead.seal(KEY, PLACE, bytes(n))
    segment = 16384 + 16
    damaged = [sealed[:-1], sealed + b"\0", sealed[:56], sealed[:71], b""]
    damaged += [sealed[:cut] for cut in range(56 + segment, len(sealed), segment)]
    damaged += [sealed[:-16]]
    if n > 2 * 16384:
        body = sealed[56:]
        damaged.append(sealed[:56] + body[segment : 2 * segment] + body[:segment])
        damaged.append(sealed[:56] + body[:segment] * 2 + body[2 * segment :])

    for bad in damaged:
        with pytest.raises(Corrupt):
            aead.open_sealed(KEY, PLACE, bad)


def test_a_failed_open_leaves_no_plaintext_behind() -> None:
    secret = b"the quick brown fox " * 3000
    sealed = bytearray(aead.seal(KEY, PLACE, secret))
    sealed[-1] ^= 1  # only the last segment is bad: those before it had verified
    out = bytearray(b"\xcc" * (len(secret) + 8))

    with pytest.raises(Corrupt):
        aead._open_into(KEY, PLACE, sealed, memoryview(out)[: len(secret)], "")

    assert out == bytes(len(secret)) + b"\xcc" * 8


def test_another_key_purpose_volume_epoch_or_name_does_not_open() -> None:
    fsid = bytes(range(16))
    sealed = aead.seal(KEY, aead.context("chunk", fsid, 1, b"pack", 0), b"data")

    for key, place in [
        (bytes(32), aead.context("chunk", fsid, 1, b"pack", 0)),
        (KEY, aead.context("log", fsid, 1, b"pack", 0)),
        (KEY, aead.context("chunk", bytes(16), 1, b"pack", 0)),
        (KEY, aead.context("chunk", fsid, 2, b"pack", 0)),
        (KEY, aead.context("chunk", fsid, 1, b"pbck", 0)),
        (KEY, aead.context("chunk", fsid, 1, b"pack", 1)),
    ]:
        with pytest.raises(Corrupt):
            aead.open_sealed(key, place, sealed)


def test_the_error_names_the_object_and_no_secret() -> None:
    sealed = bytearray(aead.seal(KEY, PLACE, b"attack at dawn"))
    sealed[60] ^= 1

    with pytest.raises(Corrupt, match=r"^packs/ab/cd: 86 sealed bytes do not verify") as failure:
        aead.open_sealed(KEY, PLACE, sealed, "packs/ab/cd")
    assert "dawn" not in str(failure.value)
    assert KEY.hex() not in str(failure.value)
    with pytest.raises(Corrupt, match=r"^test: "):
        aead.open_sealed(KEY, PLACE, sealed)
    with pytest.raises(Corrupt, match=r"^packs/ab/cd: sealed bytes cut short"):
        aead.open_sealed(KEY, PLACE, b"x" * 40, "packs/ab/cd")


def test_the_same_bytes_seal_differently_every_time() -> None:
    assert len({aead.seal(KEY, PLACE, b"same") for _ in range(50)}) == 50


@given(st.lists(st.binary(max_size=12), max_size=6), st.lists(st.binary(max_size=12), max_size=6))
def test_fields_are_unambiguous(one: list[bytes], other: list[bytes]) -> None:
    assert (aead.encode_fields(*one) == aead.encode_fields(*other)) == (one == other)


@given(st.lists(fields, max_size=6), st.data())
def test_fields_cannot_run_into_each_other(items: list[Any], data: Any) -> None:
    encoded = aead.encode_fields(*items)
    position, found = len(b"megafs/1"), []
    while position < len(encoded):
        size = int.from_bytes(encoded[position : position + 2], "big")
        found.append(encoded[position + 2 : position + 2 + size])
        position += 2 + size

    assert position == len(encoded)
    assert found == [
        x.to_bytes(8, "big") if isinstance(x, int) else x.encode() if isinstance(x, str) else x
        for x in items
    ]


def test_fields_out_of_bounds_are_refused() -> None:
    for bad in (b"x" * 65536, -1, 2**64):
        with pytest.raises(OverflowError):
            aead.encode_fields(bad)


def test_purpose_of_any_bytes_is_a_word() -> None:
    assert aead.purpose_of(aead.context("chunk", bytes(16), 3)) == "chunk"
    assert aead.purpose_of(b"") == "sealed bytes"


@given(st.integers(0, 1 << 50))
def test_padme_costs_at_most_twelve_percent_and_only_grows(n: int) -> None:
    padded = aead.padme(n)

    assert n <= padded <= n * 1.12
    assert aead.padme(padded) == padded
    assert aead.padme(n + 1) >= padded


def test_padme_gives_few_sizes() -> None:
    assert len({aead.padme(n) for n in range(1, 1 << 18)}) < 250
    # From the paper's formula by hand: 9 = 0b1001, E = 3, S = 2, one low bit cleared, rounded up.
    assert [aead.padme(n) for n in (0, 1, 2, 7, 8, 9, 1000, 1025)] == [
        0, 1, 2, 7, 8, 10, 1024, 1088,
    ]  # fmt: skip


def _published() -> list[dict[str, Any]]:
    path = Path(cryptography_vectors.__file__).parent / "chunked-encryption" / "vectors.json"
    return [v for v in json.loads(path.read_text())["vectors"] if "256_GCM" in v["aead"]]


@pytest.mark.parametrize("vector", _published(), ids=lambda v: v["name"])
def test_the_reference_reader_agrees_with_the_published_vectors(vector: dict[str, Any]) -> None:
    sealed = base64.b64decode(vector["ciphertext"] or "")
    if vector.get("compressed"):
        sealed = zlib.decompress(sealed)
    key, place = bytes.fromhex(vector["key"]), vector["context"].encode()

    if vector["expect"] == "success":
        plaintext = reference.read(key, place, sealed, "sha256")
        assert len(plaintext) == vector["payload_length"]
        assert hashlib.sha256(plaintext).hexdigest() == vector["payload_sha256"]
        # The same message through ours, which differs in the hash alone.
        assert reference.read(key, place, aead.seal(key, place, plaintext), "sha512") == plaintext
    else:
        with pytest.raises(InvalidTag):
            reference.read(key, place, sealed, "sha256")
        # A key of another length never comes from a store: that is a mistake of the caller's.
        with pytest.raises(Corrupt if len(key) == 32 else (Corrupt, ValueError)):
            aead.open_sealed(key, place, sealed)


def test_enough_vectors_were_found() -> None:
    assert len(_published()) >= 34


@pytest.mark.parametrize("n", EDGES)
def test_ours_opens_what_the_reference_writes_and_the_reverse(n: int) -> None:
    plaintext = bytes(i * 31 % 253 for i in range(n))

    written = reference.write(KEY, PLACE, plaintext, b"s" * 24)
    assert aead.open_sealed(KEY, PLACE, written) == plaintext
    assert reference.read(KEY, PLACE, aead.seal(KEY, PLACE, plaintext), "sha512") == plaintext


_LONG = bytes(i * 31 % 253 for i in range(50000))
_LONG_SEALED = aead.seal(KEY, PLACE, _LONG)


@given(st.data())
def test_any_part_opens_alone_and_is_what_the_whole_says(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(_LONG) - 1))
    end = data.draw(st.integers(start + 1, len(_LONG)))
    opener = aead.PartOpener(KEY, PLACE, _LONG_SEALED[: aead.HEADER_SIZE], len(_LONG_SEALED))

    at, stop = opener.sealed_range(start, end)

    assert opener.open(start, end, _LONG_SEALED[at:stop]) == _LONG[start:end]
    assert stop - at <= (end - start) + 2 * (16384 + 16)


@given(st.integers(0, len(_LONG) - 1), st.integers(0, 7), st.integers(0, 1 << 20))
def test_a_changed_bit_in_a_part_is_found(start: int, bit: int, where: int) -> None:
    end = min(len(_LONG), start + 4096)
    opener = aead.PartOpener(KEY, PLACE, _LONG_SEALED[: aead.HEADER_SIZE], len(_LONG_SEALED))
    at, stop = opener.sealed_range(start, end)
    sealed = bytearray(_LONG_SEALED[at:stop])
    sealed[where % len(sealed)] ^= 1 << bit
    with pytest.raises(Corrupt):
        opener.open(start, end, sealed)


def test_a_segment_does_not_open_in_the_place_of_another() -> None:
    opener = aead.PartOpener(KEY, PLACE, _LONG_SEALED[: aead.HEADER_SIZE], len(_LONG_SEALED))
    first, second = opener.sealed_range(0, 1), opener.sealed_range(16384, 16385)
    with pytest.raises(Corrupt):
        opener.open(0, 1, _LONG_SEALED[slice(*second)])
    with pytest.raises(Corrupt):
        opener.open(16384, 16385, _LONG_SEALED[slice(*first)])
    with pytest.raises(Corrupt):
        opener.open(0, 1, _LONG_SEALED[first[0] : first[1] - 1])


def test_a_part_opener_wants_the_key_the_place_and_the_header_of_the_seal() -> None:
    header = _LONG_SEALED[: aead.HEADER_SIZE]
    elsewhere = aead.context("test", bytes(16), 1)
    changed = bytes([header[0] ^ 1]) + header[1:]
    for key, place, head in (
        (bytes(32), PLACE, header),
        (KEY, elsewhere, header),
        (KEY, PLACE, changed),
        (KEY, PLACE, header[:-1]),
    ):
        with pytest.raises(Corrupt):
            aead.PartOpener(key, place, head, len(_LONG_SEALED))
