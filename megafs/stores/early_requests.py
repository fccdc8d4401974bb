"""Requests that are begun before anybody needs their answers.

Opening a volume is a chain of requests, most of which are known in advance: one after another they
take a round trip each.  `ask` and `ask_list` begin them side by side.  Whoever later makes exactly
that request gets the answer that is there or under way, once.  Every other request, and the same
one a second time, goes to the store.  So the code that reads and checks the answers is the same.

An answer that nobody took for `STALE` seconds is asked for anew.
"""

from __future__ import annotations

import contextvars
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

import trio

from megafs.errors import Unavailable
from megafs.stores.base import ObjectStore, Page
from megafs.stores.wrapper import Wrapper

log = logging.getLogger(__name__)

T = TypeVar("T")

STALE = 10.0


class EarlyAnswer(Generic[T]):
    """One question that is under way, or its answer."""

    def __init__(self) -> None:
        self.asked = trio.current_time()
        self._done = trio.Event()
        self._value: T | None = None
        self._error: BaseException | None = None

    async def run(self, question: Callable[[], Awaitable[T]]) -> None:
        try:
            self._value = await question()
        except trio.Cancelled:
            self._error = Unavailable("given up before it was answered")
            raise
        except BaseException as exc:  # noqa: ASYNC103  (whoever takes the answer gets it)
            self._error = exc
        finally:
            self._done.set()

    async def get(self) -> T:
        """Wait for it, and return or raise what it is."""
        await self._done.wait()
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]


class EarlyRequests(Wrapper):
    """*store*, some of whose answers are under way before they are asked for.

    What is asked runs in system tasks of trio; `drop` ends them, and must be called.
    """

    def __init__(self, store: ObjectStore) -> None:
        super().__init__(store)
        self._answers: dict[tuple[Any, ...], EarlyAnswer[Any]] = {}
        self._scopes: set[trio.CancelScope] = set()
        self._dropped = False

    def ask(self, name: str, length: int) -> None:
        """Begin ``get(name, 0, length)``."""
        self._begin(("get", name, 0, length), lambda: self.beneath.get(name, 0, length))

    def ask_list(self, prefix: str, after: str = "", limit: int = 1000) -> EarlyAnswer[Page]:
        """Begin ``list(prefix, after, limit)``; the answer may be looked at here, too."""
        return self._begin(
            ("list", prefix, after, limit), lambda: self.beneath.list(prefix, after, limit)
        )

    def spawn(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run *work*, which asks for more once it has seen some answers, until `drop`.

        What it raises is what an answer raised, and whoever takes that gets it.
        """
        if self._dropped:
            return
        scope = trio.CancelScope()  # one each: a scope cannot be entered by two tasks
        self._scopes.add(scope)
        trio.lowlevel.spawn_system_task(
            self._run, scope, work, name="asking ahead", context=contextvars.copy_context()
        )

    def drop(self) -> None:
        """End what is under way: nobody takes its answers."""
        self._dropped = True
        self._answers.clear()
        for scope in list(self._scopes):
            scope.cancel()

    def _begin(
        self, key: tuple[Any, ...], question: Callable[[], Awaitable[Any]]
    ) -> EarlyAnswer[Any]:
        answer = self._answers.get(key)
        if answer is None:
            answer = EarlyAnswer[Any]()
            if not self._dropped:
                self._answers[key] = answer
                self.spawn(lambda: answer.run(question))
        return answer

    async def _run(self, scope: trio.CancelScope, work: Callable[[], Awaitable[None]]) -> None:
        try:
            with scope:
                await work()
        except trio.Cancelled:
            raise
        except BaseException as exc:  # noqa: ASYNC103  (whoever asks the same gets it)
            log.debug("asking ahead: %r", exc)
        finally:
            self._scopes.discard(scope)

    def _take(self, *key: Any) -> EarlyAnswer[Any] | None:
        answer = self._answers.pop(key, None)
        if answer is None or trio.current_time() - answer.asked > STALE:
            return None
        return answer

    async def get(self, name: str, start: int, length: int) -> bytes:
        answer = self._take("get", name, start, length)
        if answer is not None:
            data: bytes = await answer.get()
            return data
        return await self.beneath.get(name, start, length)

    async def list(self, prefix: str, after: str = "", limit: int = 1000) -> Page:
        answer = self._take("list", prefix, after, limit)
        if answer is not None:
            page: Page = await answer.get()
            return page
        return await self.beneath.list(prefix, after, limit)
