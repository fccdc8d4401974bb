"""Chunks: what is sealed opens where it was put, and nowhere else."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megafs.chunks import codec as chunk_format
from megafs.errors import Corrupt
from megafs.tree.tree import Extent

KEY, FSID, PACK = bytes(range(32)), bytes(16), b"p" * 16
OFFSET = 4242
datas = st.one_of(
    st.binary(max_size=300),
    st.builds(lambda b, n: b * n, st.binary(min_size=1, max_size=3), st.integers(1, 20_000)),
    st.builds(os.urandom, st.integers(0, 40_000)),
)


def sealed(data: bytes, compress: bool = True) -> tuple[Extent, bytes]:
    plain = chunk_format.encode(data, compress)
    body = chunk_format.seal(KEY, FSID, 1, PACK, OFFSET, plain)
    return Extent(0, len(data), 5, OFFSET, len(body), len(data), 0, None, None), body


@settings(deadline=None)
@given(datas, st.booleans())
def test_what_was_sealed_opens(data: bytes, compress: bool) -> None:
    extent, body = sealed(data, compress)
    assert bytes(chunk_format.open_chunk(KEY, FSID, 1, PACK, extent, body)) == data


@settings(deadline=None)
@given(datas)
def test_bytes_that_do_not_compress_grow_by_a_head_only(data: bytes) -> None:
    assert len(chunk_format.encode(data, True)) <= len(data) + chunk_format.HEAD.size


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"pack_key": bytes(32)},
        {"fsid": b"x" * 16},
        {"epoch": 2},
        {"pack": b"q" * 16},
        {"offset": OFFSET + 1},
    ],
)
def test_a_chunk_opens_only_where_it_was_put(elsewhere: dict[str, object]) -> None:
    extent, body = sealed(b"data" * 100)
    place: dict[str, object] = {"pack_key": KEY, "fsid": FSID, "epoch": 1, "pack": PACK}
    if "offset" in elsewhere:
        extent = extent._replace(offset=OFFSET + 1)
    else:
        place.update(elsewhere)
    with pytest.raises(Corrupt):
        chunk_format.open_chunk(extent=extent, sealed=body, **place)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_changed_bit_is_noticed(data: st.DataObject) -> None:
    extent, body = sealed(b"data" * 10)
    at = data.draw(st.integers(0, len(body) * 8 - 1))
    spoilt = bytearray(body)
    spoilt[at // 8] ^= 1 << at % 8
    with pytest.raises(Corrupt):
        chunk_format.open_chunk(KEY, FSID, 1, PACK, extent, bytes(spoilt))


@pytest.mark.parametrize("size", [0, 1, 70])
def test_a_chunk_of_another_length_is_corrupt(size: int) -> None:
    extent, body = sealed(b"data" * 10)
    with pytest.raises(Corrupt):
        chunk_format.open_chunk(KEY, FSID, 1, PACK, extent, body[:size])
    with pytest.raises(Corrupt):
        chunk_format.open_chunk(KEY, FSID, 1, PACK, extent._replace(plain=39), body)


@pytest.mark.parametrize(
    "plain",
    [
        b"",
        b"\0\0\0\1",
        chunk_format.HEAD.pack(5, 0) + b"four",
        chunk_format.HEAD.pack(5, 7) + b"other",
        chunk_format.HEAD.pack(5, 1) + b"not zstd",
        chunk_format.HEAD.pack((1 << 20) + 1, 0) + bytes((1 << 20) + 1),
        chunk_format.HEAD.pack(9, 1) + chunk_format.encode(bytes(1000), True)[5:],
    ],
)
def test_plaintext_that_is_no_chunk_is_corrupt(plain: bytes) -> None:
    with pytest.raises(Corrupt):
        chunk_format.decode(plain)


def test_a_small_chunk_cannot_become_a_large_one() -> None:
    """A bomb: little compressed, much more than it says when opened."""
    bomb = chunk_format.encode(bytes(1 << 20), True)[5:]
    with pytest.raises(Corrupt):
        chunk_format.decode(chunk_format.HEAD.pack(100, 1) + bomb)
