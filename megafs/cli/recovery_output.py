"""Where a new recovery key goes, before there is a slot for it: a file, or stdout.

It is printed or written, and known to have arrived, before the volume changes: a full disk behind
stdout, or a pipe that nobody reads, then costs nothing.  Whoever has a key that counts nowhere, as
the change failed after it, is told so.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megafs.cli import ending, output
from megafs.durable import sync_directory
from megafs.errors import AlreadyThere, BadUsage, MegafsError


class RecoveryKeyOutput:
    """Takes the new recovery key of one command, and prints the command's result with it."""

    def __init__(self, file: Path | None, *, as_json: bool) -> None:
        self._file = None if file is None else file.expanduser().absolute()
        self._as_json = as_json
        self._begun = False  # stdout has the beginning of the document
        self._delivered = False
        self._counts = False  # there is a slot for it
        if self._file is not None and os.path.lexists(self._file):
            # Found out before anything slow is done; `_write` makes sure.
            raise _in_the_way(self._file)

    def deliver(self, fsid: bytes, recovery: str) -> None:
        """Bring the key to where somebody has it; an error if that cannot be."""
        if self._file is not None:
            _write(self._file, f"{recovery}\nvolume {fsid.hex()}\n")
        elif self._as_json:
            # The document's beginning; `show_json` ends it.
            output.document_is_out = self._begun = True
            output.write(f'{{\n  "recovery_key": {json.dumps(recovery)},\n')
            output.flush()
        else:
            output.show(
                "Recovery key, shown this once. It opens the volume without the passphrase;",
                "write it down with the volume's id and keep it away from this machine:",
                "",
                f"    {recovery}",
                f"    volume {fsid.hex()}",
                "",
            )
            output.flush()
        self._delivered = True

    def show_json(self, value: dict[str, Any]) -> None:
        """Print *value* as the document of --json, with the key in it."""
        self._counts = True
        where = None if self._file is None else str(self._file)
        if self._begun:
            self._begun = False
            output.write(json.dumps(value, indent=2, default=str).removeprefix("{\n") + "\n")
            output.flush()
        else:
            output.show_json({"recovery_key": None, **value, "recovery_key_file": where})

    def show_file(self) -> None:
        """Say which file has the key, if one has, now that it counts."""
        self._counts = True
        if self._file is not None and self._delivered:
            output.show(f"recovery key written to {self._file}: keep it away from this machine")

    @contextmanager
    def warning_if_void(self, what_counts: str) -> Iterator[None]:
        """For the block that changes the keys: say what an error in it means for the key.

        what_counts: which keys open the volume if the change was not made.
        """
        try:
            yield
        except BaseException as exc:
            if self._begun:
                self._begun = False
                self._end_document(ending.of(exc))
            if self._delivered and not self._counts:
                where = "above" if self._file is None else f"in {self._file}"
                output.warn(
                    f"the recovery key {where} may open nothing, for the change was not completed:"
                    f" {what_counts}"
                )
            raise

    def _end_document(self, ends: ending.Ending) -> None:
        error = {"text": ends.text, "exit_code": ends.exit_code, "kind": ends.kind}
        try:
            output.write(f'  "error": {json.dumps(error)}\n}}\n')
            output.flush()
        except (BrokenPipeError, output.OutputLost):
            pass  # the error that is on its way says more


def _write(path: Path, text: str) -> None:
    """Make a file that only its owner reads, and sync it and its name."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise _in_the_way(path) from None
    except OSError as exc:
        raise BadUsage(f"recovery key file {path}: {exc.strerror}") from exc
    try:
        with open(fd, "wb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        sync_directory(path.parent)
    except OSError as exc:
        path.unlink(missing_ok=True)
        raise MegafsError(f"recovery key file {path}: {exc.strerror}; nothing was changed") from exc


def _in_the_way(path: Path) -> AlreadyThere:
    return AlreadyThere(f"recovery key file {path} is there already: name one that is not")
