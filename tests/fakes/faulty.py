"""A store that fails as real ones do, on schedule.

    Faulty(store, [None, lost_reply(), slow(3)])     what happens to the 1st, 2nd, 3rd call
    Faulty(store, seed=7, rates={"before": 0.1})     each call by chance, the same for the same seed
    faulty.partitioned = True                         nothing gets through until it is False again

Faults are told apart by what a client can see.  "before": not done, an error.  "after": done, the
reply lost.  "slow", "hang": late or never (not done).  "late": done, then never an answer.
"denied", "full": refusals.  And, for `get` only, what a malicious store may do: "flip" a bit,
"truncate", "zero", "extend" (more bytes than the object has, up to the length asked for), "swap" in
another object's bytes.  For `list`: "stale", without the objects put last.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import trio

from megafs.errors import Denied, Full, Unavailable
from megafs.stores.base import Buffer, Entry, ObjectStore, Page
from megafs.stores.wrapper import Wrapper

T = TypeVar("T")


@dataclass(frozen=True)
class Fault:
    """What happens to one call.  seconds: for "slow".  op: only this operation (None: any)."""

    kind: str
    seconds: float = 0.0
    retry_after: float | None = None
    op: str | None = None


def before(retry_after: float | None = None) -> Fault:
    return Fault("before", retry_after=retry_after)


def lost_reply() -> Fault:
    return Fault("after")


def slow(seconds: float) -> Fault:
    return Fault("slow", seconds)


def hang() -> Fault:
    return Fault("hang")


class Faulty(Wrapper):
    """*store*, with faults.

    script: the fates of the first calls, None for no fault.
    rates: by kind, the chance that a call meets it once the script is used up.
    only: the operations that meet faults (all if None).
    stale: how many of the last objects put a "stale" listing does not show yet.
    """

    def __init__(
        self,
        store: ObjectStore,
        script: Iterable[Fault | None] = (),
        *,
        seed: int = 0,
        rates: Mapping[str, float] | None = None,
        only: Iterable[str] | None = None,
        stale: int = 3,
    ) -> None:
        super().__init__(store)
        self.script = list(script)
        self.rates = dict(rates or {})
        self.only = None if only is None else set(only)
        self.partitioned = False
        self.calls: list[tuple[str, str]] = []
        #: When each call arrived, by trio's clock.
        self.times: list[float] = []
        self.hit: list[str] = []
        self._random = random.Random(seed)
        self._recent: list[str] = []
        self._stale = stale

    async def get(self, name: str, start: int, length: int) -> bytes:
        fault = self._fate("get", name)
        data = await self._with(fault, lambda: self.beneath.get(name, start, length))
        return data if fault is None else await self._spoil(fault.kind, data, name, start, length)

    async def put_new(self, name: str, data: Buffer) -> None:
        await self._with(self._fate("put_new", name), lambda: self.beneath.put_new(name, data))
        self._remember(name)

    async def put(self, name: str, data: Buffer) -> None:
        await self._with(self._fate("put", name), lambda: self.beneath.put(name, data))
        self._remember(name)

    async def delete(self, name: str) -> None:
        await self._with(self._fate("delete", name), lambda: self.beneath.delete(name))

    async def list(self, prefix: str, after: str = "", limit: int = 1000) -> Page:
        fault = self._fate("list", prefix)
        page = await self._with(fault, lambda: self.beneath.list(prefix, after, limit))
        if fault is not None and fault.kind == "stale":
            entries: list[Entry] = [e for e in page.entries if e.name not in self._recent]
            return Page(entries, page.more)
        return page

    async def create(self) -> None:
        await self._with(self._fate("create", ""), self.beneath.create)

    def count(self, op: str) -> int:
        """How often *op* was called."""
        return sum(1 for called, _ in self.calls if called == op)

    def _fate(self, op: str, name: str) -> Fault | None:
        self.calls.append((op, name))
        self.times.append(trio.current_time())
        if self.only is not None and op not in self.only:
            return None
        fault: Fault | None = None
        if self.script:
            if self.script[0] is not None and self.script[0].op not in (None, op):
                return None
            fault = self.script.pop(0)
        elif self.rates:
            draw = self._random.random()
            for kind, rate in self.rates.items():
                if draw < rate:
                    fault = Fault(kind, seconds=self._random.uniform(0, 5))
                    break
                draw -= rate
        if fault is not None:
            self.hit.append(fault.kind)
        return fault

    async def _with(self, fault: Fault | None, act: Callable[[], Awaitable[T]]) -> T:
        await trio.lowlevel.checkpoint()
        if self.partitioned:
            raise Unavailable("no route to the store")
        match fault.kind if fault else "":
            case "before":
                assert fault is not None
                raise Unavailable("503 for a test", retry_after=fault.retry_after, busy=True)
            case "after":
                await act()
                raise Unavailable("the reply is lost", maybe_done=True)
            case "late":
                await act()
                await trio.sleep_forever()
            case "slow":
                assert fault is not None
                await trio.sleep(fault.seconds)
            case "hang":
                await trio.sleep_forever()
            case "denied":
                raise Denied("403 for a test")
            case "full":
                raise Full("no room for a test")
        return await act()

    async def _spoil(self, kind: str, data: bytes, name: str, start: int, length: int) -> bytes:
        match kind:
            case "flip" if data:
                at = self._random.randrange(len(data) * 8)
                spoilt = bytearray(data)
                spoilt[at // 8] ^= 1 << (at % 8)
                return bytes(spoilt)
            case "truncate":
                return data[: self._random.randrange(len(data))] if data else data
            case "zero":
                return bytes(len(data))
            case "extend":
                return (data + bytes(10))[:length]
            case "swap":
                page = await self.beneath.list(name.rpartition("/")[0])
                others = [e.name for e in page.entries if e.name != name]
                if others:
                    return await self.beneath.get(self._random.choice(others), start, length)
        return data

    def _remember(self, name: str) -> None:
        self._recent = [*self._recent, name][-self._stale :]
