"""What was ever written opens today, and what was refused is refused today."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

import pytest
import trio
from msgspec.structs import asdict

from megafs import errors
from megafs.chunks import codec as chunk_format
from megafs.crypto import aead
from megafs.crypto.volume_keys import Keyring, chunk_key, digest
from megafs.journal import checkpoint
from megafs.journal import commit as commit_format
from megafs.stores.memory import MemoryStore
from megafs.tree.tree import Extent
from megafs.volume import header as headers
from megafs.volume.header import Credential, Remembered
from tests.vectors import golden
from tests.vectors.golden import Golden


def open_header(given: Golden) -> dict[str, str]:
    credential = Credential(
        passphrase=given.fields.get("passphrase"),
        keyfile=given.hex("keyfile") if "keyfile" in given.fields else None,
        recovery=given.fields.get("recovery"),
    )
    header = headers.parse(given.data, given.fields["name"])
    remembered = None
    if "slot" in given.fields:  # the one to try first, where several would open
        remembered = Remembered(header.fsid, header.generation, given.hex("slot"))
    unlocked = headers.unlock(header, credential, remembered)
    return {
        "gives-slot": unlocked.slot_id.hex(),
        "gives-fsid": unlocked.header.fsid.hex(),
        "gives-master": unlocked.keyring.master(unlocked.header.epoch).hex(),
        "gives-parameters": json.dumps(asdict(unlocked.header.parameters), sort_keys=True),
    }


def open_sealed(given: Golden) -> dict[str, str]:
    fsid, pack, epoch = given.hex("fsid"), given.hex("pack"), int(given.fields["epoch"])
    offset = int(given.fields["offset"])
    ring = Keyring(fsid, {epoch: given.hex("master")}, epoch)
    key = chunk_key(ring.pack_key(pack), offset)
    plaintext = aead.open_sealed(key, aead.context("chunk", fsid, epoch, pack, offset), given.data)
    return {"gives-digest": hashlib.sha256(plaintext).hexdigest()}


def ring_of(given: Golden) -> Keyring:
    epoch = int(given.fields["epoch"])
    return Keyring(given.hex("fsid"), {epoch: given.hex("master")}, epoch)


def open_chunk(given: Golden) -> dict[str, str]:
    ring, pack = ring_of(given), given.hex("pack")
    offset, plain = int(given.fields["offset"]), int(given.fields["plain"])
    extent = Extent(0, plain, 1, offset, len(given.data), plain, 0, None, None)
    key = ring.pack_key(pack)
    data = chunk_format.open_chunk(key, ring.fsid, ring.epoch, pack, extent, given.data)
    return {"gives-digest": hashlib.sha256(data).hexdigest()}


def open_commit(given: Golden) -> dict[str, str]:
    commit = commit_format.open_commit(ring_of(given), int(given.fields["sequence"]), given.data)
    changeset = commit_format.unpack_changeset(commit)
    return {
        "gives-host": commit.host,
        "gives-prev": commit.prev.hex(),
        "gives-mount": str(commit.mount),
        "gives-batches": f"{commit.first_batch} {commit.last_batch}",
        "gives-changeset": hashlib.sha256(changeset).hexdigest(),
    }


def open_part(given: Golden) -> dict[str, str]:
    name, rows = given.fields["object"], int(given.fields["rows"])
    entry = checkpoint.PartEntry((), name, digest(given.data), len(given.data), rows)
    found = [tuple(row) for row in checkpoint._open_part(ring_of(given), entry, given.data)]
    return {"gives-rows": hashlib.sha256(repr(found).encode()).hexdigest()}


def open_manifest(given: Golden) -> dict[str, str]:
    store = MemoryStore()
    sequence = int(given.fields["sequence"])

    async def read() -> checkpoint.Manifest:
        await store.put_new(checkpoint.manifest_name(sequence), given.data)
        return await checkpoint.read_manifest(store, ring_of(given), sequence)

    manifest = trio.run(read)
    (part,) = manifest.tables["inodes"]
    return {
        "gives-head": manifest.head.hex(),
        "gives-part": part.object,
        "gives-digest": part.digest.hex(),
    }


OPENERS: dict[str, Callable[[Golden], dict[str, str]]] = {
    "volume header": open_header,
    "sealed bytes": open_sealed,
    "chunk": open_chunk,
    "commit": open_commit,
    "checkpoint part": open_part,
    "checkpoint manifest": open_manifest,
}


@pytest.mark.parametrize("given", golden.all_objects(), ids=lambda g: g.name)
def test_golden(given: Golden) -> None:
    opener = OPENERS[given.fields["kind"]]
    expect = given.fields["expect"]

    if expect == "opens":
        gives = {k: v for k, v in given.fields.items() if k.startswith("gives-")}
        assert gives
        assert opener(given) == gives
    else:
        with pytest.raises(errors.MegafsError) as refusal:
            opener(given)
        assert type(refusal.value).__name__ == expect


def test_golden_objects_are_never_edited_or_removed() -> None:
    recorded = dict(line.split()[::-1] for line in golden.SUMS.read_text().splitlines())
    found = {path.name: golden.digest(path) for path in golden.HERE.glob("*.golden")}

    assert found == recorded
