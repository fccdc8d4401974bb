"""Every key comes from the master key, for one purpose only, and none is ever shown."""

from __future__ import annotations

import copy
import os
import pickle

import blake3
import cryptography_vectors
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from hypothesis import given
from hypothesis import strategies as st

from megafs.crypto import volume_keys
from megafs.errors import Corrupt

FSID = bytes(range(16))
MASTER = bytes(range(100, 132))


def ring(**more: bytes) -> volume_keys.Keyring:
    return volume_keys.Keyring(FSID, {0: MASTER}, 0)


def test_keys_stay_what_they_were() -> None:
    # Computed once, by hand-written HKDF below; every volume ever written depends on them.
    assert ring().subkey("log") == _expand(
        MASTER, b"megafs/1\0\x0asubkey:log\0\x10" + FSID + b"\0\x08" + bytes(8)
    )
    assert ring().subkey("log").hex() == (
        "0c21d825247b0261e2953d2a3a0047ebe1b46250c516092a7c3f6f37d0ac81d7"
    )
    pack = ring().pack_key(b"p" * 16)
    assert pack.hex() == "84f751fe18b5911e9a58aee6445762e39ec8ac49b5a3aaebfeeba1bcb6e1bff8"
    assert volume_keys.chunk_key(pack, 4096).hex() == (
        "e6499c064b2353f962bd8d5a11723e5f53071be735a6700ff475f1aa0779f68c"
    )


def _expand(key: bytes, info: bytes) -> bytes:
    import hashlib
    import hmac

    return hmac.digest(key, info + b"\x01", hashlib.sha512)[:32]


def test_no_two_uses_share_a_key() -> None:
    two = volume_keys.Keyring(FSID, {0: MASTER, 1: bytes(32)}, 1)
    other = volume_keys.Keyring(bytes(16), {0: MASTER}, 0)
    purposes = ["keys-mac", "log", "ckpt", "chunk", "name", "mount", "replica", "state"]
    found = [two.subkey(p, e) for p in purposes for e in (0, 1)]
    found += [other.subkey(p) for p in purposes]
    found += [two.pack_key(bytes([i]) * 16, e) for i in range(3) for e in (0, 1)]
    found += [volume_keys.chunk_key(two.pack_key(bytes(16)), i) for i in range(5)]
    found += [MASTER, bytes(32)]

    assert len(set(found)) == len(found)
    assert {len(key) for key in found} == {32}


def test_the_current_epoch_is_used_unless_another_is_named() -> None:
    old = volume_keys.Keyring(FSID, {3: MASTER}, 3)
    new = old.with_master(4, bytes(32), current=True)

    assert (new.epoch, new.epochs, old.epochs) == (4, [3, 4], [3])
    assert new.subkey("log") == new.subkey("log", 4) != new.subkey("log", 3)
    assert new.subkey("log", 3) == old.subkey("log")
    assert new.pack_key(b"x", 3) == old.pack_key(b"x")


def test_an_epoch_without_a_key_is_an_error_of_the_volume() -> None:
    with pytest.raises(Corrupt, match="epoch 7"):
        ring().subkey("log", 7)


def test_a_keyring_does_not_show_its_keys() -> None:
    keyring = ring()
    keyring.subkey("log")
    for shown in (repr(keyring), str(keyring), f"{keyring}", "%s" % keyring):  # noqa: UP031
        assert shown == f"<Keyring of {FSID.hex()}, epochs 0>"
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            leak(keyring)
    assert not hasattr(keyring, "__dict__")


@pytest.mark.parametrize(
    ("fsid", "masters", "current"),
    [(b"short", {0: MASTER}, 0), (FSID, {0: b"short"}, 0), (FSID, {0: MASTER}, 1), (FSID, {}, 0)],
)
def test_impossible_keyrings_are_refused(
    fsid: bytes, masters: dict[int, bytes], current: int
) -> None:
    with pytest.raises(ValueError, match=r"volume id|master key"):
        volume_keys.Keyring(fsid, masters, current)


@given(st.binary(max_size=3000))
def test_digest_is_blake3(data: bytes) -> None:
    assert (
        volume_keys.digest(data)
        == volume_keys.digest(memoryview(data))
        == blake3.blake3(data).digest()
    )


def test_digest_vectors() -> None:
    # From BLAKE3's own test_vectors.json: input_len 0, and 1 (byte 0).
    assert volume_keys.digest(b"").hex() == (
        "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    )
    assert volume_keys.digest(b"\0").hex() == (
        "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213"
    )


def test_wrapped_keys_open_only_with_their_key_and_context() -> None:
    wrapped = volume_keys.wrap(b"k" * 32, b"slot", MASTER)

    assert volume_keys.unwrap(b"k" * 32, b"slot", wrapped) == MASTER
    for kek, context in ((b"l" * 32, b"slot"), (b"k" * 32, b"slut")):
        with pytest.raises(Corrupt):
            volume_keys.unwrap(kek, context, wrapped)
    with pytest.raises(ValueError, match="32"):
        volume_keys.wrap(b"k" * 32, b"slot", b"short")


def test_a_slot_that_holds_something_else_is_corrupt() -> None:
    from megafs.crypto import aead

    with pytest.raises(Corrupt, match="31 bytes"):
        volume_keys.unwrap(b"k" * 32, b"slot", aead.seal(b"k" * 32, b"slot", bytes(31)))


def _rfc5869() -> list[dict[str, str]]:
    path = os.path.join(
        os.path.dirname(cryptography_vectors.__file__), "KDF", "rfc-5869-HKDF-SHA256.txt"
    )
    cases: list[dict[str, str]] = []
    with open(path) as lines:
        for line in lines:
            name, _, value = line.partition("=")
            if name.strip() == "COUNT":
                cases.append({})
            elif value:
                cases[-1][name.strip()] = value.strip()
    return cases


@pytest.mark.parametrize("case", _rfc5869(), ids=lambda c: c["OKM"][:8])
def test_rfc_5869(case: dict[str, str]) -> None:
    # RFC 5869 publishes SHA-256 and SHA-1 only; the expansion is the same code with SHA-512.
    prk, info = bytes.fromhex(case["PRK"]), bytes.fromhex(case["info"])
    expanded = HKDFExpand(hashes.SHA256(), int(case["L"]), info).derive(prk)

    assert expanded.hex() == case["OKM"]
