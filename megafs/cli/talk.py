"""Questions to whoever sits at the terminal, and pages for their browser."""

from __future__ import annotations

import os
import sys

from megafs.cli import output, passphrase
from megafs.concurrency import offload
from megafs.errors import BadUsage
from megafs.printable import printable


class Terminal:
    """The terminal, or standard input and error where there is none (megafs/stores/login)."""

    def say(self, *lines: str) -> None:
        """Show lines, on stderr: results go to stdout."""
        output.note(*lines)

    async def ask(self, question: str, *, secret: bool = False) -> str:
        """Ask a question and return the line that is typed; BadUsage if there is nobody."""
        if secret and passphrase.has_terminal():
            return passphrase.typed(printable(question))
        sys.stderr.write(printable(question))
        sys.stderr.flush()
        with passphrase.interruptible():
            line = sys.stdin.readline()
        if not line:
            output.line_ends()
            raise BadUsage("nothing was typed, and there is no terminal to ask again")
        return line.rstrip("\r\n")

    def has_browser(self) -> bool:
        """Whether this session seems to have a browser: on a desktop, or named by BROWSER."""
        return any(os.environ.get(name) for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY"))

    async def open_browser(self, address: str) -> bool:
        """Open the desktop's browser, or the one that BROWSER names; False if there is none."""
        import webbrowser

        # It waits for a browser that runs in the terminal.
        return await offload(webbrowser.open, address, kind="net", abandon=True)
