"""What parses bytes of a store or a disk, with bytes to give it.

Each target is a strategy and a check.  The check returns for every input: what the parser may raise
is caught there, and nothing else is.  Two kinds of input:

    any bytes    of the store: noise, and a real object that was cut, flipped, spliced
    sealed       by a writer with a fault, or one who has the key: any MessagePack, sealed rightly
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import apsw
import msgspec
from blake3 import blake3
from hypothesis import strategies as st
from msgspec import Struct

from megafs import compression
from megafs.chunks import codec
from megafs.chunks.stage import staged_ids
from megafs.config import Parameters
from megafs.crypto import aead, kdf
from megafs.crypto.volume_keys import Keyring, chunk_key, digest
from megafs.errors import (
    BadUsage,
    Corrupt,
    NotAVolume,
    StoreError,
    TooNew,
)
from megafs.journal import checkpoint, head, heartbeat
from megafs.journal import commit as commit_format
from megafs.journal.operation_log import OperationLog
from megafs.mount import config_file, control_messages, mount_record
from megafs.stores.http import http1
from megafs.stores.http.session import Response
from megafs.stores.s3 import answers
from megafs.tree import ops, rebuild
from megafs.tree.changeset import Changes, row_changes
from megafs.tree.schema import INDEXES, REPLICATED
from megafs.tree.tree import Extent, Tree
from megafs.volume import header as headers
from megafs.volume import state_directory
from megafs.volume.header import Credential
from tests.vectors import golden

RING = Keyring(bytes(16), {0: bytes(range(32)), 1: bytes(range(1, 33))}, 1)
PACK = bytes(range(16))


class Target(Struct, frozen=True):
    """A parser.  inputs: what it is given.  check: gives it; raises what it must not."""

    inputs: st.SearchStrategy[Any]
    check: Callable[[Any], None]


# ---- inputs ------------------------------------------------------------------------------------

_numbers = st.one_of(
    st.integers(-3, 300),
    st.sampled_from([-(2**63), 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1]),
    st.integers(-(2**63), 2**64 - 1),
)
_leaves = st.one_of(
    st.none(),
    st.booleans(),
    _numbers,
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=40),
)
#: Whatever MessagePack can say, but for its extension types.
values = st.recursive(
    _leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=6),
        st.dictionaries(st.one_of(st.text(max_size=8), st.integers(0, 9)), inner, max_size=5),
    ),
    max_leaves=25,
)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), _numbers, st.floats(), st.text(max_size=20)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=5), st.dictionaries(st.text(max_size=10), inner, max_size=5)
    ),
    max_leaves=20,
)


@st.composite
def changed(draw: st.DrawFn, samples: list[bytes]) -> bytes:
    """A real object that was cut, flipped, lengthened, or spliced with another; or noise."""
    if draw(st.integers(0, 5)) == 0:
        return draw(st.binary(max_size=400))
    data = bytearray(draw(st.sampled_from(samples)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.integers(0, 5)):
            case 0:
                del data[at:]
            case 1 if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case 2:
                data[at:at] = draw(st.binary(max_size=30))
            case 3:
                other = draw(st.sampled_from(samples))
                data[at:] = other[draw(st.integers(0, len(other))) :]
            case 4:
                end = draw(st.integers(at, min(len(data), at + 64)))
                data[at:at] = data[at:end] * draw(st.integers(1, 20))
            case _ if at < len(data):
                data[at] = draw(st.sampled_from([0, 0x7F, 0x80, 0xFF, 0x27, 0x3C, 0x7B, 0x2D]))
    return bytes(data)


def packed(real: list[Any]) -> st.SearchStrategy[bytes]:
    """MessagePack: anything; a real array with some fields replaced; and real bytes, changed."""

    @st.composite
    def near(draw: st.DrawFn) -> bytes:
        made = list(real)
        for _ in range(draw(st.integers(1, 3))):
            made[draw(st.integers(0, len(made) - 1))] = draw(values)
        if draw(st.booleans()) and made:
            del made[draw(st.integers(0, len(made) - 1))]
        return msgspec.msgpack.encode(made)

    return st.one_of(
        near(), values.map(msgspec.msgpack.encode), changed([msgspec.msgpack.encode(real)])
    )


# ---- samples -----------------------------------------------------------------------------------


@cache
def changeset() -> bytes:
    """What the first commit of a volume brings."""
    db = apsw.Connection(":memory:")
    for table in REPLICATED:
        db.execute(table.sql)
    for sql in INDEXES:
        db.execute(sql)
    session = apsw.Session(db, "main")
    for table in REPLICATED:
        session.attach(table.name)
    ops.empty_tree(Tree(db, 1 << 16), 10**18, 0, 0)
    made = bytes(session.changeset())
    session.close()
    db.close()
    assert made
    return made


def _commit() -> list[Any]:
    packed_changes = compression.compress(changeset())
    return [bytes(32), 5, "host", bytes(16), 1, 2, 10**18, 1, 3, packed_changes, None]


def _manifest() -> list[Any]:
    part = [[5, b"name"], f"checkpoints/{7:016d}/{'ab' * 16}", bytes(32), 100, 3]
    return [7, bytes(32), [10**18, "host", 5], {"inodes": [part], "dirents": []}, bytes(64), 1]


def _beat() -> list[Any]:
    return [5, "host", 9, 10**18, 3, False, b"token", [bytes(16)]]


def sealed(purpose: str, body: bytes, *place: bytes | int | str) -> bytes:
    return commit_format.seal_padded(RING, purpose, 1, body, *place)


# ---- checks ------------------------------------------------------------------------------------


def check_commit(data: bytes) -> None:
    try:
        commit = commit_format.open_commit(RING, 7, data)
        Changes.of(commit_format.unpack_changeset(commit))
    except (Corrupt, TooNew):
        return
    for number in (commit.mount, commit.first_batch, commit.last_batch, commit.time_ns):
        assert -(2**63) <= number < 2**63


def check_changeset(data: bytes) -> None:
    try:
        changes = Changes.of(data)
        assert isinstance(changes.used, int)
        list(row_changes(data))
    except Corrupt:
        return


def check_manifest(data: bytes) -> None:
    try:
        manifest = checkpoint.open_manifest(RING, 7, data)
    except (Corrupt, TooNew):
        return
    for entries in manifest.tables.values():
        for entry in entries:
            bytes.fromhex(entry.object.rpartition("/")[2])
            hash(entry.low)
    assert all(-(2**63) <= number < 2**63 for number in (manifest.last[0], manifest.last[2]))


def check_part(data: bytes) -> None:
    name = f"checkpoints/{7:016d}/{PACK.hex()}"
    for rows in (0, 1, 2, 3):
        entry = checkpoint.PartEntry((), name, digest(data), len(data), rows)
        try:
            found = checkpoint._open_part(RING, entry, data)
        except Corrupt:
            continue
        except TooNew:
            return
        db = apsw.Connection(":memory:")
        rebuild.create_tables(db)
        for table in REPLICATED:
            try:
                checkpoint.check_rows(table, found)
            except Corrupt:
                continue
            try:
                rebuild.insert_rows(db, table.name, found)
            except (apsw.Error, OverflowError):
                continue  # whoever inserts makes Corrupt of it


def check_heartbeat(data: bytes) -> None:
    try:
        beat = heartbeat.open_heartbeat(RING, heartbeat.name_of(5), data)
    except (Corrupt, TooNew):
        return
    json.dumps([beat.mount, beat.host, beat.sequence, beat.time_ns / 1e9])


def check_header(data: bytes) -> None:
    for parse in (headers.parse, headers.parse_copy):
        try:
            header = parse(data, "keys/00000001")
        except (Corrupt, TooNew, NotAVolume):
            continue
        assert header.encode() == data
        for slot in header.slots:
            if slot.cost is not None:
                kdf.check_cost(slot.cost)


def check_chunk(data: bytes) -> None:
    for plain in (0, 5, 100, 4096):
        extent = Extent(0, plain, 1, 64, len(data), plain, 0, None, None)
        try:
            codec.open_chunk(RING.pack_key(PACK), RING.fsid, RING.epoch, PACK, extent, data)
        except Corrupt:
            continue


def check_listing(body: bytes) -> None:
    reply = Response(200, {}, body)
    answers.error_of(reply)
    answers.child_text(reply, "UploadId")
    for prefix, after in (("", ""), ("p/", "commits/1")):
        try:
            listing = answers.read_listing(reply, "server", prefix, after, 10)
        except StoreError:
            continue
        for entry in listing.entries:
            assert 0 <= entry.size < 2**63


def check_http(text: bytes) -> None:
    for method in (b"GET", b"HEAD", b"PUT"):
        try:
            parsed = http1._parse(text, method)
        except http1.Garbled:
            continue
        assert parsed.length is None or 0 <= parsed.length < 10**20


def check_head(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "head").write_bytes(data)
        try:
            seen = head.read(Path(place))
        except Corrupt:
            return
        assert seen is not None
        for number in (seen.sequence, seen.generation, seen.epoch or 0, seen.rotating):
            assert isinstance(number, int)
        head.write(Path(place), seen)
        assert head.read(Path(place)) == seen


def check_log(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "ops-00000001").write_bytes(data)
        log = OperationLog(Path(place), RING, 5)
        for _, frames in log.read(lambda pack, offset, chunk: None):
            for frame in frames:
                try:
                    ops.decode(frame.operations)
                except Corrupt:
                    continue


def check_operations(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as place:
        log = OperationLog(Path(place), RING, 5)
        log.append(3, data)
        log.sync()
        log.close(0)
        ((batch, frames),) = OperationLog(Path(place), RING, 5).read()
        assert (batch, [frame.operations for frame in frames]) == (3, [data])
    try:
        ops.decode(data)
    except Corrupt:
        return


def check_pack_name(name: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        try:
            (Path(place) / name).touch()
        except (OSError, ValueError):
            return
        for number, (pack, epoch) in staged_ids(Path(place)).items():
            assert 0 < number < 2**63
            assert len(pack) == 16
            assert 0 <= epoch < 2**32


def check_config(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "config.toml"
        path.write_bytes(data)
        path.chmod(0o600)
        try:
            found = config_file.read({"MEGAFS_CONFIG": str(path)})
            list(config_file.options_for("s3://bucket/home", found))
        except BadUsage:
            return


def check_record(data: bytes) -> None:
    name = mount_record.file_name("/mnt")
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / f"{name}.json"
        path.write_bytes(data)
        path.chmod(0o600)
        for record in mount_record.records(Path(place)):
            assert record.mountpoint == "/mnt"
            assert record.pid >= 1


def check_url_file(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as place:
        path = state_directory._url_path(Path(place), "s3://b")
        path.parent.mkdir()
        path.write_bytes(data)
        found = state_directory.remembered_fsid(Path(place), "s3://b")
        assert found is None or len(found) == 16


def check_request(line: bytes) -> None:
    try:
        control_messages.decode_request(line)
    except BadUsage:
        return


def check_reply(line: bytes) -> None:
    try:
        reply = control_messages.decode_reply(line)
        for kind in (control_messages.MountStatus, control_messages.CacheClearResult):
            try:
                control_messages.converted(reply.result, kind)
            except ValueError:
                continue
    except ValueError:
        return


# ---- all of them -------------------------------------------------------------------------------


def _framed(body: bytes, batch: int = 3, first: int = 0) -> bytes:
    with tempfile.TemporaryDirectory() as place:
        log = OperationLog(Path(place), RING, 5)
        log.append(batch, body, first, [(1, 2, b"chunk")])
        log.sync()
        log.close(0)
        return (Path(place) / "ops-00000001").read_bytes()


def _place(fields: Any) -> bytes:
    text = json.dumps(fields).encode()[:480]
    return (text + b" " + blake3(text).hexdigest(8).encode()).ljust(511) + b"\n"


def _head_fields() -> dict[str, Any]:
    return {
        "turn": 3,
        "fsid": "ab" * 16,
        "sequence": 7,
        "hash": "cd" * 32,
        "generation": 2,
        "slot": "ef" * 8,
        "epoch": 1,
        "header": "12" * 32,
        "rotating": 0,
    }


@st.composite
def _near_json(draw: st.DrawFn, real: Any) -> Any:
    """*real*, with a value somewhere in it replaced, a key removed or added."""
    made = json.loads(json.dumps(real))
    for _ in range(draw(st.integers(1, 2))):
        at = made
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(at[key], dict | list) and draw(st.integers(0, 3)):
                at = at[key]
                continue
            match draw(st.integers(0, 3)):
                case 0:
                    del at[key]
                case 1 if isinstance(at, dict):
                    at[draw(st.text(max_size=6))] = draw(json_values)
                case _:
                    at[key] = draw(json_values)
            break
    return made


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _goldens(kind: str) -> list[bytes]:
    return [g.data for g in golden.all_objects() if g.fields["kind"] == kind]


def _chunk(plain: bytes) -> bytes:
    context = aead.context("chunk", RING.fsid, RING.epoch, PACK, 64)
    return aead.seal(chunk_key(RING.pack_key(PACK), 64), context, plain)


LISTING = b"""<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><IsTruncated>true</IsTruncated>
<Contents><Key>commits/0000000000000001</Key><LastModified>2026-01-31T12:00:00.000Z</LastModified>
<Size>434</Size></Contents><Contents><Key>commits/0000000000000002</Key><LastModified>
2026-01-31T12:00:00.000Z</LastModified><Size>10</Size></Contents></ListBucketResult>"""
ERROR = (
    b"<Error><Code>NoSuchKey</Code><Message>&#x41; no</Message><ServerTime>x</ServerTime></Error>"
)
HEADS = [
    b'HTTP/1.1 200 OK\r\nContent-Length: 5\r\nETag: "x"',
    b"HTTP/1.1 206 OK\r\nContent-Range: bytes 0-4/9\r\nContent-Length: 5\r\nConnection: close",
    b"HTTP/1.0 404\r\nTransfer-Encoding: chunked",
]
CONFIG = b"""[mount]
cache_size = "20G"
ro = true
[volume."s3://bucket/home"]
endpoint = "http://127.0.0.1:8000"
number = 1_000
"""


def _header_json() -> list[Any]:
    keyring = Keyring(bytes(16), {0: bytes(32)}, 0)
    slots = [
        headers.enroll(
            keyring, credential, entropy=bytes([n]) * headers.ENTROPY_SIZE, created_ns=n, label="x"
        )
        for n, credential in enumerate([Credential(keyfile=bytes(range(64)))])
    ]
    made = headers.new(
        keyring, parameters=Parameters(), create_if_absent=True, created_ns=5, slots=slots
    )
    return json.loads(made.encode())  # type: ignore[no-any-return]


def real_objects() -> dict[str, bytes]:
    """One of each kind, as a writer without a fault makes it."""
    manifest = compression.compress(msgspec.msgpack.encode(_manifest()))
    return {
        "commit": sealed("log", msgspec.msgpack.encode(_commit()), 7),
        "manifest": sealed("ckpt", manifest, "manifest", 7),
        "heartbeat": sealed("mount", msgspec.msgpack.encode(_beat()), heartbeat.name_of(5)),
        "header": _canonical(_header_json()),
        "operations": ops.encode([ops.MarkGarbage((), 0), ops.Reap(5)]),
    }


def targets() -> dict[str, Target]:
    """Every target by name."""
    zstd = compression.compress
    real = real_objects()
    commits, manifests, beats = [real["commit"]], [real["manifest"]], [real["heartbeat"]]
    operation = real["operations"]
    manifest_body = zstd(msgspec.msgpack.encode(_manifest()))
    rows = [[1, 2, b"x"], [3, 4, b"y"]]
    parts = [sealed("ckpt", zstd(msgspec.msgpack.encode(rows)), "part", PACK)]
    beat_name = heartbeat.name_of(5)
    header = _header_json()
    request = {"v": control_messages.VERSION, "version": control_messages.VERSION, "op": "umount"}
    reply = {"result": {"mountpoint": "/m", "url": "s3://b", "pid": 5, "state": "mounted"}}
    record = {"mountpoint": "/mnt", "url": "s3://b", "pid": 5, "started": 7}
    cells = st.lists(st.lists(_leaves, max_size=12), max_size=3)
    fitting = st.sampled_from(REPLICATED).flatmap(
        lambda t: st.lists(
            st.lists(_leaves, min_size=len(t.columns), max_size=len(t.columns)), max_size=3
        )
    )
    return {
        "commit, any bytes": Target(changed(commits), check_commit),
        "commit, sealed": Target(
            packed(_commit()).map(lambda body: sealed("log", body, 7)), check_commit
        ),
        "commit, changeset": Target(changed([changeset()]), check_changeset),
        "manifest, any bytes": Target(changed(manifests), check_manifest),
        "manifest, sealed": Target(
            st.one_of(packed(_manifest()).map(zstd), changed([manifest_body])).map(
                lambda body: sealed("ckpt", body, "manifest", 7)
            ),
            check_manifest,
        ),
        "part, any bytes": Target(changed(parts), check_part),
        "part, sealed": Target(
            st.one_of(
                cells.map(msgspec.msgpack.encode),
                fitting.map(msgspec.msgpack.encode),
                packed(rows),
            ).map(lambda body: sealed("ckpt", zstd(body), "part", PACK)),
            check_part,
        ),
        "heartbeat, any bytes": Target(changed(beats), check_heartbeat),
        "heartbeat, sealed": Target(
            packed(_beat()).map(lambda body: sealed("mount", body, beat_name)), check_heartbeat
        ),
        "header, any bytes": Target(changed(_goldens("volume header")), check_header),
        "header, JSON": Target(_near_json(header).map(_canonical), check_header),
        "chunk, any bytes": Target(changed(_goldens("chunk")), check_chunk),
        "chunk, sealed": Target(
            changed([codec.encode(b"a" * 4096, True), codec.encode(b"abcde", False)]).map(_chunk),
            check_chunk,
        ),
        "S3 answers": Target(changed([LISTING, ERROR]), check_listing),
        "HTTP head": Target(changed(HEADS), check_http),
        "remembered head": Target(
            changed([_place(_head_fields()) * 2, _place(_head_fields()) + b" " * 512]), check_head
        ),
        "remembered head, whole": Target(
            _near_json(_head_fields()).map(lambda fields: _place(fields) + b" " * 512), check_head
        ),
        "operation log, any bytes": Target(changed([_framed(operation)]), check_log),
        "operation log, sealed": Target(
            st.one_of(
                values.map(msgspec.msgpack.encode),
                changed([operation]),
            ),
            check_operations,
        ),
        "staged pack": Target(
            st.one_of(
                changed([b"00000000000000ff-" + b"ab" * 16 + b"-1"]).map(
                    lambda name: name.decode("utf-8", "surrogateescape")
                ),
                st.text(alphabet="0123456789abcdefx_ -", max_size=60),
            ),
            check_pack_name,
        ),
        "configuration": Target(changed([CONFIG]), check_config),
        "mount record": Target(
            st.one_of(
                changed([json.dumps(record).encode()]),
                _near_json(record).map(lambda v: json.dumps(v).encode()),
            ),
            check_record,
        ),
        "remembered URL": Target(
            st.one_of(
                changed([b'{"fsid": "' + b"ab" * 16 + b'"}']),
                _near_json({"fsid": "ab" * 16}).map(lambda v: json.dumps(v).encode()),
            ),
            check_url_file,
        ),
        "control request": Target(
            st.one_of(
                changed([json.dumps(request).encode()]),
                _near_json(request).map(lambda v: json.dumps(v).encode()),
            ),
            check_request,
        ),
        "control reply": Target(
            st.one_of(
                changed([json.dumps(reply).encode()]),
                _near_json(reply).map(lambda v: json.dumps(v).encode()),
            ),
            check_reply,
        ),
    }


TARGETS = targets()
