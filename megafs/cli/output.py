"""Output of the commands, for people and for programs.

Results go to stdout, everything else to stderr; every line on stderr starts with ``megafs: ``.
Names and texts come from other machines and from the store, so what would move the cursor or begin
a line of its own is shown escaped (megafs/printable.py): pass each line by itself.
With --json stdout holds exactly one JSON document, an error included.  Colours and moving bars only
on a terminal; elsewhere progress is a plain line every few seconds.  rich is imported when needed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from megafs import clock
from megafs.errors import MegafsError
from megafs.printable import printable

#: Seconds between two lines of progress where there is no terminal.
LINE_EVERY = 5.0

PREFIX = "megafs: "

#: Whether stdout has its document already: an error after it goes to stderr.  A new recovery key is
#: printed before what can still fail.
document_is_out = False


class OutputLost(MegafsError):
    """Stdout did not take what was to be printed: a full disk behind it, or it is closed."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(f"standard output cannot be written: {cause.strerror}")


def note(*lines: str) -> None:
    """Tell the user something on stderr; where that cannot be, the exit code has to do."""
    try:
        for line in lines:
            sys.stderr.write(f"{PREFIX}{printable(line)}\n")
        sys.stderr.flush()
    except OSError:
        discard(sys.stderr)


def usage(text: str) -> None:
    """Show how a command is used, on stderr."""
    try:
        sys.stderr.write(f"{text.rstrip()}\n")
        sys.stderr.flush()
    except OSError:
        discard(sys.stderr)


def line_ends() -> None:
    """Begin a new line on stderr."""
    try:
        sys.stderr.write("\n")
    except OSError:
        discard(sys.stderr)


def discard(stream: IO[str]) -> None:
    """Let *stream*, which failed, go nowhere: Python writes once more at the end what is in it."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def warn(text: str) -> None:
    """Tell the user of something that may be wrong."""
    note(f"warning: {text}")


def show(*lines: str) -> None:
    """Print a result.  BrokenPipeError: whoever read it has left.  OutputLost: it went nowhere."""
    for line in lines:
        write(printable(line) + "\n")


def write(text: str) -> None:
    """Print *text* as it is; raises as `show` does."""
    _to_stdout(lambda: sys.stdout.write(text))


def flush() -> None:
    """Bring everything that was printed to where stdout leads; raises as `show` does."""
    _to_stdout(sys.stdout.flush)


def _to_stdout(act: Callable[[], object]) -> None:
    try:
        act()
    except OSError as exc:
        discard(sys.stdout)
        if isinstance(exc, BrokenPipeError):
            raise
        raise OutputLost(exc) from exc


def show_json(value: Any) -> None:
    """Print the one document of --json."""
    global document_is_out
    document_is_out = True
    write(json.dumps(value, indent=2, default=str) + "\n")
    flush()


def rows(pairs: list[tuple[str, str]], indent: str = "  ") -> list[str]:
    """Return *pairs* as lines with aligned values."""
    width = max((len(name) for name, _ in pairs), default=0)
    return [f"{indent}{name:<{width}}  {value}" for name, value in pairs]


def table(heads: list[str], lines: list[list[str]]) -> list[str]:
    """Return the lines of a plain table."""
    shown = [[printable(cell) for cell in line] for line in [heads, *lines]]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in shown
    ]


def size(n: float | None) -> str:
    """12345678 -> "12.3 MB"."""
    if n is None:
        return "no limit"
    value = float(n)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(value) < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 99.5 else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} PB"


def span(seconds: float) -> str:
    """Seconds as people say them: "3 min", "2 days"."""
    seconds = max(seconds, 0)
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length or (unit != "days" and seconds >= length):
            return f"{int(seconds // length)} {unit}"
    return f"{int(seconds)} s"


def ago(when: float | None) -> str:
    """A time in seconds since 1970 as "3 min ago"."""
    return f"{span(clock.now() - when)} ago" if when else "never"


def moment(when: float) -> str:
    """A time in seconds since 1970 as this machine's clock on the wall shows it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))


OnStep = Callable[[int, str], None]


@contextmanager
def progress(title: str) -> Iterator[OnStep]:
    """Show progress for the block; yields a function to call with (bytes left, text beside them).

    The whole is the most that was ever left, since more may be added while it works.
    """
    if sys.stderr.isatty():
        with _bar(title) as step:
            yield step
        return
    last = -LINE_EVERY

    def line(left: int, text: str) -> None:
        nonlocal last
        if time.monotonic() - last >= LINE_EVERY and (left or text):
            last = time.monotonic()
            note(
                f"{title}: {', '.join(part for part in (size(left) if left else '', text) if part)}"
            )

    yield line


@contextmanager
def _bar(title: str) -> Iterator[OnStep]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[beside]}", markup=False),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task(title, total=0, beside="")
        whole = 0

        def step(left: int, text: str) -> None:
            nonlocal whole
            whole = max(whole, left)
            bar.update(task, total=whole, completed=whole - left, beside=printable(text))

        yield step
