"""Make a new volume: a key header, and the first commit, which makes the root directory."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import apsw
from msgspec import Struct
from msgspec.structs import replace

from megafs import clock
from megafs.chunks.pack_size import fitting, largest_object
from megafs.config import Parameters
from megafs.crypto.volume_keys import Keyring
from megafs.errors import AlreadyThere, Exists
from megafs.journal import commit as commit_format
from megafs.stores.abilities import LimitedBodies
from megafs.stores.base import ObjectStore
from megafs.stores.probe import probe_create_if_absent, probe_largest
from megafs.stores.stack import unlimited
from megafs.tree import ops
from megafs.tree.schema import INDEXES, REPLICATED
from megafs.tree.tree import Tree
from megafs.volume import header_store
from megafs.volume.header import Credential


class Formatted(Struct, frozen=True):
    """A new volume."""

    fsid: bytes
    generation: int
    create_if_absent: bool
    parameters: Parameters


async def format_volume(
    store: ObjectStore,
    credential: Credential,
    parameters: Parameters,
    *,
    profile: str = "default",
    label: str = "",
    say: Callable[[str], None] = lambda text: None,
    deliver: header_store.Deliver | None = None,
    on_new_keys: Callable[[Formatted], None] = lambda made: None,
) -> Formatted:
    """Make a volume in *store*, which is created if it may be.

    profile: what the passphrase costs to try (crypto/kdf.py).  say: called with each step, for
    people.  deliver: takes the recovery key, before anything of the volume is in the store; without
    it the volume has none.  on_new_keys: called as soon as the keys are in the store, before
    anything else that can fail.
    Raises AlreadyThere if there is one, or anything else, in the store.
    """
    say("making the store, if it is not there")
    await store.create()
    page = await store.list("", limit=10)
    foreign = [entry.name for entry in page.entries if not entry.name.startswith("probe/")]
    if any(name.startswith("keys/") for name in foreign):
        raise AlreadyThere(
            f"{store.url} holds a megafs volume already; mount it, or choose another place"
        )
    if foreign:
        raise AlreadyThere(
            f"{store.url} is not empty (it holds {foreign[0]}); choose an empty place, for"
            " example a prefix of its own"
        )
    say("trying whether the store can create an object only if it is absent")
    bare = unlimited(store)
    primitive = await probe_create_if_absent(bare)
    if LimitedBodies.of(store) is not None:
        say("trying how large an object may be")
        parameters = await _with_fitting_packs(bare, parameters, say)
    say("making the keys")
    made = await header_store.create(
        store,
        credential,
        parameters=parameters,
        create_if_absent=primitive,
        profile=profile,
        label=label,
        deliver=deliver,
    )
    header, keyring = made.unlocked.header, made.unlocked.keyring
    volume = Formatted(header.fsid, header.generation, primitive, header.parameters)
    on_new_keys(volume)
    await write_first_commit(store, keyring, header.generation)
    return volume


async def _with_fitting_packs(
    store: ObjectStore, parameters: Parameters, say: Callable[[str], None]
) -> Parameters:
    """Return *parameters* with packs of which the store, and a proxy in front of it, take each."""
    largest = largest_object(parameters.pack_size)
    limit = await probe_largest(store, largest)
    if limit == largest:
        return parameters
    size = fitting(parameters.pack_size, parameters.chunk_size, limit)
    say(
        f"no objects of {largest >> 10} KiB can be stored there, but of {limit >> 10} KiB: packs of"
        f" {size >> 10} KiB, more requests"
    )
    return replace(parameters, pack_size=size)


async def write_first_commit(store: ObjectStore, keyring: Keyring, generation: int) -> None:
    """Create commits/1 with the root directory, unless somebody else did."""
    now = clock.now_ns()
    db = apsw.Connection(":memory:")
    try:
        for table in REPLICATED:
            db.execute(table.sql)
        for sql in INDEXES:
            db.execute(sql)
        session = apsw.Session(db, "main")
        for table in REPLICATED:
            session.attach(table.name)
        ops.empty_tree(Tree(db, 1), now, os.getuid(), os.getgid())
        changeset = session.changeset()
        session.close()
    finally:
        db.close()
    commit = commit_format.Commit(
        prev=commit_format.genesis(keyring.fsid),
        mount=0,
        host=socket.gethostname(),
        commit_id=clock.random_bytes(16),
        first_batch=0,
        last_batch=0,
        time_ns=now,
        generation=generation,
        operations=1,
        changeset=commit_format.pack_changeset(changeset),
    )
    try:
        await store.put_new(commit_format.object_name(1), commit_format.seal(keyring, 1, commit))
    except Exists:
        pass
