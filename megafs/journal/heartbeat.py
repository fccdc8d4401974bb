"""Who has the volume mounted: heartbeats.

`mounts/<16 hex digits>` is one mount's heartbeat, the only object that is ever overwritten: sealed
as commits are, of MessagePack of `Heartbeat`.  It tells others (and gc) how far the mount stands.
It is written every half minute or so and removed when the mount ends; one that has not changed for
`DEAD` seconds belongs to a machine that is gone, or away.  Nobody compares two machines' clocks.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import Any, Final

import msgspec
import trio

from megafs import clock
from megafs.crypto.volume_keys import Keyring
from megafs.errors import Corrupt, Missing, StoreError, TooNew
from megafs.journal.commit import Int64, decoded, open_padded, seal_padded
from megafs.journal.replica import Replica
from megafs.stores.base import ObjectStore, list_all
from megafs.tree.mount_number import is_kin

log = logging.getLogger(__name__)

FORMAT: Final = 1
INTERVAL: Final = 30.0
#: Several missed beats, and room for a store that was away for a moment.
DEAD: Final = 300.0
MAX_OBJECT: Final = 64 << 10
#: The most packs that a heartbeat names; each takes 18 bytes.
HOLDS: Final = 2500

#: The one object in `mounts/` that is no heartbeat: journal/lease.py.
LEASE: Final = "mounts/lease"
# Heartbeats that are listed, each of which is read.
_MOST_MOUNTS: Final = 10_000


class Heartbeat(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """One mount's heartbeat.  beat: counts up.  time_ns: by the mount's own clock.

    holds: the ids of packs that its pending operations name, which gc must leave alone.
    """

    mount: Int64
    host: str
    sequence: Int64
    time_ns: Int64
    beat: Int64
    read_only: bool
    token: bytes = b""
    holds: tuple[bytes, ...] = ()


def name_of(mount: int) -> str:
    return f"mounts/{mount:016x}"


def seal(keyring: Keyring, name: str, beat: Heartbeat) -> bytes:
    return seal_padded(keyring, "mount", FORMAT, msgspec.msgpack.encode(beat), name)


def open_heartbeat(keyring: Keyring, name: str, data: bytes) -> Heartbeat:
    """The heartbeat in *data*; Corrupt if it is not one, or another's."""
    body = open_padded(keyring, "mount", FORMAT, data, name, name)
    return decoded(name, body, Heartbeat)


class Predecessor(msgspec.Struct, frozen=True):
    """The mount that had this state directory before.

    is_dead: it cannot live any more.  Else it may, if this directory is a copy; then it is taken
    for dead when its heartbeat has not changed for `DEAD` seconds, unless *is_elsewhere*: the
    directory was moved since, so the other may be where it was.
    """

    number: int
    is_dead: bool
    is_elsewhere: bool


class Heartbeats:
    """Writes this mount's heartbeat and reads the others'.

    predecessor: whose heartbeat this mount removes when it is dead; None on a new machine.

    others: by mount number, the last beat that was read and when it last changed (trio's clock).
    """

    def __init__(
        self,
        replica: Replica,
        store: ObjectStore,
        keyring: Keyring,
        *,
        read_only: bool,
        predecessor: Predecessor | None = None,
    ) -> None:
        self._predecessor = predecessor
        #: Kin of this mount whose heartbeat has changed since it began: they live.
        self._twins: set[int] = set()
        self._replica = replica
        self._store = store
        self._keyring = keyring
        self._read_only = read_only
        self._beat = 0
        #: The last that were written here; one whose answer was lost may arrive late.
        self._written: deque[Heartbeat] = deque(maxlen=8)
        self._is_copied = False
        self.others: dict[int, tuple[Heartbeat, float]] = {}
        #: The predecessor is known to be dead, and its heartbeat is gone.
        self.buried = trio.Event()

    def _own(self) -> Heartbeat:
        self._beat += 1
        named = self._replica.named_packs
        # A mount that holds more packs than a heartbeat can name says that it stands at no commit:
        # then gc deletes nothing at all.
        sequence = self._replica.sequence if len(named) <= HOLDS else 0
        return Heartbeat(
            self._replica.mount,
            self._replica.host,
            sequence,
            clock.now_ns(),
            self._beat,
            self._read_only,
            holds=tuple(self._replica.pack_ids(named)) if sequence else (),
        )

    async def run(self) -> None:
        """Write and read, for ever."""
        while True:
            try:
                await self.write()
                await self.look()
                await self._bury()
            except StoreError as exc:
                log.debug("heartbeat: %s", exc)
            await trio.sleep(clock.uniform(INTERVAL * 0.8, INTERVAL * 1.2))

    async def write(self) -> None:
        """Tell the others where this mount stands, after a look at what was told last."""
        name = name_of(self._replica.mount)
        await self._look_at_own(name)
        beat = self._own()
        self._written.append(beat)
        await self._store.put(name, seal(self._keyring, name, beat))

    async def _look_at_own(self, name: str) -> None:
        """Notice another process with our number: a machine that was copied with its memory."""
        if not self._written or self._is_copied:
            return
        try:
            there = open_heartbeat(self._keyring, name, await self._store.get(name, 0, MAX_OBJECT))
        except (StoreError, Corrupt, TooNew):
            return
        if there in self._written:
            return
        self._is_copied = True
        self._replica.note(
            f"another process runs under the number of this mount, on {there.host}: this machine"
            " was copied, or set back, with its memory. Unmount and mount again on one of the two,"
            " before both write"
        )

    async def look(self) -> None:
        """Read every other mount's heartbeat."""
        now = trio.current_time()
        found: dict[int, tuple[Heartbeat, float]] = {}
        async for page in list_all(self._store, "mounts/", most=_MOST_MOUNTS):
            for entry in page.entries:
                if entry.name in (LEASE, name_of(self._replica.mount)):
                    continue
                try:
                    data = await self._store.get(entry.name, 0, MAX_OBJECT)
                    beat = open_heartbeat(self._keyring, entry.name, data)
                except Missing:
                    continue
                except (Corrupt, TooNew) as exc:
                    # Not worth a frozen mount: a heartbeat decides nothing but when gc may delete.
                    log.warning("a heartbeat is not believed: %s", exc)
                    continue
                known = self.others.get(beat.mount)
                same = known is not None and known[0].beat == beat.beat
                if known is not None and not same and is_kin(beat.mount, self._replica.mount):
                    self._note_twin(beat)
                found[beat.mount] = (beat, known[1] if same and known is not None else now)
        self.others = found

    def _note_twin(self, beat: Heartbeat) -> None:
        """Another mount runs from a copy of this state directory, now."""
        if beat.mount in self._twins:
            return
        self._twins.add(beat.mount)
        self._replica.note(
            f"the mount on {beat.host} runs from a copy of this state directory: each has a number"
            " of its own, and nothing is lost; but give each machine a state directory of its own,"
            " for what waited in the directory when it was copied is on both"
        )

    async def _bury(self) -> None:
        """Remove the heartbeat of the mount that had this state directory before, if it is dead.

        Ours, which is written, holds what that one held.
        """
        gone = self._predecessor
        if gone is None:
            return
        beat, changed = self.others.get(gone.number, (None, 0.0))
        if beat is None:
            dead = True
        elif gone.number in self._twins or (gone.is_elsewhere and not gone.is_dead):
            dead = False
        else:
            dead = gone.is_dead or trio.current_time() - changed >= DEAD
        if dead:
            if beat is not None:
                await self._store.delete(name_of(gone.number))
                del self.others[gone.number]
            self._predecessor = None
            self.buried.set()

    async def leave(self) -> None:
        """This mount ends: remove its heartbeat."""
        try:
            await self._store.delete(name_of(self._replica.mount))
        except StoreError as exc:
            log.debug("heartbeat: %s", exc)

    def mounts(self) -> list[dict[str, Any]]:
        """Every mount that is known of, this one first, for `megafs status`."""
        now = trio.current_time()
        rows = [
            {
                "mount_id": self._replica.mount,
                "host": self._replica.host,
                "sequence": self._replica.sequence,
                "alive": True,
                "this": True,
                "last_seen": clock.now(),
                "read_only": self._read_only,
            }
        ]
        for mount, (beat, changed) in sorted(self.others.items()):
            before = self._predecessor
            if before is not None and mount == before.number and mount not in self._twins:
                continue  # it was this machine's, as far as is known
            rows.append(
                {
                    "mount_id": mount,
                    "host": beat.host,
                    "sequence": beat.sequence,
                    "alive": now - changed < DEAD,
                    "this": False,
                    "last_seen": beat.time_ns / 1e9,
                    "read_only": beat.read_only,
                }
            )
        return rows
