"""What was ever written opens today, and what was refused is refused today."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict

import pytest

from megafs import errors
from megafs.crypto import aead
from megafs.crypto.keys import Keyring, chunk_key
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


OPENERS: dict[str, Callable[[Golden], dict[str, str]]] = {
    "volume header": open_header,
    "sealed bytes": open_sealed,
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
