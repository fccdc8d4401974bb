"""The volume header: what a volume is, and the slots that give its master key.

It lies in the store as ``keys/<generation, 8 digits>``, at most 64 KiB of JSON in canonical form
(ASCII, keys sorted, no spaces; any other spelling of the same values is refused):

    magic "megafs" | format | fsid | generation | epoch | created | parameters | create_if_absent
    slots  1 to 16 of {id, kind, label, created, salt, kdf {time, memory, lanes} or null, wrap}
    keyring  only after a rotation: the master keys of earlier epochs, sealed under a subkey of the
             current one: 4 bytes of epoch and 32 of key each, oldest first
    mac    HMAC-SHA256 under the subkey "keys-mac" over all of the above

Ids, salts and sealed bytes are lower-case hex, times nanoseconds since 1970.  `wrap` is the master
key sealed under the slot's own key, for a context that holds the volume id, the epoch and every
other field of the slot.  Whatever is changed is a new generation; an object is never rewritten.

Nothing in a header counts before its MAC does, and that needs the master key.  Until then it only
says what to try, within bounds on size, number, and work (docs/threats.md, rows 4 and 23 to 28).

Pure: no I/O, no clock, no randomness.  `unlock` and `enroll` are slow on purpose: call them in a
thread.
"""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Callable, Iterable
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import asdict, replace

from megafs.config import KIB, MIB, Parameters
from megafs.crypto import aead, kdf, volume_keys
from megafs.errors import BadPassphrase, BadUsage, Corrupt, NotAVolume, Rollback, TooNew
from megafs.secret_struct import SecretStruct

MAGIC: Final = "megafs"
FORMAT: Final = 1
SIZE_LIMIT: Final = 64 * KIB
SLOT_LIMIT: Final = 16
LABEL_LIMIT: Final = 64
GENERATION_LIMIT: Final = 10**8 - 1
#: Rotations of the master key in a volume's life.
EPOCH_LIMIT: Final = 256

SLOT_ID_SIZE: Final = 8
#: Random bytes that `enroll` needs: the slot's id and its salt.
ENTROPY_SIZE: Final = SLOT_ID_SIZE + kdf.SALT_SIZE

#: The most work one `unlock` does, in KiB filled: 64 GiB, some 90 s of one core.  16 slots of the
#: costliest profile are half of it, so only slots that a store made up can reach it.
WORK_LIMIT: Final = 64 << 20

PASSPHRASE: Final = "passphrase"
PASSPHRASE_AND_KEYFILE: Final = "passphrase+keyfile"
KEYFILE: Final = "keyfile"
RECOVERY: Final = "recovery"
_KINDS: Final = (PASSPHRASE, PASSPHRASE_AND_KEYFILE, KEYFILE, RECOVERY)

_WRAP_SIZE: Final = aead.sealed_size(volume_keys.KEY_SIZE)
_OLD_SIZE: Final = 4 + volume_keys.KEY_SIZE
_NAME: Final = re.compile(r"keys/([0-9]{8})\Z")


class Credential(SecretStruct, frozen=True):
    """A person's means to open a volume: a passphrase, a key file, both, or a recovery key.

    keyfile: the contents of the key file.
    recovery: as printed or typed.
    """

    passphrase: str | None = None
    keyfile: bytes | None = None
    recovery: str | None = None

    def __post_init__(self) -> None:
        if self.passphrase is None and self.keyfile is None and self.recovery is None:
            raise BadUsage("neither a passphrase nor a key file nor a recovery key was given")

    @property
    def kind(self) -> str:
        """The kind of slot that this credential gets when it is enrolled."""
        if self.recovery is not None:
            return RECOVERY
        if self.passphrase is None:
            return KEYFILE
        return PASSPHRASE if self.keyfile is None else PASSPHRASE_AND_KEYFILE

    def fits(self, kind: str) -> bool:
        """Whether a slot of this kind can be tried with what is here."""
        return {
            PASSPHRASE: self.passphrase is not None,
            PASSPHRASE_AND_KEYFILE: self.passphrase is not None and self.keyfile is not None,
            KEYFILE: self.keyfile is not None,
            RECOVERY: self.recovery is not None,
        }[kind]


class Slot(SecretStruct, frozen=True):
    """One way to the master key.  cost: of Argon2id, for the kinds with a passphrase."""

    id: bytes
    kind: str
    label: str
    created_ns: int
    salt: bytes
    cost: kdf.Cost | None
    wrap: bytes

    _shown = ("id", "kind", "label", "created_ns", "salt", "cost")


class Header(SecretStruct, frozen=True):
    """One generation of the header.  Believe it only as part of an `Unlocked`.

    old_keys: the sealed master keys of earlier epochs; empty if there are none.
    """

    fsid: bytes
    generation: int
    epoch: int
    created_ns: int
    parameters: Parameters
    create_if_absent: bool
    slots: tuple[Slot, ...]
    mac: bytes = b""
    old_keys: bytes = b""

    _shown = (
        "fsid",
        "generation",
        "epoch",
        "created_ns",
        "parameters",
        "create_if_absent",
        "slots",
        "mac",
    )

    @property
    def name(self) -> str:
        """The name of this generation's object."""
        return name_of(self.generation)

    def slot(self, slot_id: bytes) -> Slot:
        """Return the slot with that id; BadUsage if there is none."""
        for slot in self.slots:
            if slot.id == slot_id:
                return slot
        raise BadUsage(f"there is no key slot {slot_id.hex()} (see megafs key list)")

    def encode(self) -> bytes:
        """Return the object's bytes."""
        return _canonical({**_body(self), "mac": self.mac.hex()})


class Remembered(Struct, frozen=True):
    """The facts that this machine keeps of a volume from an earlier time.

    slot_id: the slot that opened then; tried first.
    digest: of the header object of that generation.
    epoch: of that header; 0 if it is not known.
    """

    fsid: bytes
    generation: int
    slot_id: bytes | None = None
    digest: bytes | None = None
    epoch: int = 0


class Unlocked(Struct, frozen=True):
    """A header that is what its writers made it, with the keys it gave.

    slot_id: the slot that opened; remember it.  digest: BLAKE3 of the header's object.
    """

    header: Header
    keyring: volume_keys.Keyring
    slot_id: bytes
    digest: bytes

    def remembered(self) -> Remembered:
        """The facts to keep on this machine until the next time."""
        return Remembered(
            self.header.fsid,
            self.header.generation,
            self.slot_id,
            self.digest,
            self.header.epoch,
        )


def name_of(generation: int) -> str:
    """Return the object name of a generation of the header."""
    return f"keys/{generation:08d}"


def generation_of(name: str) -> int | None:
    """Return the generation that an object name stands for, or None if it is no header's."""
    match = _NAME.match(name)
    return int(match[1]) if match and int(match[1]) > 0 else None


# Making


def new(
    keyring: volume_keys.Keyring,
    *,
    parameters: Parameters,
    create_if_absent: bool,
    created_ns: int,
    slots: Iterable[Slot],
) -> Header:
    """Return the first generation of a new volume's header.

    keyring: of fresh random bytes, for the volume id and for the master key of its one epoch.
    create_if_absent: whether the store was found to do that atomically.
    slots: from `enroll`.
    """
    check_parameters(parameters)
    draft = Header(
        fsid=keyring.fsid,
        generation=1,
        epoch=keyring.epoch,
        created_ns=created_ns,
        parameters=parameters,
        create_if_absent=create_if_absent,
        slots=tuple(slots),
    )
    return _sealed(draft, keyring)


def enroll(
    keyring: volume_keys.Keyring,
    credential: Credential,
    *,
    entropy: bytes,
    created_ns: int,
    label: str = "",
    cost: kdf.Cost = kdf.PROFILES["default"],
) -> Slot:
    """Return a slot through which *credential* gives the current master key.

    entropy: ENTROPY_SIZE fresh random bytes.
    label: for people, to tell slots apart; readable by the store.
    cost: our choice, never taken over from a slot found in a store: it may have been weakened.
    """
    if len(entropy) != ENTROPY_SIZE:
        raise ValueError(f"{ENTROPY_SIZE} random bytes are needed")
    _check_label(label)
    kind = credential.kind
    slot = Slot(
        id=entropy[:SLOT_ID_SIZE],
        kind=kind,
        label=label,
        created_ns=created_ns,
        salt=entropy[SLOT_ID_SIZE:],
        cost=cost if kind in (PASSPHRASE, PASSPHRASE_AND_KEYFILE) else None,
        wrap=b"",
    )
    wrapped = volume_keys.wrap(
        _slot_key(slot, credential),
        _slot_context(slot, keyring.fsid, keyring.epoch),
        keyring.master(keyring.epoch),
    )
    return replace(slot, wrap=wrapped)


def with_slot_added(header: Header, keyring: volume_keys.Keyring, slot: Slot) -> Header:
    """Return the next generation, with one more slot."""
    if len(header.slots) >= SLOT_LIMIT:
        raise BadUsage(
            f"all {SLOT_LIMIT} key slots are in use; remove one first (megafs key remove)"
        )
    return _next(header, keyring, (*header.slots, slot))


def with_slot_removed(header: Header, keyring: volume_keys.Keyring, slot_id: bytes) -> Header:
    """Return the next generation, without that slot.  The last one cannot go."""
    header.slot(slot_id)
    if len(header.slots) == 1:
        raise BadUsage("this is the last key slot: without it nobody could ever open the volume")
    return _next(header, keyring, (s for s in header.slots if s.id != slot_id))


def with_slot_changed(
    header: Header, keyring: volume_keys.Keyring, slot_id: bytes, slot: Slot
) -> Header:
    """Return the next generation, with *slot* in the place of the one with that id."""
    header.slot(slot_id)
    return _next(header, keyring, (slot if s.id == slot_id else s for s in header.slots))


def with_slots_replaced(
    header: Header, keyring: volume_keys.Keyring, slot_ids: set[bytes], slot: Slot
) -> Header:
    """Return the next generation, with *slot* in the place of all those."""
    return _next(header, keyring, (*(s for s in header.slots if s.id not in slot_ids), slot))


def rotated(header: Header, keyring: volume_keys.Keyring, slots: Iterable[Slot]) -> Header:
    """Return the next generation, for a new epoch: *keyring* has its key as the current one.

    slots: all of them; those of the header before give a key that is the current one no more.
    """
    if keyring.epoch != header.epoch + 1:
        raise ValueError("epochs follow one another")
    if len(keyring.epochs) > EPOCH_LIMIT:
        raise BadUsage("the master key was changed so often that there is no room for another")
    old = b"".join(
        epoch.to_bytes(4, "big") + keyring.master(epoch)
        for epoch in keyring.epochs
        if epoch != keyring.epoch
    )
    sealed = aead.seal(keyring.subkey("keyring"), _old_context(keyring.fsid, keyring.epoch), old)
    return _next(replace(header, epoch=keyring.epoch, old_keys=sealed), keyring, slots)


def _old_context(fsid: bytes, epoch: int) -> bytes:
    return aead.context("keyring", fsid, epoch)


def _with_old_keys(header: Header, keyring: volume_keys.Keyring) -> volume_keys.Keyring:
    """Return *keyring* with the master keys of the epochs before."""
    if not header.old_keys:
        return keyring
    plain = bytes(
        aead.open_sealed(
            keyring.subkey("keyring", header.epoch),
            _old_context(header.fsid, header.epoch),
            header.old_keys,
            header.name,
        )
    )
    masters = {header.epoch: keyring.master(header.epoch)}
    for at in range(0, len(plain), _OLD_SIZE):
        epoch = int.from_bytes(plain[at : at + 4], "big")
        masters[epoch] = plain[at + 4 : at + _OLD_SIZE]
    try:
        return volume_keys.Keyring(header.fsid, masters, header.epoch)
    except ValueError as exc:
        raise Corrupt(f"{header.name}: the earlier keys in it cannot be: {exc}") from exc


def _next(header: Header, keyring: volume_keys.Keyring, slots: Iterable[Slot]) -> Header:
    if header.generation >= GENERATION_LIMIT:
        raise BadUsage("the key header was changed so often that its numbers are used up")
    return _sealed(
        replace(header, generation=header.generation + 1, slots=tuple(slots), mac=b""), keyring
    )


def _sealed(header: Header, keyring: volume_keys.Keyring) -> Header:
    sealed = replace(header, mac=_mac(header, keyring))
    # Whatever the parser would refuse must never be written: it would be the end of the volume.
    if parse(sealed.encode(), sealed.name) != sealed:
        raise ValueError("a header that does not read back as it was written")
    return sealed


# Opening


#: Gives the key of a passphrase: `kdf.from_passphrase`, or what stands in for it.
Derive = Callable[[str, bytes, kdf.Cost, bytes | None], bytes]


def unlock(
    header: Header,
    credential: Credential,
    remembered: Remembered | None = None,
    derive: Derive | None = None,
) -> Unlocked:
    """Open a slot of *header* with *credential*, and check that the whole header is genuine.

    header: from `parse`.
    remembered: of this volume on this machine, if it was ever opened here.
    derive: does the slow part elsewhere.

    Raises BadPassphrase if no slot opens; Corrupt if one does but the header was changed since it
    was written; Rollback if it is older than, or not the one, that was remembered.
    """
    _check_fresh(header, remembered)
    slots = _in_order(header, credential, remembered.slot_id if remembered else None)
    spent, skipped = 0, 0
    for slot in slots:
        work = slot.cost.work if slot.cost else 0
        if spent + work > WORK_LIMIT:
            skipped += 1
            continue
        spent += work
        try:
            master = volume_keys.unwrap(
                _slot_key(slot, credential, derive),
                _slot_context(slot, header.fsid, header.epoch),
                slot.wrap,
            )
        except Corrupt:
            continue  # not this credential's slot; the commitment makes it one guess, not many
        keyring = volume_keys.Keyring(header.fsid, {header.epoch: master}, header.epoch)
        if not hmac.compare_digest(_mac(header, keyring), header.mac):
            raise Corrupt(
                f"{header.name}: the key slot {slot.id.hex()} opens, but the header's "
                "authentication code is wrong: slots or parameters were added, removed or changed "
                "by somebody without the key"
            )
        keyring = _with_old_keys(header, keyring)
        return Unlocked(header, keyring, slot.id, digest_of(header))
    raise _nothing_opens(header, credential, skipped)


def check_successor(newer: Header, header: Header, keyring: volume_keys.Keyring) -> None:
    """Check that *newer* was made from *header* (which is genuine) by somebody with the keys.

    Raises Rollback if it is no later one, Corrupt if it is not genuine.
    """
    if newer.fsid != header.fsid:
        raise Corrupt(f"{newer.name} belongs to another volume, {newer.fsid.hex()}")
    if newer.generation <= header.generation:
        raise Rollback(
            f"the store says that {name_of(header.generation + 1)} is there, but shows only "
            f"{newer.name}"
        )
    check_epoch(newer, header.epoch, f"{header.name} is of")
    if newer.epoch not in keyring.epochs:
        raise Corrupt(
            f"{newer.name}: the volume's key was rotated (epoch {newer.epoch}) since it was opened:"
            " open it again"
        )
    if not hmac.compare_digest(_mac(newer, keyring), newer.mac):
        raise Corrupt(f"{newer.name}: the authentication code is wrong: it was changed")


def digest_of(header: Header) -> bytes:
    """Return the BLAKE3 of the header's object, for what is remembered and for commits."""
    return volume_keys.digest(header.encode())


def _in_order(header: Header, credential: Credential, first: bytes | None) -> list[Slot]:
    # The remembered slot first, then the cheapest: slots that a store made up, at the greatest cost
    # that is allowed, then cost a user with the right passphrase nothing.
    slots = [slot for slot in header.slots if credential.fits(slot.kind)]
    return sorted(slots, key=lambda s: (s.id != first, s.cost.work if s.cost else 0))


def _check_fresh(header: Header, remembered: Remembered | None) -> None:
    if remembered is None:
        return
    if header.fsid != remembered.fsid:
        raise Rollback(
            f"another volume lies there now ({header.fsid.hex()}); this machine knows "
            f"{remembered.fsid.hex()}"
        )
    if header.generation < remembered.generation:
        raise Rollback(
            f"the store shows an older key header ({header.name}) than this machine has seen "
            f"({name_of(remembered.generation)}): a passphrase changed since might open it again"
        )
    check_epoch(header, remembered.epoch, "this machine has seen")
    if (
        header.generation == remembered.generation
        and remembered.digest is not None
        and digest_of(header) != remembered.digest
    ):
        raise Rollback(f"{header.name} is not the one this machine has seen under that name")


def check_epoch(header: Header, least: int, known: str) -> None:
    """Raise Rollback if *header* is of an earlier epoch than *least*.

    Whoever has the master key of an earlier epoch can make such a header, and was locked out.
    known: whence that epoch is known, for the message.
    """
    if header.epoch < least:
        raise Rollback(
            f"{header.name} is of epoch {header.epoch}, though {known} epoch {least}: somebody who"
            " has the volume's key from before it was rotated may have put it there"
        )


def _nothing_opens(header: Header, credential: Credential, skipped: int) -> BadPassphrase:
    kinds = {slot.kind for slot in header.slots}
    if not any(credential.fits(kind) for kind in kinds):
        if credential.passphrase is not None and PASSPHRASE_AND_KEYFILE in kinds:
            return BadPassphrase("this volume needs its key file as well as the passphrase")
        there = ", ".join(sorted(kinds))
        return BadPassphrase(f"no key slot takes what was given; there are slots for: {there}")
    text = {
        PASSPHRASE: "the passphrase is wrong",
        PASSPHRASE_AND_KEYFILE: "the passphrase or the key file is wrong",
        KEYFILE: "the key file is wrong",
        RECOVERY: "the recovery key is of another volume, or was replaced",
    }[credential.kind]
    if credential.kind == PASSPHRASE and PASSPHRASE_AND_KEYFILE in kinds:
        text += ", or its key file is needed too"
    if skipped:
        text += (
            f"; {skipped} key slots were not tried, because they ask for more work than megafs "
            "ever chooses: the store may have added them"
        )
    return BadPassphrase(f"{text} (no key slot of {header.name} opens)")


def _slot_key(slot: Slot, credential: Credential, derive: Derive | None = None) -> bytes:
    if slot.kind == RECOVERY:
        assert credential.recovery is not None
        return kdf.from_recovery(credential.recovery)
    if slot.kind == KEYFILE:
        assert credential.keyfile is not None
        return kdf.from_keyfile(credential.keyfile, slot.salt)
    assert credential.passphrase is not None
    assert slot.cost is not None
    keyfile = credential.keyfile if slot.kind == PASSPHRASE_AND_KEYFILE else None
    return (derive or kdf.from_passphrase)(credential.passphrase, slot.salt, slot.cost, keyfile)


def _slot_context(slot: Slot, fsid: bytes, epoch: int) -> bytes:
    described = _slot_json(slot)
    del described["wrap"]
    return aead.context("slot", fsid, epoch, _canonical(described))


def _mac(header: Header, keyring: volume_keys.Keyring) -> bytes:
    return hmac.digest(
        keyring.subkey("keys-mac", header.epoch), _canonical(_body(header)), "sha256"
    )


# Bytes


def _canonical(value: dict[str, Any]) -> bytes:
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    ).encode("ascii")


def _body(header: Header) -> dict[str, Any]:
    body: dict[str, Any] = {
        "magic": MAGIC,
        "format": FORMAT,
        "fsid": header.fsid.hex(),
        "generation": header.generation,
        "epoch": header.epoch,
        "created": header.created_ns,
        "parameters": asdict(header.parameters),
        "create_if_absent": header.create_if_absent,
        "slots": [_slot_json(slot) for slot in header.slots],
    }
    if header.old_keys:
        body["keyring"] = header.old_keys.hex()
    return body


def _slot_json(slot: Slot) -> dict[str, Any]:
    return {
        "id": slot.id.hex(),
        "kind": slot.kind,
        "label": slot.label,
        "created": slot.created_ns,
        "salt": slot.salt.hex(),
        "kdf": None if slot.cost is None else asdict(slot.cost),
        "wrap": slot.wrap.hex(),
    }


def parse(data: bytes, name: str) -> Header:
    """Return the header in *data*, the bytes of the object called *name*.

    Only its form has been checked then, not that anybody with the key wrote it.

    Raises NotAVolume if this is something else altogether; TooNew for a later format; Corrupt for
    anything that no megafs writes.
    """
    generation = generation_of(name)
    if generation is None:
        raise NotAVolume(f"{name} is not the name of a megafs key header")
    header = parse_copy(data, name)
    if header.generation != generation:
        raise Corrupt(f"{name}: it says that it is {header.name}")
    return header


def parse_copy(data: bytes, name: str) -> Header:
    """Return the header in *data*, a copy of any generation kept elsewhere; as `parse` otherwise.

    name: what the errors call it.
    """
    if len(data) > SIZE_LIMIT:
        raise Corrupt(f"{name}: larger than {SIZE_LIMIT} bytes")
    try:
        # ValueError also stands for text that is not ASCII and for numbers of thousands of digits.
        document = json.loads(data.decode("ascii"))
    except (ValueError, RecursionError):
        raise Corrupt(f"{name}: not the JSON of a megafs key header") from None
    if not isinstance(document, dict) or document.get("magic") != MAGIC:
        raise NotAVolume(f"{name} is there, but it is not a megafs key header")
    version = document.get("format")
    if type(version) is int and version > FORMAT:
        raise TooNew(
            f"{name} says that it has format {version}; this megafs knows formats up to {FORMAT}:"
            " either it is damaged, or a newer megafs wrote it: then install a newer megafs to open"
            " it"
        )
    try:
        header = _header_from(document)
        whole = header.encode()
    except (_Malformed, Corrupt, RecursionError) as exc:
        raise Corrupt(f"{name}: {exc}") from None
    # Two keys of one name, spaces, 1.0 for 1, upper-case hex: the MAC is over values, so that
    # exactly one spelling of them may pass.
    if whole != data:
        raise Corrupt(f"{name}: not in canonical form")
    return header


class _Malformed(Exception):
    """A value that no megafs writes."""


def _header_from(document: dict[str, Any]) -> Header:
    _exactly(
        document,
        "the header",
        {"magic", "format", "fsid", "generation", "epoch", "created", "parameters", "slots"}
        | {"create_if_absent", "mac"}
        | ({"keyring"} if "keyring" in document else set()),
    )
    if type(document["format"]) is not int or document["format"] != FORMAT:
        raise _Malformed("format is not a known one")
    slots = document["slots"]
    if not isinstance(slots, list) or not 1 <= len(slots) <= SLOT_LIMIT:
        raise _Malformed(f"slots: 1 to {SLOT_LIMIT} are needed")
    header = Header(
        fsid=_hex(document, "fsid", volume_keys.FSID_SIZE),
        generation=_integer(document, "generation", 1, GENERATION_LIMIT),
        epoch=_integer(document, "epoch", 0, 2**32 - 1),
        created_ns=_integer(document, "created", 0, 2**63 - 1),
        parameters=_parameters_from(document["parameters"]),
        create_if_absent=_boolean(document, "create_if_absent"),
        slots=tuple(_slot_from(slot) for slot in slots),
        mac=_hex(document, "mac", 32),
        old_keys=_old_keys_from(document),
    )
    if len({slot.id for slot in header.slots}) != len(header.slots):
        raise _Malformed("two slots have the same id")
    return header


def _old_keys_from(document: dict[str, Any]) -> bytes:
    if "keyring" not in document:
        return b""
    value = document["keyring"]
    if not isinstance(value, str):
        raise _Malformed("keyring is not text")
    for count in range(1, EPOCH_LIMIT):
        size = aead.sealed_size(count * _OLD_SIZE)
        if len(value) == 2 * size:
            return _hex(document, "keyring", size)
    raise _Malformed("keyring is of no size that it can have")


def _slot_from(value: Any) -> Slot:
    slot = _exactly(value, "a slot", {"id", "kind", "label", "created", "salt", "kdf", "wrap"})
    kind = slot["kind"]
    if kind not in _KINDS:
        raise _Malformed("a slot is of an unknown kind")
    label = slot["label"]
    if not isinstance(label, str):
        raise _Malformed("label is not text")
    try:
        _check_label(label)
    except BadUsage as exc:
        raise _Malformed(str(exc)) from None
    cost = None
    if kind in (PASSPHRASE, PASSPHRASE_AND_KEYFILE):
        found = _exactly(slot["kdf"], "kdf", {"time", "memory", "lanes"})
        cost = kdf.Cost(*(_integer(found, name, 0, 2**40) for name in ("time", "memory", "lanes")))
        kdf.check_cost(cost)
    elif slot["kdf"] is not None:
        raise _Malformed("a slot without a passphrase has a cost")
    return Slot(
        id=_hex(slot, "id", SLOT_ID_SIZE),
        kind=kind,
        label=label,
        created_ns=_integer(slot, "created", 0, 2**63 - 1),
        salt=_hex(slot, "salt", kdf.SALT_SIZE),
        cost=cost,
        wrap=_hex(slot, "wrap", _WRAP_SIZE),
    )


def _parameters_from(value: Any) -> Parameters:
    found = _exactly(value, "parameters", set(Parameters.__struct_fields__))
    quota = found["quota"]
    compression = found["compression"]
    if not isinstance(compression, str):
        raise _Malformed("compression is not text")
    parameters = Parameters(
        chunk_size=_integer(found, "chunk_size", 0, 2**40),
        pack_size=_integer(found, "pack_size", 0, 2**40),
        inline_limit=_integer(found, "inline_limit", 0, 2**40),
        compression=compression,
        deduplication=_boolean(found, "deduplication"),
        quota=None if quota is None else _integer(found, "quota", 0, 2**63 - 1),
    )
    try:
        check_parameters(parameters)
    except BadUsage as exc:
        raise _Malformed(str(exc)) from None
    return parameters


def check_parameters(parameters: Parameters) -> None:
    """Raise BadUsage unless a volume can be made with these."""
    size = parameters.chunk_size
    if not 16 * KIB <= size <= MIB or size & (size - 1):
        raise BadUsage(f"chunk size {size}: a power of two from 16 KiB to 1 MiB is needed")
    if not size <= parameters.pack_size <= 64 * MIB:
        raise BadUsage(f"pack size {parameters.pack_size}: from one chunk to 64 MiB is possible")
    if not 0 <= parameters.inline_limit <= 64 * KIB:
        raise BadUsage(f"inline limit {parameters.inline_limit}: 0 to 64 KiB is possible")
    if parameters.compression not in ("zstd", "none"):
        raise BadUsage("compression: zstd or none")
    if parameters.quota is not None and not 0 < parameters.quota < 2**63:
        raise BadUsage(f"quota {parameters.quota}: a number of bytes above 0, or none")


def _check_label(label: str) -> None:
    if len(label) > LABEL_LIMIT or not label.isprintable():
        raise BadUsage(f"a label is at most {LABEL_LIMIT} printable characters")


def _exactly(value: Any, what: str, names: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Malformed(f"{what} is not an object")
    if value.keys() != names:
        raise _Malformed(f"{what} does not have exactly the fields it should have")
    return value


def _integer(values: dict[str, Any], name: str, low: int, high: int) -> int:
    value = values[name]
    if type(value) is not int or not low <= value <= high:  # bool is an int too
        raise _Malformed(f"{name} is not a number from {low} to {high}")
    return value


def _boolean(values: dict[str, Any], name: str) -> bool:
    value = values[name]
    if type(value) is not bool:
        raise _Malformed(f"{name} is neither true nor false")
    return value


def _hex(values: dict[str, Any], name: str, size: int) -> bytes:
    value = values[name]
    if (
        not isinstance(value, str)
        or not re.fullmatch(r"[0-9a-f]*", value)
        or len(value) != 2 * size
    ):
        raise _Malformed(f"{name} is not {size} bytes in hex")
    return bytes.fromhex(value)
