"""Make the golden objects that are not there yet; see README.md.

python -m tests.vectors.make
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator

import msgspec

from megafs import compression
from megafs.chunks import codec as chunk_format
from megafs.config import Parameters
from megafs.crypto import aead, kdf
from megafs.crypto.volume_keys import Keyring, chunk_key, digest
from megafs.journal import checkpoint
from megafs.journal import commit as commit_format
from megafs.tree.schema import SequenceNumber
from megafs.volume import header as headers
from megafs.volume.header import Credential, Header
from tests.vectors import golden

Object = tuple[str, dict[str, str], bytes]

FSID = bytes.fromhex("000102030405060708090a0b0c0d0e0f")
MASTER = bytes.fromhex("101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f")
RING = Keyring(FSID, {0: MASTER}, 0)
PASSPHRASE = "correct horse ünd so"
KEYFILE = bytes(range(100, 164))
RECOVERY = kdf.format_recovery(bytes(range(200, 232)))
# The least that is accepted, so that the tests stay quick.
FLOOR = kdf.Cost(time=1, memory=64 << 10, lanes=4)


def _header() -> Header:
    ways = [
        ("passphrase", Credential(passphrase=PASSPHRASE)),
        ("both", Credential(passphrase=PASSPHRASE, keyfile=KEYFILE)),
        ("file", Credential(keyfile=KEYFILE)),
        ("", Credential(recovery=RECOVERY)),
    ]
    slots = [
        headers.enroll(
            RING,
            credential,
            entropy=bytes([number]) * headers.ENTROPY_SIZE,
            created_ns=1_795_000_000_000_000_000 + number,
            label=label,
            cost=FLOOR,
        )
        for number, (label, credential) in enumerate(ways, 1)
    ]
    return headers.new(
        RING,
        parameters=Parameters(
            chunk_size=65536,
            pack_size=8 << 20,
            inline_limit=512,
            compression="zstd",
            deduplication=False,
            quota=50 * 10**9,
        ),
        create_if_absent=True,
        created_ns=1_795_000_000_000_000_000,
        slots=slots,
    )


def volume_header() -> Iterator[Object]:
    """Each way in; an edited header; a later format."""
    header = _header()
    common = {"kind": "volume header", "format": "1", "name": header.name}
    gives = {
        "gives-fsid": FSID.hex(),
        "gives-master": MASTER.hex(),
        "gives-parameters": json.dumps(json.loads(header.encode())["parameters"], sort_keys=True),
    }
    ways = {
        "passphrase": (1, {"passphrase": PASSPHRASE}),
        "passphrase-decomposed": (1, {"passphrase": "correct horse u\u0308nd so"}),
        "both": (2, {"passphrase": PASSPHRASE, "keyfile": KEYFILE.hex()}),
        "keyfile": (3, {"keyfile": KEYFILE.hex()}),
        "recovery": (4, {"recovery": RECOVERY.lower().replace("-", " ")}),
    }
    for way, (number, credential) in ways.items():
        slot = (bytes([number]) * headers.SLOT_ID_SIZE).hex()
        opens = {"expect": "opens", "why": f"opened by {way}", "slot": slot, "gives-slot": slot}
        yield f"header-v1-{way}", {**common, **opens, **credential, **gives}, header.encode()

    wrong = {"expect": "BadPassphrase", "why": "another passphrase", "passphrase": "correct horse"}
    yield "header-v1-wrong-passphrase", {**common, **wrong}, header.encode()

    def edited(change: Callable[[dict[str, object]], object]) -> bytes:
        document = json.loads(header.encode())
        change(document)
        return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()

    refused = {
        "slot-removed": ("Corrupt", "the MAC covers all slots", lambda d: d["slots"].pop()),
        "quota-edited": (
            "Corrupt",
            "the MAC covers the parameters",
            lambda d: d["parameters"].update(quota=None),
        ),
        "weak-cost": (
            "Corrupt",
            "a cost below the floor is refused before any work",
            lambda d: d["slots"][0]["kdf"].update(memory=1024),
        ),
        "unknown-field": ("Corrupt", "parsed strictly", lambda d: d.update(more=1)),
        "other-magic": ("NotAVolume", "something else", lambda d: d.update(magic="gafs")),
        "later-format": ("TooNew", "a later format", lambda d: d.update(format=2, news=[])),
    }
    for name, (error, why, change) in refused.items():
        fields = {**common, "expect": error, "why": why, "keyfile": KEYFILE.hex()}
        yield f"header-v1-{name}", fields, edited(change)


def sealed_bytes() -> Iterator[Object]:
    """The envelope, around a segment's edge, with the key and context of a chunk."""
    pack = bytes(range(32, 48))
    for size in (0, 100, 16384, 40000):
        plaintext = bytes(i * 7 % 251 for i in range(size))
        key = chunk_key(RING.pack_key(pack), 4096)
        sealed = aead.seal(key, aead.context("chunk", FSID, 0, pack, 4096), plaintext)
        common = {
            "kind": "sealed bytes",
            "format": "1",
            "fsid": FSID.hex(),
            "master": MASTER.hex(),
            "epoch": "0",
            "pack": pack.hex(),
        }
        opens = {
            "expect": "opens",
            "why": f"{size} bytes, i * 7 % 251 each, at offset 4096 of a pack",
            "offset": "4096",
            "gives-digest": hashlib.sha256(plaintext).hexdigest(),
        }
        yield f"sealed-v1-{size}", {**common, **opens}, sealed
        if size == 100:
            moved = {"expect": "Corrupt", "why": "found at another offset", "offset": "8192"}
            yield "sealed-v1-moved", {**common, **moved}, sealed
            cut = {"expect": "Corrupt", "why": "its last byte is missing", "offset": "4096"}
            yield "sealed-v1-cut", {**common, **cut}, sealed[:-1]


def _common(kind: str, why: str) -> dict[str, str]:
    return {
        "kind": kind,
        "format": "1",
        "expect": "opens",
        "why": why,
        "fsid": FSID.hex(),
        "master": MASTER.hex(),
        "epoch": "0",
    }


def chunks() -> Iterator[Object]:
    """A chunk as it lies in a pack: as it is, compressed, and not where it was put."""
    pack = bytes(range(64, 80))
    texts = {"raw": bytes(i * i * 31 % 256 for i in range(700)), "zstd": b"all the same " * 900}
    for codec, data in texts.items():
        plain = chunk_format.encode(data, compress=codec == "zstd")
        sealed = chunk_format.seal(RING.pack_key(pack), FSID, 0, pack, 12345, plain)
        place = {"pack": pack.hex(), "offset": "12345", "plain": str(len(data))}
        gives = {"gives-digest": hashlib.sha256(data).hexdigest()}
        fields = {**_common("chunk", f"{codec}, {len(data)} bytes"), **place, **gives}
        yield f"chunk-v1-{codec}", fields, sealed
        moved = {**_common("chunk", "found at another offset"), **place}
        moved |= {"expect": "Corrupt", "offset": "12346"}
        yield f"chunk-v1-{codec}-moved", moved, sealed


def commits() -> Iterator[Object]:
    """The first commit of a volume, one that follows, and one under another number."""
    commit = commit_format.Commit(
        prev=commit_format.genesis(FSID),
        mount=0x1234,
        host="hóst",
        commit_id=bytes(range(16)),
        first_batch=3,
        last_batch=9,
        time_ns=1_795_000_000_000_000_000,
        generation=1,
        operations=17,
        changeset=commit_format.pack_changeset(b"a changeset, as SQLite makes them " * 30),
    )
    sealed = commit_format.seal(RING, 1, commit)
    fields = {**_common("commit", "the first one"), "sequence": "1", "gives-host": commit.host}
    gives = {
        "gives-prev": commit.prev.hex(),
        "gives-mount": str(commit.mount),
        "gives-batches": "3 9",
        "gives-changeset": hashlib.sha256(commit_format.unpack_changeset(commit)).hexdigest(),
    }
    yield "commit-v1-first", {**fields, **gives}, sealed
    wrong = {**_common("commit", "under another number"), "expect": "Corrupt", "sequence": "2"}
    yield "commit-v1-renumbered", wrong, sealed
    later = {**_common("commit", "a later format"), "expect": "TooNew", "sequence": "1"}
    yield "commit-v1-later-format", later, b"\x02" + sealed[1:]


def checkpoints() -> Iterator[Object]:
    """A manifest and the part that it names."""
    part_id = bytes(range(80, 96))
    rows = [(1, n, n * n, b"name %d" % n, None, "text") for n in range(300)]
    part = checkpoint._seal_part(RING, part_id, rows)
    name = f"checkpoints/{5:016d}/{part_id.hex()}"
    fields = {**_common("checkpoint part", "300 rows"), "object": name, "rows": "300"}
    yield (
        "checkpoint-v1-part",
        {**fields, "gives-rows": hashlib.sha256(repr(rows).encode()).hexdigest()},
        part,
    )
    head = bytes(range(32))
    manifest = checkpoint.Manifest(
        SequenceNumber(7),
        head,
        (1_795_000_000_000_000_000, "hóst", 0x1234),
        {"inodes": (checkpoint.PartEntry((), name, digest(part), len(part), 300),)},
        bytes(32) + head,
    )
    sealed = commit_format.seal_padded(
        RING,
        "ckpt",
        checkpoint.FORMAT,
        compression.compress(msgspec.msgpack.encode(manifest)),
        "manifest",
        7,
    )
    fields = {**_common("checkpoint manifest", "of commit 7"), "sequence": "7"}
    gives = {"gives-head": head.hex(), "gives-part": name, "gives-digest": digest(part).hex()}
    yield "checkpoint-v1-manifest", {**fields, **gives}, sealed
    moved = {**_common("checkpoint manifest", "an old one under a new name"), "sequence": "8"}
    yield "checkpoint-v1-manifest-moved", {**moved, "expect": "Corrupt"}, sealed


MAKERS: list[Callable[[], Iterator[Object]]] = [
    volume_header,
    sealed_bytes,
    chunks,
    commits,
    checkpoints,
]


def main() -> None:
    for maker in MAKERS:
        for name, fields, data in maker():
            if golden.add(name, fields, data):
                print(f"{name}.golden: {len(data)} bytes, expect {fields['expect']}")


if __name__ == "__main__":
    main()
