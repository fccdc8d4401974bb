"""Parse what ``-o`` says into `MountOptions`.

Options are written as in mount(8): separated by commas, ``name`` or ``name=value``; a comma inside
a value is written ``\\,`` (and a backslash ``\\\\``), or the value stands in double quotes.
What is neither in the table (option_table.py) nor an option of the store is refused, with the
nearest name.  Later ones win, and the command line over the configuration file (config_file.py).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from megafs.config import Settings, cache_home, state_home
from megafs.errors import BadUsage
from megafs.mount import config_file
from megafs.mount.option_table import OPTIONS
from megafs.mount.option_values import as_path, shortened
from megafs.stores.drivers import known_options, owner_of

#: Options of stores that name a file: the mount's directory changes to / later on.
STORE_FILES = frozenset(
    {"ca", "client_cert", "client_key", "credentials_file", "netrc", "password_file"}
)


class UnknownOption(BadUsage):
    """There is no option of that name."""


class Secrets(Struct, frozen=True):
    """Where the passphrase and the key file are to be taken from; not what they are."""

    passphrase_file: Path | None = None
    passphrase_fd: int | None = None
    passphrase_command: str | None = None
    key_file: Path | None = None


class MountOptions(Struct, frozen=True):
    """All that was asked for.

    settings: for the volume.  kernel: for libfuse and the kernel.  log: "stderr", "syslog" or a
    file.  warnings: what was taken, but should be known.
    """

    settings: Settings
    secrets: Secrets = Secrets()
    kernel: tuple[str, ...] = ()
    allow_other: bool = False
    nonempty: bool = False
    guard: bool = False
    netdev: bool = False
    log: str | None = None
    debug: bool = False
    fsname: str | None = None
    kernel_readahead: int = 1 << 20
    warnings: tuple[str, ...] = ()


class _Collected(Struct):
    """The options that were read so far."""

    settings: dict[str, Any] = field(default_factory=dict)
    secrets: dict[str, Any] = field(default_factory=dict)
    mount: dict[str, Any] = field(default_factory=dict)
    kernel: dict[str, str] = field(default_factory=dict)
    store: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


# Later of these replaces the earlier.
_OPPOSITES = {
    "suid": "suid",
    "nosuid": "suid",
    "dev": "dev",
    "nodev": "dev",
    "exec": "exec",
    "noexec": "exec",
    "sync": "sync",
    "async": "sync",
}


def parse(
    url: str,
    options: Sequence[str] = (),
    *,
    environ: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
    sloppy: bool = False,
) -> MountOptions:
    """Return what the ``-o`` strings *options* mean for the volume at *url*.

    config: the configuration file's contents; read if not given.
    sloppy: warn of unknown options instead of refusing them (mount -s).
    Raises BadUsage with a sentence for what cannot be.
    """
    if any(ord(char) < 32 or char == "\x7f" for char in url):
        # Parsers of URLs drop them, and name another place than was written.
        raise BadUsage(f"control characters cannot be in a URL: {shortened(url)}")
    environ = os.environ if environ is None else environ
    collected = _Collected()
    known = known_options(url)
    for name, value in config_file.options_for(
        url, config_file.read(environ) if config is None else config
    ):
        _add(collected, name, value, known)
    for text in options:
        for name, value in split(text):
            try:
                _add(collected, name, value, known)
            except UnknownOption as exc:
                if not sloppy:
                    raise
                collected.warnings.append(str(exc))
    settings: dict[str, Any] = {**collected.settings, "store_options": dict(collected.store)}
    if "state_dir" not in settings:
        settings["state_dir"] = state_home(environ)
    if "cache_dir" not in settings:
        settings["cache_dir"] = cache_home(environ)
    made = Settings(**settings)
    if made.read_only:
        collected.kernel["ro"] = "ro"
    if collected.mount.get("allow_other"):
        collected.kernel["allow_other"] = "allow_other"
    if "allow_root" in collected.kernel and collected.mount.get("allow_other"):
        raise BadUsage("allow_other and allow_root exclude each other")
    return MountOptions(
        settings=made,
        secrets=Secrets(**collected.secrets),
        kernel=tuple(collected.kernel.values()),
        warnings=tuple(collected.warnings),
        **collected.mount,
    )


def split(text: str) -> list[tuple[str, str | None]]:
    """Split ``a,b=c`` at commas that are neither escaped nor quoted; drop empty pieces."""
    pieces: list[str] = []
    piece = ""
    quoted = False
    i = 0
    while i < len(text):
        char = text[i]
        if char == "\\" and i + 1 < len(text) and text[i + 1] in '\\,"':
            piece += text[i + 1]
            i += 2
            continue
        if char == '"':
            quoted = not quoted
        elif char == "," and not quoted:
            pieces.append(piece)
            piece = ""
        else:
            piece += char
        i += 1
    if quoted:
        raise BadUsage(f"a quotation mark is not closed in -o {text}")
    pieces.append(piece)
    found: list[tuple[str, str | None]] = []
    for piece in pieces:
        if piece.strip():
            name, equals, value = piece.partition("=")
            found.append((name.strip(), value if equals else None))
    return found


def _add(collected: _Collected, name: str, value: str | None, known: frozenset[str]) -> None:
    """Add the option *name* to *collected*; BadUsage with a sentence if it cannot be.

    known: the names of the store's own options.
    """
    if name[:2] in ("x-", "X-"):
        return
    if any(ord(char) < 32 or char == "\x7f" for char in name + (value or "")):
        # NUL ends a path for the kernel, a newline a line of every log and mount table.
        raise BadUsage(f"option {shortened(name)}: control characters cannot be in an option")
    option = OPTIONS.get(name) or OPTIONS.get(name.replace("-", "_"))
    if name in known and (option is None or (option.kind == "ignored" and value)):
        # "user" alone is mount(8)'s, user=NAME is the store's.
        option = None
    if option is None:
        if name in known:
            if value is None:
                raise BadUsage(f"option {name} needs a value: {name}=...")
            collected.store[name] = str(as_path(value)) if name in STORE_FILES else value
            return
        raise UnknownOption(_unknown(name, known))
    if option.kind == "refused":
        raise BadUsage(f"option {name}: {option.text}")
    if option.value is None and value is not None:
        raise BadUsage(f"option {name} takes no value")
    if option.value is not None and not value and not option.optional:
        example = f" (example: {name}={option.example})" if option.example else ""
        raise BadUsage(f"option {name} needs a value: {name}=...{example}")
    if option.value is None:
        parsed = option.fixed
    else:
        try:
            parsed = option.value(value or "")
        except BadUsage as exc:
            raise BadUsage(f"option {name}: {exc}") from exc
    if option.kind == "setting":
        collected.settings[option.field] = parsed
    elif option.kind == "secret":
        collected.secrets[option.field] = parsed
    elif option.kind == "mount":
        collected.mount[option.field] = parsed
    elif option.kind == "kernel":
        key = _OPPOSITES.get(name, name)
        collected.kernel.pop(key, None)
        collected.kernel[key] = name if value is None else f"{name}={escape(value)}"


def escape(value: str) -> str:
    """Escape *value* for libfuse's own splitting at commas."""
    return value.replace("\\", "\\\\").replace(",", "\\,")


def _unknown(name: str, known: frozenset[str]) -> str:
    owner = owner_of(name)
    if owner is not None:
        return f"option {name}= is for {owner.prefix} stores only"
    candidates = [o.name for o in OPTIONS.values() if o.kind != "refused" and "*" not in o.name]
    candidates += sorted(known)
    import difflib  # only when something is misspelt

    near = difflib.get_close_matches(name.lower().replace("-", "_"), candidates, n=1, cutoff=0.6)
    hint = f"; did you mean {near[0]}?" if near else "; docs/mount-options.md lists all"
    return f"unknown option {shortened(name)}{hint}"
