"""Where a passphrase comes from, in this order:

    --passphrase-file, --passphrase-fd, --passphrase-command (or the -o options of those names)
    MEGAFS_PASSPHRASE
    $CREDENTIALS_DIRECTORY/megafs.passphrase     systemd's LoadCredential=megafs.passphrase:FILE
    the terminal

Never the command line itself.  From files and commands the first line counts, without its end.
"""

# `megafs help passphrase` prints the text above.
from __future__ import annotations

import ctypes
import getpass
import os
import signal
import stat
import subprocess
import threading
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path

import click

from megafs.cli import output
from megafs.errors import BadUsage
from megafs.mount.options import Secrets
from megafs.printable import printable
from megafs.volume.header import Credential

VARIABLE = "MEGAFS_PASSPHRASE"
CREDENTIAL = "megafs.passphrase"
KEY_CREDENTIAL = "megafs.key-file"

_LIMIT = 8 << 10
_KEY_LIMIT = 1 << 20
_COMMAND_PATIENCE = 120.0

WAYS = (
    "give it with --passphrase-file FILE, --passphrase-fd N, --passphrase-command COMMAND or"
    f" {VARIABLE}, or from systemd with LoadCredential={CREDENTIAL}:FILE"
)


def credential(
    sources: Secrets,
    *,
    new: bool = False,
    prompt: str = "Passphrase",
    environ: MutableMapping[str, str] | None = None,
) -> Credential:
    """Return the passphrase and key file that open a volume.

    new: they are to open it from now on, so the passphrase is asked for twice.
    prompt: shown at the terminal.
    """
    environ = os.environ if environ is None else environ
    keyfile = key_file(sources.key_file, environ)
    passphrase = _given(sources, environ)
    if passphrase is None:
        if keyfile is not None and not has_terminal():
            return Credential(keyfile=keyfile)
        passphrase = _asked(prompt, new=new, may_be_empty=keyfile is not None)
    if new and passphrase and len(passphrase) < 10:
        output.warn(
            "a short passphrase: whoever holds a copy of the store can try passphrases for years;"
            " five or six random words are good"
        )
    return Credential(passphrase=passphrase or None, keyfile=keyfile)


def key_file(path: Path | None, environ: MutableMapping[str, str]) -> bytes | None:
    """Return the key file's contents, or None if there is none to be used."""
    if path is None:
        directory = environ.get("CREDENTIALS_DIRECTORY")
        if not directory or not (Path(directory) / KEY_CREDENTIAL).exists():
            return None
        path = Path(directory) / KEY_CREDENTIAL
    try:
        with path.open("rb") as file:
            data = file.read(_KEY_LIMIT + 1)
    except FileNotFoundError:
        raise BadUsage(
            f"key file {path}: there is no such file (head -c 64 /dev/urandom > {path} makes one)"
        ) from None
    except OSError as exc:
        raise BadUsage(f"key file {path}: {exc.strerror}") from None
    if len(data) > _KEY_LIMIT:
        raise BadUsage(f"key file {path}: larger than 1 MiB")
    return data


def recovery_key(path: Path | None) -> str:
    """Return a recovery key, from a file or the terminal."""
    if path is not None:
        return _first_line(_read(path, "recovery key file"), str(path))
    if not has_terminal():
        raise BadUsage("there is no terminal to ask for the recovery key: give --recovery-key-file")
    return typed("Recovery key: ")


def confirm(question: str) -> None:
    """Ask a question at the terminal; raises click.Abort unless the answer is yes."""
    with interruptible():
        click.confirm(question, abort=True, err=True)


def typed(prompt: str) -> str:
    """Ask for a secret at the terminal."""
    with interruptible():
        try:
            return getpass.getpass(prompt)
        except EOFError:
            raise BadUsage("nothing was typed: the terminal is closed") from None


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C end what blocks, also below `run_interruptible`, which waits for a checkpoint."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _given(sources: Secrets, environ: MutableMapping[str, str]) -> str | None:
    from_environ = _taken_from(environ)
    asked = [
        name
        for name, value in (
            ("--passphrase-file", sources.passphrase_file),
            ("--passphrase-fd", sources.passphrase_fd),
            ("--passphrase-command", sources.passphrase_command),
        )
        if value is not None
    ]
    if len(asked) > 1:
        raise BadUsage(f"say only one of {' and '.join(asked)}")
    if sources.passphrase_file is not None:
        return _from_file(sources.passphrase_file)
    if sources.passphrase_fd is not None:
        return _from_fd(sources.passphrase_fd)
    if sources.passphrase_command is not None:
        return _from_command(sources.passphrase_command)
    if from_environ is not None:
        return from_environ
    directory = environ.get("CREDENTIALS_DIRECTORY")
    if directory and (Path(directory) / CREDENTIAL).exists():
        return _from_file(Path(directory) / CREDENTIAL)
    return None


def _taken_from(environ: MutableMapping[str, str]) -> str | None:
    """Return MEGAFS_PASSPHRASE and remove it, for children and for /proc/PID/environ, too."""
    value = environ.get(VARIABLE)
    if value is None:
        return None
    if environ is os.environ:
        libc = ctypes.CDLL(None)
        libc.getenv.restype = ctypes.c_void_p
        where = libc.getenv(VARIABLE.encode())
        if where:
            ctypes.memset(where, 0, len(os.fsencode(value)))
    del environ[VARIABLE]
    if not value:
        raise BadUsage(f"{VARIABLE} is empty")
    return value


def _from_file(path: Path) -> str:
    return first_line_of(path, "passphrase file")


def first_line_of(path: Path, kind: str) -> str:
    """Return the first line of a file that holds a secret.  kind: what it is, for error texts."""
    return _first_line(_read(path, kind), f"{kind} {path}")


def _read(path: Path, kind: str) -> bytes:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISREG(mode) and mode & stat.S_IROTH:
                output.warn(f"everybody can read {path}: chmod go-rwx {path}")
            return file.read(_LIMIT)
    except OSError as exc:
        raise BadUsage(f"{kind} {path}: {exc.strerror}") from None


def _from_fd(fd: int) -> str:
    data = b""
    try:
        # Byte by byte, since what follows the line may be somebody else's.
        while len(data) < _LIMIT and not data.endswith(b"\n"):
            piece = os.read(fd, 1)
            if not piece:
                break
            data += piece
    except OSError as exc:
        raise BadUsage(f"--passphrase-fd {fd}: {exc.strerror}") from None
    return _first_line(data, f"file descriptor {fd}")


def _from_command(command: str) -> str:
    try:
        done = subprocess.run(
            command, shell=True, stdout=subprocess.PIPE, check=False, timeout=_COMMAND_PATIENCE
        )
    except subprocess.TimeoutExpired:
        raise BadUsage(
            f"the passphrase command did not end within {_COMMAND_PATIENCE:.0f} s"
        ) from None
    if done.returncode:
        raise BadUsage(f"the passphrase command failed with status {done.returncode}")
    return _first_line(done.stdout, "the passphrase command")


def _first_line(data: bytes, where: str) -> str:
    line = data.partition(b"\n")[0].removesuffix(b"\r")
    if not line:
        raise BadUsage(f"{where}: the first line is empty")
    try:
        return line.decode()
    except UnicodeDecodeError:
        raise BadUsage(f"{where}: the first line is not UTF-8 text") from None


def has_terminal() -> bool:
    """Whether there is a terminal to ask at."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _asked(prompt: str, *, new: bool, may_be_empty: bool) -> str:
    if not has_terminal():
        raise BadUsage(f"no passphrase, and no terminal to ask for one: {WAYS}")
    prompt = printable(prompt)
    hint = " (empty: the key file alone)" if may_be_empty else ""
    while True:
        try:
            first = typed(f"{prompt}{hint}: ")
            if not first and not may_be_empty:
                output.note("an empty passphrase protects nothing")
                continue
            if not new or not first or typed(f"{prompt} again: ") == first:
                return first
        except EOFError:
            raise BadUsage("no passphrase was typed") from None
        output.note("the two are not the same; once more")
