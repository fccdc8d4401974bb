"""MEGA's ciphers against known answers, and against the tests' own plain form of them."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megafs.mega import ciphers
from megafs.mega.ciphers import FileKey, FileMac, decipherer
from tests.services.mega import reference

KEY = bytes(range(16))
NONCE = bytes.fromhex("1011121314151617")

#: size, beginning of SHA-256 of the ciphertext, node key; made with megajs 1.3.10 where it agrees
#: with MEGA's SDK (not at the exact end of a chunk), plain byte i is (i * 31 + 7) & 255.
KNOWN = [
    (1, "2d31936919341244", "101010101010101005ff1259e162953210111213141516170df61852ed6f9b3d"),
    (16, "85e17eedd5d46b89", "10101010101010104d42f2899c39233f1011121314151617454bf88290342d30"),
    (17, "7d0458dac4377d22", "1010101010101010fb9ef82d2b6e805b1011121314151617f397f22627638e54"),
    (
        131073,
        "3f57498326cf99d9",
        "101010101010101066d92a51bf5cbbff10111213141516176ed0205ab351b5f0",
    ),
    (
        393217,
        "01eef52c1b235410",
        "10101010101010102008ddf5aa2c9ca610111213141516172801d7fea62192a9",
    ),
    (
        400000,
        "c422479c53ea2590",
        "10101010101010103f51fbf77394a1df10111213141516173758f1fc7f99afd0",
    ),
    (
        4718593,
        "be0ad0727cb54217",
        "101010101010101047f5c64447e0b02f10111213141516174ffccc4f4bedbe20",
    ),
    (
        6000000,
        "57e04f93f143e469",
        "10101010101010107ba438eb8b7936dc101112131415161773ad32e0877438d3",
    ),
]


def plain_of(size: int) -> bytes:
    return (bytes((i * 31 + 7) & 255 for i in range(256)) * (size // 256 + 1))[:size]


@pytest.mark.parametrize(("size", "digest", "node_key"), KNOWN)
def test_known_answers(size: int, digest: str, node_key: str) -> None:
    plain = plain_of(size)
    made = reference.encrypt_file(plain, KEY, NONCE)
    assert hashlib.sha256(made.data).hexdigest()[:16] == digest
    assert made.node_key.hex() == node_key
    key = FileKey.of(made.node_key)
    assert (key.key, key.nonce) == (KEY, NONCE)
    assert decipherer(key, 0)(made.data) == plain
    mac = FileMac(key)
    mac.update(plain)
    assert mac.fits()


@settings(deadline=None, max_examples=40)
@given(
    size=st.one_of(
        st.integers(0, 300_000),
        st.sampled_from([131_072, 393_216, 786_432, 4_718_592, 5_767_168]).flatmap(
            lambda n: st.integers(n - 1, n + 1)
        ),
    ),
    cuts=st.lists(st.integers(1, 400_000), max_size=6),
)
def test_the_mac_is_the_same_however_the_bytes_come(size: int, cuts: list[int]) -> None:
    plain = plain_of(size)
    made = reference.encrypt_file(plain, KEY, NONCE)
    mac = FileMac(FileKey.of(made.node_key))
    at = 0
    for cut in cuts:
        mac.update(plain[at : at + cut])
        at += cut
    mac.update(plain[at:])
    assert mac.fits()


@given(st.integers(0, 99_999), st.integers(0, 7))
def test_one_bit_that_is_turned_is_found(at: int, bit: int) -> None:
    plain = bytearray(plain_of(100_000))
    key = FileKey.of(reference.encrypt_file(bytes(plain), KEY, NONCE).node_key)
    plain[at] ^= 1 << bit
    mac = FileMac(key)
    mac.update(plain)
    assert not mac.fits()


@given(st.integers(0, 99), st.integers(0, 2000))
def test_a_range_opens_by_itself(block: int, length: int) -> None:
    plain = plain_of(5000)
    made = reference.encrypt_file(plain, KEY, NONCE)
    start = block * 16
    opened = decipherer(FileKey.of(made.node_key), start)(made.data[start : start + length])
    assert opened == plain[start : start + length]


def test_passwords() -> None:
    v1 = ciphers.password_keys_v1("mock@test", "mock")
    assert (v1.key.hex(), v1.proof) == ("148ed5027fa78a9e97a444159a54c621", "jCf2Pc0pLCU")
    v2 = ciphers.password_keys_v2("mock", bytes(range(16)))
    assert v2.key.hex() == "a3317725445e3fc9d15bf2198dca0405"
    assert ciphers.decode(v2.proof).hex() == "5acd08b96137c36cf5ca02a9e25ed736"


@given(st.text(max_size=50), st.one_of(st.none(), st.integers(0, 2**40)))
def test_attributes(name: str, mtime: int | None) -> None:
    closed = ciphers.decode(reference.attributes(name, KEY, mtime))
    found = ciphers.open_attributes(KEY, closed)
    assert found is not None and found["n"] == name
    assert ciphers.mtime_of(found.get("c")) == mtime
    assert ciphers.open_attributes(NONCE + NONCE, closed) is None


@given(st.binary(max_size=100), st.binary(min_size=16, max_size=16))
def test_attributes_of_anybody_do_no_harm(closed: bytes, key: bytes) -> None:
    assert ciphers.open_attributes(key, closed) is None
    assert ciphers.mtime_of(ciphers.encode(closed)) is None or len(closed) > 16


@given(st.binary(max_size=70))
def test_base64_of_either_alphabet(data: bytes) -> None:
    text = reference.b64(data)
    assert ciphers.encode(data) == text
    assert ciphers.decode(text) == data
    assert ciphers.decode(text.replace("-", "+").replace("_", "/") + "=") == data
