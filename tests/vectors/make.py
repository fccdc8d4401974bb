"""Make the golden objects that are not there yet; see README.md.

python -m tests.vectors.make
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator

from megafs.config import Parameters
from megafs.crypto import aead, kdf
from megafs.crypto.keys import Keyring, chunk_key
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


MAKERS: list[Callable[[], Iterator[Object]]] = [volume_header, sealed_bytes]


def main() -> None:
    for maker in MAKERS:
        for name, fields, data in maker():
            if golden.add(name, fields, data):
                print(f"{name}.golden: {len(data)} bytes, expect {fields['expect']}")


if __name__ == "__main__":
    main()
