"""When to ask a store again, and what a lost reply means.

Only `Unavailable` is retried: every other error is an answer.  Between attempts the wait doubles
from `BASE` to `CAP`, with full jitter (a uniform draw from zero up: "Exponential Backoff And
Jitter", AWS Architecture Blog, 2015), and is at least what the store asked for by Retry-After.

Five limits keep an outage from becoming worse or longer through us:

- *patience*: no operation takes longer than this, plus the time its bytes take at `MIN_SPEED`
  (those that have come or gone, where the driver tells of them; else those that were asked for).
- an attempt that makes no headway is given up after `ATTEMPT` seconds, plus the same allowance, and
  no later than patience would end.
  (Ceph stalls requests for up to 21 s when it loses a disk and then answers: do not give up early.)
- a budget, as in the AWS SDKs: each retry takes tokens, each success gives some back.  When it is
  empty, failures are final at once: a store that is down gets one request per operation, not ten.
- probes: after `UNREACHED` connections in a row that did not come about one request a second goes
  through as a probe, however many operations there are.  The others wait, and go on when one has
  been answered.
- a breaker: after `DOWN_AFTER` seconds of nothing but failures the store counts as down.  From then
  on there are probes too, and all new operations fail at once, so that a program that reads offline
  gets its error now and not in a minute.  The first success ends it.

One limit more is for what people do wrong.  Until a store has answered for the first time, a
connection that does not come about (an unknown host, nobody at the port, or who does not speak) is
tried for `CONTACT` seconds only: the address is more likely to be wrong than the store to come back
just then.  Whoever goes on all the same, as a mount of a known volume does, is as patient as ever.

A store whose answer to the last put was a refusal is "degraded", however well it answers reads.

Lost replies.  A put_new() whose answer is lost may have been carried out; asked again, the store
says Exists.  So after any failure Exists means: read it back.  Our bytes (which hold a random salt)
mean that we won; others mean somebody else did.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from megafs import clock
from megafs.errors import Exists, Full, MegafsError, Missing, StoreError, Unavailable
from megafs.metrics import Counter, Registry
from megafs.stores import limit
from megafs.stores.base import Buffer, Health, ObjectStore, Page, check_name
from megafs.stores.driver_errors import store_error
from megafs.stores.wrapper import Wrapper

T = TypeVar("T")
log = logging.getLogger(__name__)

_PUTS = ("put_new", "put")

#: Seconds before the first retry, at most; doubled for each further one.
BASE = 0.25
#: The longest wait between two attempts, before Retry-After.
CAP = 20.0
#: The longest wait a store can ask for; a longer one ends the operation.
RETRY_AFTER_CAP = 60.0
#: Seconds without an answer after which an attempt is hung, for a request without a body.
ATTEMPT = 30.0
#: An attempt that patience cuts off earlier than this says nothing about the store.
FAIR = 5.0
#: Bytes per second below which a transfer counts as hung.
MIN_SPEED = 16 << 10
#: Seconds of nothing but failures, and how many, after which the store is down.
DOWN_AFTER = 10.0
DOWN_FAILURES = 3
#: Connections that did not come about, in a row, after which nobody seems to listen.
UNREACHED = 3
#: Seconds between two requests to a store that is down or where nobody seems to listen.
PROBE_EVERY = 1.0
#: After the first success, those that wait try again within so many seconds, not all at once.
RECOVERED = 1.0
#: Seconds for the first connection to come about.
CONTACT = 2.0
#: Seconds for an attempt at it that neither comes about nor fails: a resolver whose first server is
#: down takes five.
CONTACT_HANG = 8.0
#: The longest wait between two attempts meanwhile.
CONTACT_CAP = 0.5
#: Failures in the last so many seconds make the state "degraded".
DEGRADED_FOR = 30.0
#: Seconds for which a service that has more to do than it can counts as limiting us.
LIMITED_FOR = 30.0
#: A failing store is reported once, and not again within so many seconds.
REPORT_EVERY = 60.0


class Budget:
    """Tokens for retries: what the AWS SDKs use (500 tokens, 5 a retry, 10 after a timeout).

    A success gives back what its retries took, or one token.  While the store works the bucket also
    fills by itself, a tenth a second, so that it is full ten seconds after an outage's end.
    """

    CAPACITY = 500.0
    RETRY = 5.0
    TIMEOUT = 10.0

    def __init__(self, capacity: float = CAPACITY) -> None:
        self._capacity = capacity
        self._tokens = capacity
        self._filling_since: float | None = None

    @property
    def tokens(self) -> float:
        self._fill()
        return self._tokens

    def take(self, cost: float) -> bool:
        """Pay for a retry; False if there is not enough."""
        self._fill()
        if self._tokens < cost:
            return False
        self._tokens -= cost
        return True

    def succeeded(self, paid: float) -> None:
        """A request that paid *paid* for its retries was answered."""
        self._fill()
        self._tokens = min(self._capacity, self._tokens + max(paid, 1.0))
        if self._filling_since is None:
            self._filling_since = trio.current_time()

    def failed(self) -> None:
        """A request failed: no filling until one is answered."""
        self._fill()
        self._filling_since = None

    def _fill(self) -> None:
        if self._filling_since is not None:
            now = trio.current_time()
            gain = (now - self._filling_since) * self._capacity / 10
            self._tokens = min(self._capacity, self._tokens + gain)
            self._filling_since = now


class Retrying(Wrapper):
    """*store*, asked again when it may help.

    patience: seconds an operation may take in all (more for large bodies, see above).
    attempt: seconds after which an attempt without an answer is hung.
    min_speed: bytes per second.
    contact: seconds for the first connection to come about.
    hang: seconds for an attempt at it that does not fail.
    """

    def __init__(
        self,
        store: ObjectStore,
        patience: float = 60.0,
        *,
        attempt: float = ATTEMPT,
        min_speed: float = MIN_SPEED,
        budget: float = Budget.CAPACITY,
        metrics: Registry | None = None,
        contact: float = CONTACT,
        hang: float = CONTACT_HANG,
    ) -> None:
        super().__init__(store)
        self._patience = patience
        self._contact = contact
        self._hang = hang
        self._contact_until: float | None = None
        self._attempt_seconds = attempt
        self._min_speed = min_speed
        self._budget = Budget(budget)
        # The outage that may be going on.
        self._failing_since: float | None = None
        self._last_answer = float("-inf")
        self._in_a_row = 0
        self._unreached = 0  # of those, at the end of the row
        self._last_failure: float | None = None
        self._next_probe = 0.0
        self._recovered = trio.Event()
        self._reported = False
        self._reported_at: float | None = None
        self._refusal = ""  # the last answer to a put, if that was no
        self._full = ""  # that it has no room, if the last put was told so
        self._limit = ""  # of the service, as it last said, and until when that holds
        self._limited_until = float("-inf")
        # What status shows.
        self._last_error = ""
        self._last_error_time: float | None = None
        self._last_success_time: float | None = None
        self._numbers = Numbers(metrics or Registry())

    async def get(self, name: str, start: int, length: int) -> bytes:
        check_name(name)

        async def once(again: bool) -> bytes:
            return await self.beneath.get(name, start, length)

        data = await self._run("get", name, once, length)
        self._numbers.received.add(len(data))
        return data

    async def put_new(self, name: str, data: Buffer) -> None:
        check_name(name)

        async def once(again: bool) -> None:
            try:
                await self.beneath.put_new(name, data)
                return
            except Exists as exc:
                taken = exc
            # `again` rather than `maybe_done`: reading back once too often costs one request,
            # taking our own object for another's costs a conflict copy.
            if not (again and await self._holds(name, data)):
                raise taken

        await self._run("put_new", name, once, len(data), back=len(data))
        self._numbers.sent.add(len(data))

    async def put(self, name: str, data: Buffer) -> None:
        check_name(name)

        async def once(again: bool) -> None:
            await self.beneath.put(name, data)

        await self._run("put", name, once, len(data))
        self._numbers.sent.add(len(data))

    async def delete(self, name: str) -> None:
        check_name(name)

        async def once(again: bool) -> None:
            await self.beneath.delete(name)

        await self._run("delete", name, once)

    async def list(self, prefix: str, after: str = "", limit: int = 1000) -> Page:
        async def once(again: bool) -> Page:
            return await self.beneath.list(prefix, after, limit)

        # About what an entry takes in S3's XML.
        return await self._run("list", prefix, once, limit * 300)

    async def create(self) -> None:
        async def once(again: bool) -> None:
            await self.beneath.create()

        await self._run("create", "", once)

    @property
    def state(self) -> str:
        """ "ok", "degraded" (some requests fail) or "down" (none has worked lately)."""
        now = trio.current_time()
        if self._last_failure is None:
            return "degraded" if self._refusal else "ok"
        if (
            self._failing_since is not None
            and self._in_a_row >= DOWN_FAILURES
            and self._last_failure - self._failing_since >= DOWN_AFTER
        ):
            return "down"
        failed = bool(self._refusal) or now - self._last_failure < DEGRADED_FOR
        return "degraded" if failed else "ok"

    def health(self) -> Health:
        below = self.beneath.health()
        numbers = self._numbers
        details = {
            **below.details,
            "requests": int(sum(series.value for series in numbers.requests.values())),
            "failures": int(numbers.failures.value),
            "retries": int(numbers.retries.value),
            "gave_up": int(numbers.gave_up.value),
            "bytes_up": int(numbers.sent.value),
            "bytes_down": int(numbers.received.value),
            "last_success": self._last_success_time,
            "last_error": self._refusal or self._last_error,
            "last_error_time": self._last_error_time,
            "limit": below.details.get("limit", "") or self._limit_now(),
        }
        return Health(self.state, self._refusal or self._last_error or below.last_error, details)

    def _limit_now(self) -> str:
        """Which limit of the service holds just now, "" if none is known."""
        if self._full:
            return self._full
        return self._limit if trio.current_time() < self._limited_until else ""

    async def _run(
        self,
        op: str,
        name: str,
        once: Callable[[bool], Awaitable[T]],
        length: int = 0,
        back: int = 0,
    ) -> T:
        """Ask until there is an answer that stands, or patience or the budget ends.

        once: one attempt; its argument is whether it is not the first.
        length: bytes to be transferred; an attempt that is not the first may read *back* more.
        """
        begun = trio.current_time()
        allowance = length / self._min_speed
        patience = limit.Patience(begun + self._patience, length + back, self._min_speed)
        contact = self._contact_ends(begun)
        probe = self._refuse_while_down()
        if not probe and contact is None and not await self._wait_for_turn(patience.end):
            self._numbers.gave_up.add()
            raise Unavailable(f"{self.url} is not reachable: {self._last_error} ({op} {name})")
        tries = 0
        paid = 0.0
        maybe_done = False
        error: Unavailable | None = None
        while True:
            hung = False
            sent = trio.current_time()
            try:
                self._numbers.requests[op].add()
                try:
                    result = await self._attempt(once, tries > 0, allowance, patience, contact)
                finally:
                    self._numbers.seconds[op].add(trio.current_time() - sent)
            except OutOfTime as exc:  # patience has ended, and the store is not to blame for it
                cause = error or exc
                self._numbers.gave_up.add()
                raise Unavailable(
                    f"{cause} (gave up after {trio.current_time() - begun:.0f} s; {op} {name})",
                    maybe_done=maybe_done or exc.maybe_done,
                ) from cause
            except TooSlow as exc:
                hung = True
                error = exc
            except Unavailable as exc:
                error = exc
            except StoreError as exc:
                self._answered(paid)
                if op in _PUTS:
                    self._refusal = "" if isinstance(exc, Exists) else str(exc)
                    self._full = str(exc) if isinstance(exc, Full) else ""
                raise
            else:
                self._answered(paid)
                if op in _PUTS:
                    self._refusal = self._full = ""
                return result
            tries += 1
            patience.waste()
            allowance = (length + back) / self._min_speed
            maybe_done |= error.maybe_done
            self._failed(error, sent)

            wait = clock.uniform(0, min(CAP, BASE * 2 ** min(tries - 1, 32)))
            if error.retry_after is not None:
                wait = max(wait, error.retry_after)
            cost = Budget.TIMEOUT if hung else Budget.RETRY
            now = trio.current_time()
            first = error.unreached and self._last_answer == float("-inf")
            if contact is not None and first:
                wait = min(wait, CONTACT_CAP)
            if contact is not None and first and now + wait >= contact:
                why = "no connection has come about yet"
            elif now + wait >= patience.end or wait > max(CAP, RETRY_AFTER_CAP):
                why = f"gave up after {tries} tries in {now - begun:.0f} s"
            elif probe:
                why = "it has not answered for a while"
            elif not self._budget.take(cost):
                why = "too many requests are failing to try again now"
            else:
                paid += cost
                self._numbers.retries.add()
                await self._pause(wait, asked=error.retry_after is not None)
                if contact is not None and first:
                    continue
                if await self._wait_for_turn(patience.end):
                    continue
                why = f"gave up after {trio.current_time() - begun:.0f} s"
            self._numbers.gave_up.add()
            self._report(error)
            raise Unavailable(
                f"{error} ({why}; {op} {name})",
                retry_after=error.retry_after,
                maybe_done=maybe_done,
            ) from error

    async def _attempt(
        self,
        once: Callable[[bool], Awaitable[T]],
        again: bool,
        allowance: float,
        patience: limit.Patience,
        contact: float | None,
    ) -> T:
        seconds = min(self._attempt_seconds, self._patience)
        with trio.CancelScope() as scope:
            timing = limit.Attempt(scope, seconds, allowance, patience)
            if contact is not None:
                timing.contact = contact - self._contact + self._hang
            token = limit.attempt.set(timing)
            try:
                return await once(again)
            except MegafsError:
                raise
            except (Exception, BaseExceptionGroup) as exc:
                error = store_error(self.url, exc)
                if error is exc:
                    raise
                raise error from exc
            finally:
                limit.attempt.reset(token)
        if timing.contact is not None and patience.counted:
            raise Unavailable(f"{self.url}: no connection in time", unreached=True)
        if timing.queued:
            raise OutOfTime(f"{self.url}: too much is waiting to be transferred")
        if timing.running < min(self._attempt_seconds, FAIR):
            raise OutOfTime(f"{self.url}: no answer in time", maybe_done=True)
        raise TooSlow(f"{self.url}: no answer in time", maybe_done=True)

    def _contact_ends(self, now: float) -> float | None:
        """When an operation that begins now stops to try for a first connection; None if never."""
        if self._last_answer != float("-inf"):
            return None
        if self._contact_until is None:
            self._contact_until = now + self._contact
        return self._contact_until if now < self._contact_until else None

    async def _holds(self, name: str, data: Buffer) -> bool:
        """Whether the store's object *name* is exactly *data*."""
        try:
            # One byte more tells a longer object.
            found = await self.beneath.get(name, 0, len(data) + 1)
        except Missing:
            # There a moment ago: a listing or cache that lags, or somebody deleted it.  Ask again.
            raise Unavailable(f"{self.url}: {name} exists and is missing") from None
        return found == data

    def _refuse_while_down(self) -> bool:
        """Let one request a second through to a store that is down, and fail the others at once.

        Returns whether this is one that was let through.
        """
        if self.state != "down":
            return False
        now = trio.current_time()
        if now < self._next_probe:
            self._numbers.gave_up.add()
            raise Unavailable(f"{self.url} is not reachable: {self._last_error}")
        self._next_probe = now + PROBE_EVERY
        return True

    async def _pause(self, wait: float, *, asked: bool) -> None:
        """Wait before the next attempt; less if another request finds a dead store alive again.

        asked: the store itself said how long.
        """
        recovered = self._recovered
        with trio.move_on_after(wait):
            if asked:
                await trio.sleep_forever()
            await recovered.wait()
            await trio.sleep(clock.uniform(0, RECOVERED))

    @property
    def _probing(self) -> bool:
        """Whether requests go out one a second, to see if anybody is there."""
        return self._unreached >= UNREACHED or self.state == "down"

    async def _wait_for_turn(self, deadline: float) -> bool:
        """Return when a request may go out; False if that would be after *deadline*."""
        while self._probing:
            now = trio.current_time()
            if now >= deadline:
                return False
            if now >= self._next_probe:
                self._next_probe = now + PROBE_EVERY
                return True
            recovered = self._recovered
            with trio.move_on_after(min(self._next_probe, deadline) - now) as waiting:
                await recovered.wait()
            if not waiting.cancelled_caught:
                left = deadline - trio.current_time()
                await trio.sleep(clock.uniform(0, min(RECOVERED, left / 2)))
        return True

    def _answered(self, paid: float) -> None:
        """The store is alive, whatever it said."""
        if self._probing:
            self._recovered.set()
            self._recovered = trio.Event()
        self._unreached = 0
        self._last_success_time = clock.now()
        self._last_answer = trio.current_time()
        self._budget.succeeded(paid)
        self._in_a_row = 0
        if self._failing_since is not None:
            if self._reported:
                log.info(
                    "%s works again after %.0f s",
                    self.url,
                    trio.current_time() - self._failing_since,
                )
            self._failing_since = None
            self._reported = False

    def _failed(self, error: Unavailable, sent: float) -> None:
        """Note a request that was sent at *sent* and not answered."""
        now = trio.current_time()
        self._last_error = str(error)
        self._last_error_time = clock.now()
        self._last_failure = now
        if error.busy or error.retry_after is not None:
            asked = error.retry_after or 0.0
            self._limit = str(error) + (f"; it asks to wait {asked:.0f} s" if asked else "")
            self._limited_until = now + max(asked, LIMITED_FOR)
        self._numbers.failures.add()
        self._budget.failed()
        self._in_a_row += 1
        self._unreached = self._unreached + 1 if error.unreached else 0
        if self._unreached == UNREACHED:
            self._next_probe = now + PROBE_EVERY
        if self._failing_since is None:
            # A request that hung for a minute tells of the whole minute, unless another worked.
            self._failing_since = max(sent, self._last_answer)
        if self.state == "down":
            self._report(error)

    def _report(self, error: Unavailable) -> None:
        """Say that the store fails: one line for an outage, however many requests it hits."""
        now = trio.current_time()
        if self._reported or (
            self._reported_at is not None and now - self._reported_at < REPORT_EVERY
        ):
            return
        self._reported = True
        self._reported_at = now
        log.warning("%s does not answer, trying on: %s", self.url, error)


class TooSlow(Unavailable):
    """An attempt was given up because it made no headway."""


class OutOfTime(Unavailable):
    """Patience ended before the attempt had a fair chance, for instance in the queue."""


class Numbers:
    """The series that requests to a store feed."""

    OPS = ("get", "put_new", "put", "delete", "list", "create")

    def __init__(self, metrics: Registry) -> None:
        def counter(what: str, text: str, unit: str = "") -> Counter:
            return metrics.counter(f"megafs_store_{what}", text, unit)

        self.requests = {
            op: metrics.counter(
                "megafs_store_requests", "Requests sent to the store, retries included.", op=op
            )
            for op in self.OPS
        }
        self.seconds = {
            op: metrics.counter(
                "megafs_store_request", "Time in requests, waiting included.", "seconds", op=op
            )
            for op in self.OPS
        }
        self.failures = counter("failures", "Requests the store did not answer.")
        self.retries = counter("retries", "Requests sent again.")
        self.gave_up = counter("gave_up", "Operations that failed for want of an answer.")
        self.sent = counter("sent", "Object bytes stored.", "bytes")
        self.received = counter("received", "Object bytes read.", "bytes")
