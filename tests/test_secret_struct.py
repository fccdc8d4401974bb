"""What holds a secret does not show it: not in a repr, not to rich, not to a traceback."""

import io
from pathlib import Path

import pytest
from rich.console import Console
from rich.pretty import Pretty

from megafs.chunks.stage import StagedPack
from megafs.config import Parameters, Settings
from megafs.crypto import kdf
from megafs.crypto.volume_keys import Keyring
from megafs.mount.lifecycle import MountRequest
from megafs.mount.mountpoint import Directory
from megafs.mount.options import MountOptions
from megafs.stores.s3.sigv4 import Credentials
from megafs.volume.header import Credential, Header, Slot, Unlocked
from megafs.volume.header_store import Changed

SECRET = "hunter2hunter2"
BYTES = SECRET.encode()
COST = kdf.Cost(1, 64, 1)
CREDENTIAL = Credential(passphrase=SECRET, keyfile=BYTES, recovery=SECRET)
SLOT = Slot(b"id", "passphrase", "home", 0, b"salt", COST, BYTES)
HEADER = Header(b"fsid", 1, 1, 0, Parameters(), True, (SLOT,), b"mac", BYTES)
HOLDERS = (
    CREDENTIAL,
    Credentials("AKIA", SECRET, SECRET),
    kdf.Task(BYTES, b"salt", COST, BYTES),
    SLOT,
    HEADER,
    Changed(
        Unlocked(HEADER, Keyring(b"f" * 16, {0: b"k" * 32}, 0), b"id", b"digest"), None, "", SECRET
    ),
    MountRequest(
        "file:///x",
        "/mnt",
        Directory(1, 2),
        MountOptions(Settings(Path("/s"), Path("/c"))),
        CREDENTIAL,
    ),
    StagedPack(1, b"name", 1, Path("/p"), 3, BYTES),
)


@pytest.mark.parametrize("holder", HOLDERS, ids=lambda holder: type(holder).__name__)
def test_shows_no_secret(holder: object) -> None:
    out = io.StringIO()
    Console(file=out, width=200).print(Pretty(holder), [holder])

    for text in (repr(holder), str(holder), f"{[holder]}", out.getvalue()):
        assert type(holder).__name__ in text
        assert SECRET not in text


def test_shows_what_it_names() -> None:
    assert repr(Credentials("AKIA", SECRET)) == "Credentials(access_key='AKIA')"
    assert repr(CREDENTIAL) == "Credential()"
