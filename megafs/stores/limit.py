"""How much may be asked of a store at once, and who goes first.

httpcore loses connections for good when requests are cancelled while they queue in its pool, and
races when tasks outnumber connections (encode/httpcore#1110).  So nobody queues there: they queue
here, and the slots here are never more than the pool has connections.  How many of them there are
at present follows from what they bring (stores/parallelism.py).

Order of service.  Uploads: everything small that others wait for (commits, keys, mounts) before
packs.  Downloads: reads a program waits for before read-ahead (`background()`).  One slot of each
direction is kept for the urgent ones, so that a commit need not wait for a 16 MiB pack, nor a read
for eight read-aheads.  A background fetch that a reader has come to wait for is raised
(`Priority.raise_to_urgent`).

Bandwidth, if limited, is paid before a transfer starts: an object goes out at full speed once the
ones before it are paid for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar

import trio

from megafs.errors import Unavailable
from megafs.stores.abilities import LineAdvice
from megafs.stores.base import Buffer, Health, ObjectStore, Page
from megafs.stores.parallelism import START_DOWN, START_UP, Parallelism
from megafs.stores.wrapper import Wrapper

URGENT, NORMAL, BACKGROUND = 0, 1, 2


class Priority:
    """How urgent a piece of work is; may be raised while it waits."""

    __slots__ = ("level", "listeners")

    def __init__(self, level: int = URGENT) -> None:
        self.level = level
        self.listeners: list[Callable[[], None]] = []  # called when the level changes

    def raise_to_urgent(self) -> None:
        """Somebody waits for this now."""
        if self.level != URGENT:
            self.level = URGENT
            for listener in list(self.listeners):
                listener()


_FOREGROUND = Priority()
_priority: ContextVar[Priority] = ContextVar("store_priority", default=_FOREGROUND)


@contextmanager
def background() -> Iterator[None]:
    """The block's requests to a store give way to those that programs wait for."""
    with at_priority(Priority(BACKGROUND)):
        yield


@contextmanager
def at_priority(priority: Priority) -> Iterator[None]:
    """Do the block's requests at *priority*."""
    token = _priority.set(priority)
    try:
        yield
    finally:
        _priority.reset(token)


def current_level() -> int:
    """The urgency of the calling task."""
    return _priority.get().level


class Patience:
    """When a whole operation must have ended, however many attempts it takes.

    until: its end, were there nothing to transfer.  speed: bytes per second below which a transfer
    counts as hung; size: the most bytes that may come or go.  Time for them is granted in advance,
    unless the driver reports every byte: then it is earned by bytes, and a request that was asked
    for a lot and gets nothing waits no longer than a small one.
    """

    __slots__ = ("_earned", "_granted", "_speed", "_until", "counted")

    def __init__(self, until: float, size: int, speed: float) -> None:
        self._until = until
        self._speed = speed
        self._granted = size / speed
        self._earned = 0.0
        self.counted = False

    def earn(self, size: int) -> None:
        self._earned = min(self._granted, self._earned + size / self._speed)

    def waste(self) -> None:
        """The attempt came to nothing, and so did its bytes: they earn no time for another."""
        self._earned = 0.0

    @property
    def end(self) -> float:
        return self._until + (self._earned if self.counted else self._granted)


class Attempt:
    """The time limit of one attempt at a request, which stands still while the request queues.

    `Retrying` sets it; `Limited` says when the request queues, and drivers report bytes: a transfer
    is hung when it makes no headway, not when it waits for its slot.

    seconds: without any headway.  allowance: more seconds, for drivers that do not report bytes.
    """

    __slots__ = ("_allowance", "_patience", "_scope", "_seconds", "_since", "contact", "queued")

    def __init__(
        self, scope: trio.CancelScope, seconds: float, allowance: float, patience: Patience
    ) -> None:
        self._scope = scope
        self._seconds = seconds
        self._allowance = allowance
        self._patience = patience
        #: By when a byte must have come or gone, for a driver that counts them; then None.
        self.contact: float | None = None
        self.start()

    def pause(self) -> None:
        self.queued = True
        self._scope.deadline = self._patience.end

    def start(self) -> None:
        self.queued = False
        self._since = trio.current_time()
        allowance = 0.0 if self._patience.counted else self._allowance
        self._scope.deadline = min(self._since + self._seconds + allowance, self._patience.end)

    def count(self) -> None:
        """From here on `moved` is called for every byte."""
        if not self._patience.counted:
            self._patience.counted = True
            self.start()
        if self.contact is not None:
            self._scope.deadline = min(self._scope.deadline, self.contact)

    def moved(self, size: int) -> None:
        """So many bytes have come or gone."""
        self.contact = None
        self._patience.earn(size)
        self._scope.deadline = min(trio.current_time() + self._seconds, self._patience.end)

    @property
    def running(self) -> float:
        """Seconds since it last started."""
        return trio.current_time() - self._since

    @property
    def hung(self) -> bool:
        """Whether it has ended for want of any headway."""
        return not self.queued and self._scope.cancel_called and self.running >= self._seconds


attempt: ContextVar[Attempt | None] = ContextVar("store_attempt", default=None)


class _Waiter:
    """One who waits for a slot, or has it.  bulk: it was given as to work that is not urgent."""

    __slots__ = ("bulk", "given", "priority")

    def __init__(self, priority: Priority) -> None:
        self.priority = priority
        self.given = trio.Event()
        self.bulk = False


class Gate:
    """Slots, given to the most urgent waiter first, in order of arrival among equals.

    parallelism: says how many there are, and how many of those work may take that is not urgent.
    """

    def __init__(self, parallelism: Parallelism) -> None:
        self.parallelism = parallelism
        self.active = 0
        self._bulk = 0
        self._waiting: list[_Waiter] = []
        self._area = self._area_at = 0.0

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def area(self) -> float:
        """The integral of `active` over time."""
        now = trio.current_time()
        self._area += self.active * (now - self._area_at)
        self._area_at = now
        return self._area

    @asynccontextmanager
    async def slot(self, priority: Priority) -> AsyncIterator[None]:
        """Hold a slot for the block."""
        waiter = await self._enter(priority)
        try:
            yield
        finally:
            self._leave(waiter)

    async def _enter(self, priority: Priority) -> _Waiter:
        waiter = _Waiter(priority)
        self._waiting.append(waiter)
        self._admit()
        priority.listeners.append(self._admit)
        try:
            await waiter.given.wait()  # a checkpoint even if we are in already
        except trio.Cancelled:
            if waiter.given.is_set():  # admitted and cancelled in the same moment
                self._leave(waiter)
            else:
                self._waiting.remove(waiter)
            raise
        finally:
            priority.listeners.remove(self._admit)
        return waiter

    def _leave(self, waiter: _Waiter) -> None:
        self.area()
        self.active -= 1
        self._bulk -= waiter.bulk
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self.active < self.parallelism.slots:
            # min() keeps the first among equals.
            waiter = min(self._waiting, key=lambda each: each.priority.level)
            if waiter.priority.level != URGENT:
                room = self._bulk < self.parallelism.bulk and self.active < self.parallelism.shared
                if not room:
                    return
                waiter.bulk = True
            self._waiting.remove(waiter)
            self.area()
            self.active += 1
            self._bulk += waiter.bulk
            waiter.given.set()


class Pace:
    """A limit in bytes per second; None for no limit."""

    def __init__(self, rate: float | None) -> None:
        self.rate = rate
        self._gate = Gate(Parallelism(1))
        self._paid_until = 0.0

    async def pay(self, size: int, priority: Priority) -> None:
        """Wait until *size* bytes may start, the most urgent first."""
        if self.rate is None:
            return
        async with self._gate.slot(priority):
            await trio.sleep_until(self._paid_until)
            self._paid_until = max(trio.current_time(), self._paid_until) + size / self.rate

    def refund(self, size: int) -> None:
        """Give back what was paid for and not sent."""
        if self.rate is not None:
            self._paid_until -= size / self.rate


class LineEstimate:
    """Latency and rate of the way to the store, from how long the last gets took.

    A get of n bytes takes about latency + n / rate: the straight line through the samples with the
    least squares gives both.  Gets that run side by side share the rate, so it is what one of them
    can count on.
    """

    #: So many samples are kept, and so many are needed.
    _KEEP = 64
    _ENOUGH = 8

    def __init__(self) -> None:
        self._samples: deque[tuple[int, float]] = deque(maxlen=self._KEEP)
        self._latency_bytes = 0

    def note(self, size: int, seconds: float) -> None:
        """A get of *size* bytes took so long."""
        self._samples.append((size, seconds))
        self._latency_bytes = -1

    def latency_bytes(self) -> int:
        """The bytes that take as long as the latency; 0 if the samples do not tell."""
        if self._latency_bytes < 0:
            self._latency_bytes = self._fit()
        return self._latency_bytes

    def _fit(self) -> int:
        count = len(self._samples)
        if count < self._ENOUGH:
            return 0
        mean_n = sum(n for n, _ in self._samples) / count
        mean_t = sum(t for _, t in self._samples) / count
        spread = sum((n - mean_n) ** 2 for n, _ in self._samples)
        if spread < count * (16 << 10) ** 2:  # all of about one size
            return 0
        slope = sum((n - mean_n) * (t - mean_t) for n, t in self._samples) / spread
        latency = mean_t - slope * mean_n
        if latency <= 0:
            return 0
        return int(min(latency / slope, 1 << 30)) if slope > 0 else 1 << 30


class Limited(Wrapper, LineAdvice):
    """*store* with as many requests at once as it and the line have use for.

    uploads, downloads: the most that carry objects up, and the most of all others; their sum must
        not exceed the driver's connections.
    up_rate, down_rate: bytes per second, or None.
    """

    def __init__(
        self,
        store: ObjectStore,
        uploads: int,
        downloads: int,
        *,
        up_rate: float | None = None,
        down_rate: float | None = None,
    ) -> None:
        super().__init__(store)
        self._up = Gate(Parallelism(uploads, START_UP))
        self._down = Gate(Parallelism(downloads, START_DOWN))
        self._up_pace = Pace(up_rate)
        self._down_pace = Pace(down_rate)
        self._line = LineEstimate()

    async def get(self, name: str, start: int, length: int) -> bytes:
        async with self._slot_for(self._down, self._down_pace, length) as transfer:
            data = await self.beneath.get(name, start, length)
            transfer.moved = len(data)
            self._line.note(len(data), trio.current_time() - transfer.begun)
        self._down_pace.refund(length - len(data))
        return data

    async def put_new(self, name: str, data: Buffer) -> None:
        async with self._slot_for(
            self._up, self._up_pace, len(data), self._urgency(name)
        ) as transfer:
            await self.beneath.put_new(name, data)
            transfer.moved = len(data)

    async def put(self, name: str, data: Buffer) -> None:
        async with self._slot_for(
            self._up, self._up_pace, len(data), self._urgency(name)
        ) as transfer:
            await self.beneath.put(name, data)
            transfer.moved = len(data)

    async def delete(self, name: str) -> None:
        async with self._slot_for(self._down):
            await self.beneath.delete(name)

    async def list(self, prefix: str, after: str = "", limit: int = 1000) -> Page:
        async with self._slot_for(self._down):
            return await self.beneath.list(prefix, after, limit)

    async def create(self) -> None:
        async with self._slot_for(self._down):
            await self.beneath.create()

    def latency_bytes(self) -> int:
        return self._line.latency_bytes()

    def useful_uploads(self) -> int:
        return self._up.parallelism.bulk

    def useful_downloads(self) -> int:
        return self._down.parallelism.bulk

    def health(self) -> Health:
        below = self.beneath.health()
        details = {
            **below.details,
            "uploading": self._up.active,
            "downloading": self._down.active,
            "queued": self._up.waiting + self._down.waiting,
            "uploads_at_once": self._up.parallelism.bulk,
            "downloads_at_once": self._down.parallelism.bulk,
            "requests_at_once": self._up.parallelism.slots + self._down.parallelism.slots,
        }
        return Health(below.state, below.last_error, details)

    @staticmethod
    def _urgency(name: str) -> int:
        """Packs give way: they are large and many, and nobody waits for a pack alone."""
        return NORMAL if name.startswith("packs/") else URGENT

    @asynccontextmanager
    async def _slot_for(
        self, gate: Gate, pace: Pace | None = None, size: int = 0, least: int = URGENT
    ) -> AsyncIterator[_Transfer]:
        priority = _priority.get()
        if priority.level < least:
            priority = Priority(least)
        clock = attempt.get()
        if clock is not None:
            clock.pause()
        async with gate.slot(priority):
            if pace is not None:
                await pace.pay(size, priority)
            if clock is not None:
                clock.start()
            transfer = _Transfer(gate)
            try:
                yield transfer
            except Unavailable as exc:
                if exc.busy:
                    transfer.failed()
                raise
            except trio.Cancelled:
                if clock is not None and clock.hung:
                    transfer.failed()
                raise
            else:
                transfer.answered()


class _Transfer:
    """A request that is under way.  moved: bytes of the object that came or went."""

    __slots__ = ("_area", "_era", "_gate", "begun", "moved")

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._area = gate.area()
        self._era = gate.parallelism.era
        self.begun = trio.current_time()
        self.moved = 0

    def answered(self) -> None:
        seconds = trio.current_time() - self.begun
        active = (self._gate.area() - self._area) / seconds if seconds > 0 else self._gate.active
        self._gate.parallelism.answered(self._era, seconds, self.moved, active)

    def failed(self) -> None:
        self._gate.parallelism.overloaded(self._era, self._gate.active)
