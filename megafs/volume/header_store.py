"""The volume header in its store: find it, open it, change who can open it.

Generations lie at ``keys/<generation>``, and the highest counts.  A change writes the next number,
only if it is free; reads it back; looks whether it is the highest; and only then removes the older
ones.  Whoever loses that race reads the winner, checks that it is genuine, and makes the change
again on top of it.

What is new on this machine is random (`megafs.clock`); what is slow (Argon2id) runs in a thread.

No change takes away what somebody already has: who once had a passphrase, and kept a copy of the
slot that it opened, has the master key.  The texts of `Changed` say so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from msgspec import Struct
from msgspec.structs import replace

from megafs import clock
from megafs.concurrency import offload
from megafs.config import Parameters
from megafs.crypto import kdf
from megafs.crypto.volume_keys import FSID_SIZE, KEY_SIZE, Keyring
from megafs.errors import (
    AlreadyThere,
    BadUsage,
    Busy,
    Corrupt,
    Exists,
    Missing,
    NotAVolume,
    StoreError,
)
from megafs.secret_struct import SecretStruct
from megafs.stores.base import ObjectStore
from megafs.volume import header as headers
from megafs.volume.header import Credential, Header, Remembered, Slot, Unlocked

log = logging.getLogger(__name__)

PREFIX = "keys/"

# Rounds of a race against other machines that change keys at the same moment.  Each lost round is
# somebody else's success, so more than a few of them means something else is wrong.
_ROUNDS = 8

#: Said with every change that people may take for a revocation.
NOT_REVOKED = (
    "This does not lock out anyone who had the old way in and kept a copy of the old key header "
    "(the store may have): that gives the volume's master key for good. To keep such a person out, "
    "make a new volume and move the files there."
)


class SlotInfo(Struct, frozen=True):
    """A key slot for people and for --json."""

    id: str
    kind: str
    label: str
    created_ns: int
    cost: dict[str, int] | None


class Changed(SecretStruct, frozen=True):
    """The result of a change of keys.

    unlocked: the new header; remember it.
    slot_id: the slot that was made, if one was.
    text: for the person who asked.
    recovery: a new recovery key, which `Deliver` has taken already.
    """

    unlocked: Unlocked
    slot_id: bytes | None
    text: str
    recovery: str | None = None

    _shown = ("unlocked", "slot_id", "text")


#: Takes a new recovery key (the volume's id, the key as printed) to where somebody has it, before a
#: slot for it is in any store: what it raises leaves the keys as they were.
Deliver = Callable[[bytes, str], None]


async def create(
    store: ObjectStore,
    credential: Credential,
    *,
    parameters: Parameters,
    create_if_absent: bool,
    profile: str = "default",
    label: str = "",
    deliver: Deliver | None = None,
) -> Changed:
    """Write the header of a new volume, with a slot for *credential*.

    deliver: takes a recovery key, for which there is a slot then; without it there is none.

    Raises AlreadyThere if the store holds a key header already.
    """
    cost = kdf.profile(profile)
    headers.check_parameters(parameters)
    if await _generations(store):
        raise AlreadyThere("there is a volume in that store already")
    keyring = Keyring(clock.random_bytes(FSID_SIZE), {0: clock.random_bytes(KEY_SIZE)}, 0)
    recovery = _new_recovery() if deliver is not None else None
    slots = [await _enrolled(keyring, credential, label, cost)]
    if deliver is not None and recovery is not None:
        slots.append(await _delivered(keyring, recovery, deliver))
    made = headers.new(
        keyring,
        parameters=parameters,
        create_if_absent=create_if_absent,
        created_ns=clock.now_ns(),
        slots=slots,
    )
    try:
        await store.put_new(made.name, made.encode())
    except Exists:
        raise AlreadyThere("somebody else made a volume in that store just now") from None
    await _read_back(store, made)
    return Changed(
        Unlocked(made, keyring, slots[0].id, headers.digest_of(made)),
        slots[0].id,
        f"volume {keyring.fsid.hex()}: made",
        recovery,
    )


async def load(store: ObjectStore) -> Header:
    """Return the newest generation of the header in *store*, checked in form only.

    Raises NotAVolume if there is none, saying what was found instead; Corrupt if it is damaged: an
    older one is never taken in its place, since a passphrase changed meanwhile might open it.
    """
    for _ in range(_ROUNDS):
        found = await _generations(store)
        if not found:
            raise await _no_header(store)
        name = headers.name_of(found[-1])
        try:
            # One byte more than the limit tells a longer object without reading it.
            data = await store.get(name, 0, headers.SIZE_LIMIT + 1)
        except Missing:
            continue  # another machine wrote the next one and removed this
        return headers.parse(data, name)
    raise Corrupt(f"{PREFIX}: the store lists a key header but does not have it")


async def unlock(
    store: ObjectStore, credential: Credential, remembered: Remembered | None = None
) -> Unlocked:
    """Open the newest header in *store* with *credential*.

    remembered: what this machine kept of the volume (`Unlocked.remembered`), if anything.

    Raises as `load` and `header.unlock` do.
    """
    header = await load(store)
    # abandon: whoever presses Ctrl-C need not wait for Argon2id, which leaves nothing behind.
    return await offload(headers.unlock, header, credential, remembered, abandon=True)


def list_slots(header: Header) -> list[SlotInfo]:
    """Return the slots of *header*, oldest first.  From `load` alone they are only a claim."""
    return [
        SlotInfo(
            id=slot.id.hex(),
            kind=slot.kind,
            label=slot.label,
            created_ns=slot.created_ns,
            cost=None
            if slot.cost is None
            else {
                "time": slot.cost.time,
                "memory_kib": slot.cost.memory,
                "lanes": slot.cost.lanes,
            },
        )
        for slot in sorted(header.slots, key=lambda s: (s.created_ns, s.id))
    ]


def find_slot(header: Header, text: str) -> bytes:
    """Return the id of the slot that *text* means: its id, the start of it, or its label.

    Raises BadUsage if none or several fit.
    """
    fits = [s.id for s in header.slots if text and s.label == text]
    fits = fits or [s.id for s in header.slots if text and s.id.hex().startswith(text.lower())]
    if len(fits) != 1:
        raise BadUsage(
            f"{'several key slots are' if fits else 'no key slot is'} called {text!r} "
            "(see megafs key list)"
        )
    return fits[0]


async def add_passphrase(
    store: ObjectStore,
    unlocked: Unlocked,
    credential: Credential,
    *,
    label: str = "",
    profile: str = "default",
) -> Changed:
    """Add a slot for *credential*: a passphrase, a key file, or both together."""
    slot = await _enrolled(unlocked.keyring, credential, label, kdf.profile(profile))
    after, remark = await _publish(store, unlocked, _adding(slot, unlocked.keyring))
    return Changed(after, slot.id, f"Key slot {slot.id.hex()} added ({slot.kind}).{remark}")


async def remove_slot(
    store: ObjectStore, unlocked: Unlocked, slot_id: bytes, keeping: bytes | None = None
) -> Changed:
    """Remove a slot, never the last one.

    keeping: the slot that whoever asks goes on using.  Raises Busy if another machine removes it
        meanwhile: each of two would trust in the slot that the other takes away.
    """
    unlocked.header.slot(slot_id)

    def change(header: Header) -> Header:
        there = {slot.id for slot in header.slots}
        if keeping is not None and keeping not in there:
            raise Busy(
                f"another machine has just removed key slot {keeping.hex()}, which was to open the"
                " volume afterwards; nothing was removed: see megafs key list"
            )
        if slot_id not in there:
            return header
        return headers.with_slot_removed(header, unlocked.keyring, slot_id)

    after, remark = await _publish(store, unlocked, change)
    return Changed(after, None, f"Key slot {slot_id.hex()} removed. {NOT_REVOKED}{remark}")


async def change_passphrase(
    store: ObjectStore,
    unlocked: Unlocked,
    credential: Credential,
    *,
    slot_id: bytes | None = None,
    label: str | None = None,
    profile: str = "default",
) -> Changed:
    """Put a slot for *credential* in the place of another.

    slot_id: the slot that goes; the one that opened, if not given.
    label: of the new slot; that of the old one, if not given.
    """
    old = unlocked.header.slot(slot_id or unlocked.slot_id)
    if old.kind == headers.RECOVERY:
        raise BadUsage(
            "that is the recovery key's slot: megafs key recover sets a new passphrase with it"
        )
    slot = await _enrolled(
        unlocked.keyring, credential, old.label if label is None else label, kdf.profile(profile)
    )

    def change(header: Header) -> Header:
        if slot in header.slots:
            return header
        return headers.with_slot_changed(header, unlocked.keyring, old.id, slot)

    after, remark = await _publish(store, unlocked, change, slot)
    text = f"Key slot {old.id.hex()} replaced by {slot.id.hex()} ({slot.kind}). "
    return Changed(after, slot.id, text + NOT_REVOKED + remark)


async def recover(
    store: ObjectStore,
    recovery: str,
    credential: Credential,
    *,
    remembered: Remembered | None = None,
    label: str = "",
    profile: str = "default",
) -> Changed:
    """Open the volume with its recovery key, and add a slot for a new passphrase.

    The slots that are there stay: they may be other people's.
    """
    cost = kdf.profile(profile)
    unlocked = await unlock(store, Credential(recovery=recovery), remembered)
    slot = await _enrolled(unlocked.keyring, credential, label, cost)
    after, remark = await _publish(store, unlocked, _adding(slot, unlocked.keyring))
    text = (
        f"Key slot {slot.id.hex()} added ({slot.kind}). The recovery key stays valid, and so do "
        f"the other slots: megafs key list shows them, megafs key remove takes one away.{remark}"
    )
    # From now on this machine is opened with the new passphrase: that slot is to be tried first.
    return Changed(replace(after, slot_id=slot.id), slot.id, text)


async def new_recovery_key(store: ObjectStore, unlocked: Unlocked, deliver: Deliver) -> Changed:
    """Make a new recovery key; those made before open no later generation of the header."""
    recovery = _new_recovery()
    slot = await _delivered(unlocked.keyring, recovery, deliver)
    replaced = False

    def change(header: Header) -> Header:
        nonlocal replaced
        old = {s.id for s in header.slots if s.kind == headers.RECOVERY}
        if slot.id in old:
            return header
        if not old:
            return headers.with_slot_added(header, unlocked.keyring, slot)
        replaced = True
        return headers.with_slots_replaced(header, unlocked.keyring, old, slot)

    after, remark = await _publish(store, unlocked, change, slot)
    text = f"Key slot {slot.id.hex()} holds a new recovery key."
    if replaced:
        text += f" The one before is no longer valid. {NOT_REVOKED}"
    return Changed(after, slot.id, text + remark, recovery)


async def rotate(
    store: ObjectStore,
    unlocked: Unlocked,
    credential: Credential,
    deliver: Deliver,
    *,
    profile: str = "default",
) -> Changed:
    """Begin a new epoch: a new master key for everything that is written from now on.

    credential: what opens the volume now, or a new one; it gets a slot for the new key.  So does a
        new recovery key.  All other slots go: what they need was not given.
    """
    cost = kdf.profile(profile)
    old = unlocked.header
    keyring = unlocked.keyring.with_master(
        old.epoch + 1, clock.random_bytes(KEY_SIZE), current=True
    )
    label = old.slot(unlocked.slot_id).label
    slot = await _enrolled(keyring, credential, label, cost)
    recovery = _new_recovery()
    rescue = await _delivered(keyring, recovery, deliver)
    gone: list[Slot] = []

    def change(header: Header) -> Header:
        nonlocal gone
        if slot in header.slots:
            return header
        gone = [s for s in header.slots if s.id != unlocked.slot_id and s.kind != headers.RECOVERY]
        return headers.rotated(header, keyring, [slot, rescue])

    after, remark = await _publish(store, replace(unlocked, keyring=keyring), change, slot)
    text = (
        f"Epoch {after.header.epoch} begins: what is written from now on is sealed under a new key."
        " Mounts that are running stop writing and say so: unmount and mount them again."
    )
    if gone:
        names = ", ".join(
            f"{s.id.hex()} ({s.kind}{', ' + s.label if s.label else ''})" for s in gone
        )
        text += (
            f" These key slots open the volume no more, for what they need was not given: {names}."
            " megafs key add makes new ones."
        )
    text += (
        " The recovery key from before is no longer valid. What was written before can still be"
        " read by whoever has the old key, until it is re-encrypted (megafs key reencrypt) and"
        " megafs gc has removed the old objects; a copy that somebody kept stays readable for ever."
    )
    return Changed(after, slot.id, text + remark, recovery)


def _adding(slot: Slot, keyring: Keyring) -> Callable[[Header], Header]:
    def change(header: Header) -> Header:
        if slot in header.slots:
            return header
        return headers.with_slot_added(header, keyring, slot)

    return change


async def _enrolled(keyring: Keyring, credential: Credential, label: str, cost: kdf.Cost) -> Slot:
    entropy = clock.random_bytes(headers.ENTROPY_SIZE)
    created_ns = clock.now_ns()

    def enroll() -> Slot:
        return headers.enroll(
            keyring, credential, entropy=entropy, created_ns=created_ns, label=label, cost=cost
        )

    return await offload(enroll, abandon=True)


def _new_recovery() -> str:
    return kdf.format_recovery(clock.random_bytes(kdf.RECOVERY_SIZE))


async def _delivered(keyring: Keyring, recovery: str, deliver: Deliver) -> Slot:
    """Return a slot for a new recovery key that *deliver* has taken."""
    slot = await _enrolled(keyring, Credential(recovery=recovery), "", kdf.PROFILES["default"])
    deliver(keyring.fsid, recovery)
    return slot


async def _publish(
    store: ObjectStore,
    unlocked: Unlocked,
    change: Callable[[Header], Header],
    made: Slot | None = None,
) -> tuple[Unlocked, str]:
    """Write what *change* makes of the newest header, and remove the older generations.

    change: may be called several times, each time with the newest header there is; gives that
        header back if it holds the change already.
    made: the slot that the change brings.

    Returns the new header as opened, and what else there is to say.
    """
    header = unlocked.header
    for _ in range(_ROUNDS):
        after = change(header)
        if after is header or await _put_next(store, after):
            break
        newest = await load(store)
        if newest == after:
            break  # our own, whose reply was lost
        headers.check_successor(newest, header, unlocked.keyring)
        header = newest
    else:
        raise Busy("other machines keep changing the keys of this volume; try again")
    log.info("%s written", after.name)
    remark = await _remove_older(store, after)
    kept = {slot.id for slot in after.slots}
    opened_by = made.id if made and unlocked.slot_id not in kept else unlocked.slot_id
    return Unlocked(after, unlocked.keyring, opened_by, headers.digest_of(after)), remark


async def _put_next(store: ObjectStore, after: Header) -> bool:
    """Write a new generation; return whether it is the newest."""
    try:
        await store.put_new(after.name, after.encode())
    except Exists:
        return False
    # Its name may have been free because that generation came and went since we read ours.  But an
    # older one is removed only when a newer one is there, so then the list shows that.
    if not await _is_newest(store, after):
        await _remove(store, [after.name])
        return False
    # A store that loses what it has acknowledged must not lose the only way to the master key.
    try:
        await _read_back(store, after)
        return True
    except Missing as exc:
        lost = exc
    if not await _is_newest(store, after):
        return False  # another machine built on it and removed it just now
    raise lost


async def _is_newest(store: ObjectStore, header: Header) -> bool:
    return all(generation <= header.generation for generation in await _generations(store))


async def _remove_older(store: ObjectStore, newest: Header) -> str:
    older = [g for g in await _generations(store) if g < newest.generation]
    return await _remove(store, [headers.name_of(generation) for generation in older])


async def _remove(store: ObjectStore, names: list[str]) -> str:
    """Remove generations that no longer count; return what to say if the store does not let us."""
    for name in names:
        try:
            await store.delete(name)
        except StoreError as exc:
            log.warning("%s could not be removed: %s", name, exc)
            return f" The older key header {name} could not be removed from the store ({exc})."
    return ""


async def _read_back(store: ObjectStore, written: Header) -> None:
    data = await store.get(written.name, 0, headers.SIZE_LIMIT + 1)
    if data != written.encode():
        raise Corrupt(f"{written.name}: the store gives back other bytes than were just written")


async def _generations(store: ObjectStore) -> list[int]:
    found: list[int] = []
    after = ""
    # One or two names are usual.  The bound is against a store whose listing never ends.
    for _ in range(_ROUNDS):
        page = await store.list(PREFIX, after)
        numbers = (headers.generation_of(entry.name) for entry in page.entries)
        found += [number for number in numbers if number is not None]
        if not page.more or not page.entries:
            return sorted(found)
        after = page.entries[-1].name
    raise Corrupt(f"{PREFIX}: far more objects are there than a volume ever has")


async def _no_header(store: ObjectStore) -> NotAVolume | Corrupt:
    """Return the error that says what lies in the store instead of a header."""
    page = await store.list("", limit=10)
    names = [entry.name for entry in page.entries]
    if not names:
        return NotAVolume(
            "nothing is there; is it the right bucket, directory and prefix? megafs format makes a"
            " new volume"
        )
    for prefix in ("commits/", "checkpoints/", "packs/"):
        if (await store.list(prefix, limit=1)).entries:
            return Corrupt(
                f"objects of a volume are there ({prefix}...), but its key header ({PREFIX}...) is "
                "gone; without a copy of it nobody can open the volume"
            )
    some = ", ".join(names[:3]) + (", ..." if len(names) > 3 or page.more else "")
    return NotAVolume(
        f"no megafs volume is there, but other things are ({some}): is it the right place?"
    )
