"""The manifest of a link: it opens for its link alone, and nothing odd in it passes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from megafs.crypto import aead
from megafs.errors import BadPassphrase, Corrupt, MegafsError, TooNew
from megafs.links.manifest import (
    LinkManifest,
    SharedBytes,
    SharedChunk,
    SharedFile,
    SharedObject,
    open_manifest,
    password_key,
    read_head,
    seal,
)

ID = "share-of-twenty-two-ch"
SECRET = bytes(range(32))
SALT = bytes(range(16))
CHUNK = SharedChunk(0, 100, 0, 0, 0, 300, 200, 10, b"k" * 32, b"d" * 32)
FILE = SharedFile("", 150, 12.5, chunks=(CHUNK,), inline=(SharedBytes(120, b"tail"),))
MANIFEST = LinkManifest(
    1, "a.txt", False, "00" * 16, 1, 0, (SharedObject("http://h/p", "ab" * 16, 0),), (FILE,)
)


def sealed(manifest: LinkManifest = MANIFEST, key: bytes = b"") -> bytes:
    return seal(manifest, ID, SECRET, key, SALT)


@settings(max_examples=40, deadline=None)
@given(st.text(min_size=1, max_size=60), st.integers(0, 3000))
def test_a_manifest_reads_back_and_has_a_padme_size(name: str, files: int) -> None:
    many = tuple(replace(FILE, path=str(n)) for n in range(files % 50))
    made = replace(MANIFEST, name=name, folder=True, files=many)
    data = sealed(made)
    assert open_manifest(data, ID, SECRET, b"") == made
    assert aead.padme(len(data)) == len(data)


def test_every_bit_counts() -> None:
    data = sealed()
    for at in range(len(data)):
        if 2 <= at < 18:
            continue  # the salt, which is in the context
        bad = bytearray(data)
        bad[at] ^= 1
        with pytest.raises(MegafsError):
            open_manifest(bytes(bad), ID, SECRET, b"")
    for at in (2, 17):
        bad = bytearray(data)
        bad[at] ^= 1
        with pytest.raises(Corrupt):
            open_manifest(bytes(bad), ID, SECRET, b"")


def test_the_manifest_of_another_link_does_not_open() -> None:
    with pytest.raises(Corrupt):
        open_manifest(sealed(), "other-of-twenty-two-ch", SECRET, b"")
    with pytest.raises(Corrupt):
        open_manifest(sealed(), ID, b"x" * 32, b"")


def test_a_password_is_needed_and_a_wrong_one_is_told_from_damage() -> None:
    key = password_key("Grüße", SALT)
    data = sealed(key=key)
    assert read_head(data).needs_password and read_head(data).salt == SALT
    assert open_manifest(data, ID, SECRET, key) == MANIFEST
    # NFC: typed on another keyboard, the letters are two characters each.
    assert password_key("Gru\u0308ße", SALT) == key
    for wrong in (b"", password_key("grüße", SALT)):
        with pytest.raises(BadPassphrase):
            open_manifest(data, ID, SECRET, wrong)
    damaged = data[:-1] + bytes((data[-1] ^ 1,))
    with pytest.raises(Corrupt):
        open_manifest(damaged, ID, SECRET, key)
    # A store that strips the flag cannot make a link open without its password.
    with pytest.raises(Corrupt):
        open_manifest(data[:1] + b"\0" + data[2:], ID, SECRET, b"")


def test_a_newer_format_is_named_but_not_believed() -> None:
    with pytest.raises(TooNew):
        read_head(b"\x02" + sealed()[1:])


@pytest.mark.parametrize(
    "odd",
    [
        {"version": 2},
        {"volume": "00"},
        {"volume": "zz" * 16},
        {"name": ""},
        {"files": ()},
        {"objects": (SharedObject("http://h/p", "ab", 0),)},
        {"objects": (SharedObject("http://h/p", "ab" * 16, -1),)},
        {"objects": ()},
        {"files": (replace(FILE, size=50),)},
        {"files": (replace(FILE, inline=(SharedBytes(90, b"over"),)),)},
        {"files": (replace(FILE, inline=(SharedBytes(-4, b"minus"),)),)},
        *(
            {"files": (replace(FILE, chunks=(replace(CHUNK, **change),)),)}
            for change in (
                {"key": b"short"},
                {"digest": b""},
                {"at": -1},
                {"offset": -1},
                {"skip": 150},
                {"plain": 1 << 30},
                {"sealed": 1 << 30},
                {"length": 0},
                {"object": 1},
                {"object": -1},
            )
        ),
    ],
)
def test_whoever_made_the_link_cannot_make_it_odd(odd: dict[str, Any]) -> None:
    with pytest.raises((Corrupt, TooNew)):
        open_manifest(sealed(replace(MANIFEST, **odd)), ID, SECRET, b"")
