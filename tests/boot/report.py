"""What was checked, line by line, for people; and whether all of it held."""

from __future__ import annotations

import time

from megafs.printable import printable


class Report:
    """Prints as it goes.  failed: the checks that did not hold."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self.checks = 0
        self.failed: list[str] = []

    def section(self, title: str) -> None:
        print(f"{self._time()} {title}", flush=True)

    def note(self, text: str) -> None:
        print(f"{self._time()}        {text}", flush=True)

    def check(self, what: str, holds: bool, seen: str = "") -> None:
        """seen: what was found instead, shown if it does not hold."""
        self.checks += 1
        print(f"{self._time()}   {'ok  ' if holds else 'FAIL'} {what}", flush=True)
        if not holds:
            self.failed.append(what)
            for line in seen.splitlines():
                print(f"              {printable(line)}", flush=True)

    def summary(self) -> str:
        """One line about all of it."""
        took = time.monotonic() - self._began
        failed = f"{len(self.failed)} FAILED" if self.failed else "all held"
        return f"boot-test: {self.checks} checks, {failed}, {took:.0f} s"

    def _time(self) -> str:
        return f"{time.monotonic() - self._began:6.0f} s"
