"""What ``-o`` can say, and what comes of it.

Options are written as in mount(8): separated by commas, ``name`` or ``name=value``; a comma inside
a value is written ``\\,`` (and a backslash ``\\\\``), or the value stands in double quotes.
Everything fstab, mount(8), systemd and FUSE programs are known to pass is in `OPTIONS` and is taken
or refused with a sentence; whatever else is not an option of the store either, is refused with the
nearest name.  Later ones win.  docs/mount-options.md is checked against this table by a test.

Before the command line come the configuration file and the environment:

    ~/.config/megafs/config.toml, /etc/megafs/config.toml for root, or MEGAFS_CONFIG

    [mount]                       # for every mount
    cache_size = "20G"
    [volume."s3://bucket/home"]   # for one volume, over the former
    endpoint = "http://127.0.0.1:8000"
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from msgspec import Struct, field
from msgspec.structs import replace

from megafs.config import (
    Atime,
    Consistency,
    Fsync,
    Settings,
    cache_home,
    parse_duration,
    parse_size,
    state_home,
)
from megafs.errors import BadUsage
from megafs.stores.drivers import known_options, owner_of


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
    log: str | None = None
    debug: bool = False
    fsname: str | None = None
    kernel_readahead: int = 1 << 20
    warnings: tuple[str, ...] = ()


# -- values


def _text(text: str) -> str:
    return text


def _path(text: str) -> Path:
    path = Path(text).expanduser()
    if not path.is_absolute():
        path = Path.cwd() / path
    return path


def _count(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise BadUsage(f"not a number from {low} to {high}: {text!r}")
        return int(text)

    return parse


def _choice(*names: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in names:
            raise BadUsage(f"{text!r} is not one of {', '.join(names)}")
        return text

    return parse


def _uid(text: str) -> int:
    if text.isdecimal():
        return int(text)
    import pwd

    try:
        return pwd.getpwnam(text).pw_uid
    except KeyError:
        raise BadUsage(f"there is no user {text!r}") from None


def _gid(text: str) -> int:
    if text.isdecimal():
        return int(text)
    import grp

    try:
        return grp.getgrnam(text).gr_gid
    except KeyError:
        raise BadUsage(f"there is no group {text!r}") from None


def _mask(text: str) -> int:
    if not re.fullmatch(r"[0-7]{1,4}", text) or int(text, 8) > 0o777:
        raise BadUsage(f"not an octal mask like 022: {text!r}")
    return int(text, 8)


def _yes(text: str) -> bool:
    lowered = text.lower()
    if lowered not in ("", "1", "0", "yes", "no", "true", "false", "on", "off"):
        raise BadUsage(f"not yes or no: {text!r}")
    return lowered not in ("0", "no", "false", "off")


# -- the table


class Option(Struct, frozen=True):
    """One option.

    text: for docs and help; of a refused one, the sentence with which it is refused.
    kind: "setting" (a field of Settings), "secret" (of Secrets), "mount" (of MountOptions),
        "kernel" (handed on), "taken" (means nothing here) or "refused".
    field: the field's name, if it is not the option's own.
    value: turns the text after "=" into the field's value; None for options without a value.
    fixed: the value of a flag.
    """

    name: str
    kind: str
    text: str
    value: Callable[[str], Any] | None = None
    field: str = ""
    fixed: Any = True
    example: str = ""
    optional: bool = False  # the value may be left out


def _settings() -> Iterable[Option]:
    def setting(
        name: str, text: str, value: Callable[[str], Any], example: str, field: str = ""
    ) -> Option:
        return Option(name, "setting", text, value, field or name, example=example)

    yield Option(
        "fsync",
        "setting",
        "When fsync(2) returns: `store`, when bytes and commit are in the store (default); `local`,"
        " when they are durable in the state directory.",
        _choice(*get_args(Fsync)),
        "fsync",
        example="local",
    )
    yield Option(
        "consistency",
        "setting",
        "`close-to-open` (default): what others wrote is seen within the sync interval, conflicts"
        " become copies. `strict`: every operation on names is committed before it returns, so that"
        " O_EXCL, mkdir, link and rename are atomic across machines; each costs a round trip.",
        _choice(*get_args(Consistency)),
        "consistency",
        example="strict",
    )
    yield setting(
        "sync_interval",
        "Seconds that operations are collected before they are committed, and between two looks for"
        " other machines' commits.",
        parse_duration,
        "1s",
    )
    yield setting(
        "deadline",
        "Seconds after which an operation on the store is given up.",
        parse_duration,
        "60s",
    )
    yield setting(
        "state_dir",
        "Directory for what must survive a reboot: staged data, the replica, the head. Default"
        " MEGAFS_STATE_DIR, else /var/lib/megafs for root, else ~/.local/state/megafs.",
        _path,
        "/srv/megafs/state",
    )
    yield setting(
        "cache_dir",
        "Directory for the cache, which may be deleted at any time. Default MEGAFS_CACHE_DIR, else"
        " /var/cache/megafs for root, else ~/.cache/megafs.",
        _path,
        "/srv/megafs/cache",
    )
    yield setting("cache_size", "The most bytes of disk that the cache may use.", parse_size, "20G")
    yield setting(
        "cache_min_free", "Bytes that the cache leaves free on its disk.", parse_size, "1G"
    )
    yield setting("memory_cache", "Bytes of opened chunks kept in memory.", parse_size, "48M")
    yield setting(
        "dirty_limit",
        "Bytes of written data held in memory before writers wait.",
        parse_size,
        "48M",
    )
    yield setting(
        "stage_limit",
        "Bytes of written data that may wait on disk for the store; beyond it, ENOSPC.",
        parse_size,
        "20G",
    )
    yield setting(
        "stage_min_free", "Bytes that staged data leaves free on its disk.", parse_size, "256M"
    )
    yield setting(
        "uploads",
        "The most uploads at the same time; how many there are follows from what they bring.",
        _count(1, 64),
        "12",
    )
    yield setting(
        "downloads",
        "The most downloads at the same time; how many there are follows from what they bring.",
        _count(1, 64),
        "24",
    )
    yield setting(
        "readahead",
        "Bytes fetched ahead of a sequential reader; up to four times as many on a long line.",
        parse_size,
        "8M",
    )
    yield setting(
        "entry_timeout",
        "Seconds that the kernel may believe a name; it is told of changes, so this only matters"
        " when the news is lost.",
        parse_duration,
        "60s",
    )
    yield setting(
        "attr_timeout", "Seconds that the kernel may believe attributes.", parse_duration, "60s"
    )
    yield setting(
        "negative_timeout",
        "Seconds that the kernel may believe that a name does not exist; 0 with"
        " `consistency=strict`.",
        parse_duration,
        "1s",
    )
    yield setting("uid", "Show every file as owned by this user (number or name).", _uid, "alice")
    yield setting("gid", "Show every file as owned by this group (number or name).", _gid, "users")
    yield setting(
        "umask", "Show every file with mode 0777 less this octal mask.", _mask, "022", "umask"
    )
    yield Option(
        "accept_state",
        "setting",
        "Mount although the store shows less, or another history, than this machine has seen;"
        " only after the message that explains what changed.",
        _yes,
        "accept_state",
        optional=True,
    )
    yield setting(
        "expect_head",
        "Refuse to mount unless the newest commit is this one (hex, or the four words that `megafs"
        " status` shows).",
        _text,
        "9f0c...",
    )
    yield Option("ro", "setting", "Mount read-only.", None, "read_only", True)
    yield Option("rw", "setting", "Mount read-write (default).", None, "read_only", False)
    access_times: tuple[tuple[str, str, Atime], ...] = (
        ("noatime", "Reading changes no access time (default).", "noatime"),
        (
            "relatime",
            "Access times as Linux does: when older than the change, or a day.",
            "relatime",
        ),
        ("atime", "The same as relatime.", "relatime"),
        ("strictatime", "Every read changes the access time.", "strictatime"),
        ("norelatime", "The same as strictatime.", "strictatime"),
        ("nostrictatime", "The same as relatime.", "relatime"),
    )
    for name, text, fixed in access_times:
        yield Option(name, "setting", text, None, "atime", fixed)


def _secrets() -> Iterable[Option]:
    yield Option(
        "passphrase_file",
        "secret",
        "File whose first line is the passphrase.",
        _path,
        "passphrase_file",
        example="/etc/megafs/home.pass",
    )
    yield Option(
        "passphrase_fd",
        "secret",
        "Open file descriptor from which the passphrase is read.",
        _count(0, 65535),
        "passphrase_fd",
        example="3",
    )
    yield Option(
        "passphrase_command",
        "secret",
        "Command (for the shell) whose first line of output is the passphrase.",
        _text,
        "passphrase_command",
        example="pass show megafs",
    )
    yield Option(
        "key_file",
        "secret",
        "Key file, alone or with a passphrase, as the key slot wants.",
        _path,
        "key_file",
        example="/root/megafs.key",
    )


def _mount() -> Iterable[Option]:
    yield Option(
        "allow_other",
        "mount",
        "Let other users in; permissions are checked by the kernel. Without it only the user who"
        " mounts may enter, not even root.",
        None,
        "allow_other",
    )
    yield Option("nonempty", "mount", "Mount over a directory that is not empty.", None, "nonempty")
    yield Option(
        "log",
        "mount",
        "Where the mount's log goes: `stderr`, `syslog` or a file.",
        _text,
        "log",
        example="syslog",
    )
    yield Option("debug", "mount", "Log in detail.", None, "debug")
    yield Option(
        "fsname",
        "mount",
        "What df and mount show as the source; default the URL.",
        _text,
        "fsname",
        example="home",
    )
    yield Option(
        "kernel_readahead",
        "mount",
        "Bytes that the kernel reads ahead (needs root; others get the kernel's 128 KiB).",
        parse_size,
        "kernel_readahead",
        example="1M",
    )


def _kernel() -> Iterable[Option]:
    for name, text in (
        ("suid", "Obey set-user-ID bits (root only; default nosuid)."),
        ("nosuid", "Ignore set-user-ID and set-group-ID bits (default)."),
        ("dev", "Obey device nodes (root only; default nodev)."),
        ("nodev", "Ignore device nodes (default)."),
        ("exec", "Allow programs to be executed (default)."),
        ("noexec", "Do not allow programs to be executed."),
        ("sync", "Every write is followed by an fsync; slow."),
        ("async", "Writes return before they are durable (default)."),
        ("dirsync", "Handed to the kernel."),
        ("auto_unmount", "fusermount3 stays and unmounts when megafs dies."),
        ("allow_root", "Let root in besides the user who mounts."),
    ):
        yield Option(name, "kernel", text)
    for name in ("context", "fscontext", "defcontext", "rootcontext"):
        yield Option(
            name,
            "kernel",
            "SELinux context, handed to the kernel.",
            _text,
            example='"system_u:..."',
        )


def _taken() -> Iterable[Option]:
    for name, text in (
        ("defaults", "fstab's word for no options."),
        ("auto", "For mount -a; no meaning here."),
        ("noauto", "For mount -a; no meaning here."),
        ("nofail", "For mount -a and systemd; no meaning here."),
        ("_netdev", "For mount -a and systemd: mount after the network is up."),
        ("users", "For mount(8); no meaning here."),
        ("nouser", "For mount(8); no meaning here."),
        ("nousers", "For mount(8); no meaning here."),
        ("nogroup", "For mount(8); no meaning here."),
        ("noowner", "For mount(8); no meaning here."),
        ("default_permissions", "Always on: the kernel checks permissions."),
        ("diratime", "Directories follow the policy for files."),
        ("nodiratime", "Directories follow the policy for files."),
        ("iversion", "No meaning here."),
        ("noiversion", "No meaning here."),
        ("nomand", "There are no mandatory locks."),
        ("nolazytime", "No meaning here."),
        ("lazytime", "No meaning here: changes are collected anyway."),
        ("silent", "No meaning here."),
        ("loud", "No meaning here."),
        ("symfollow", "Symbolic links are followed (default)."),
        ("big_writes", "Old FUSE option; writes are always big."),
        ("auto_cache", "Old FUSE option; the cache always follows changes."),
        ("splice_read", "Old FUSE option; decided by libfuse."),
        ("splice_write", "Old FUSE option; decided by libfuse."),
        ("splice_move", "Old FUSE option; decided by libfuse."),
    ):
        yield Option(name, "taken", text)
    for name, text in (
        ("user", "For mount(8); no meaning here."),
        ("group", "For mount(8); no meaning here."),
        ("owner", "For mount(8); no meaning here."),
        ("comment", "For people and programs that read fstab."),
        ("uhelper", "For umount(8)."),
        ("helper", "For umount(8)."),
    ):
        yield Option(name, "taken", text, _text, optional=True, example="text")
    yield Option("x-*", "taken", "For others, x-systemd.automount for example; X-* too.")


_REFUSED = {
    "remount": "a megafs mount cannot be changed while it runs: unmount it and mount it again",
    "bind": "a bind mount is made by mount --bind, not by megafs",
    "rbind": "a bind mount is made by mount --rbind, not by megafs",
    "move": "a mount is moved by mount --move, not by megafs",
    "loop": "megafs mounts a URL, not an image file",
    "mand": "there are no mandatory locks on Linux any more",
    "nosymfollow": "libfuse cannot ask the kernel for nosymfollow",
    "direct_io": "reads and writes go through the page cache; open files with O_DIRECT instead",
    "kernel_cache": "the page cache is kept as long as the contents have not changed elsewhere",
    "writeback_cache": "with it the kernel would not see what other machines append",
    "noauto_cache": "the cache has to follow what other machines change",
    "max_read": "requests are at most 1 MiB, which libfuse decides",
    "max_write": "requests are at most 1 MiB, which libfuse decides",
    "max_readahead": "say kernel_readahead=SIZE",
    "subtype": "the type is always fuse.megafs",
    "blkdev": "there is no block device below a megafs mount",
    "nodefault_permissions": "permissions are always checked",
    "passphrase": "a passphrase on a command line shows in ps and fstab:"
    " say passphrase_file=FILE, passphrase_fd=N or passphrase_command=COMMAND",
    "password": "a passphrase on a command line shows in ps and fstab:"
    " say passphrase_file=FILE, passphrase_fd=N or passphrase_command=COMMAND",
    "secret_key": "a secret on a command line shows in ps and fstab: set AWS_SECRET_ACCESS_KEY or"
    " name a profile with profile=NAME",
    "access_key": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile with"
    " profile=NAME",
    "quota": "the quota belongs to the volume: megafs format --quota",
    "chunk_size": "the chunk size belongs to the volume: megafs format --chunk-size",
    "compression": "compression belongs to the volume: megafs format --compression",
    "fmask": "say umask=MASK",
    "dmask": "say umask=MASK",
    "attr_cache": "say attr_timeout=SECONDS",
}


def _refused() -> Iterable[Option]:
    for name, text in _REFUSED.items():
        yield Option(name, "refused", text)


OPTIONS: dict[str, Option] = {
    option.name: option
    for group in (_settings, _secrets, _mount, _kernel, _taken, _refused)
    for option in group()
}


# -- parsing


class _Asked(Struct):
    """What has been read so far."""

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

    config: the configuration file's contents; read from its place if not given.
    sloppy: warn of unknown options instead of refusing them (mount -s).
    Raises BadUsage with a sentence for what cannot be.
    """
    environ = os.environ if environ is None else environ
    asked = _Asked()
    known = known_options(url)
    for name, value in _configured(url, read_config(environ) if config is None else config):
        _take(asked, name, value, known)
    for text in options:
        for name, value in split(text):
            try:
                _take(asked, name, value, known)
            except UnknownOption as exc:
                if not sloppy:
                    raise
                asked.warnings.append(str(exc))
    settings: dict[str, Any] = {**asked.settings, "store_options": dict(asked.store)}
    if "state_dir" not in settings:
        settings["state_dir"] = state_home(environ)
    if "cache_dir" not in settings:
        settings["cache_dir"] = cache_home(environ)
    made = Settings(**settings)
    if made.read_only:
        asked.kernel["ro"] = "ro"
    if asked.mount.get("allow_other"):
        asked.kernel["allow_other"] = "allow_other"
    if "allow_root" in asked.kernel and asked.mount.get("allow_other"):
        raise BadUsage("allow_other and allow_root exclude each other")
    return MountOptions(
        settings=made,
        secrets=Secrets(**asked.secrets),
        kernel=tuple(asked.kernel.values()),
        warnings=tuple(asked.warnings),
        **asked.mount,
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


def _take(asked: _Asked, name: str, value: str | None, known: frozenset[str]) -> None:
    if name[:2] in ("x-", "X-"):
        return
    option = OPTIONS.get(name) or OPTIONS.get(name.replace("-", "_"))
    if option is None:
        if name in known:
            if value is None:
                raise BadUsage(f"option {name} needs a value: {name}=...")
            # The mount's directory changes to / later on.
            asked.store[name] = str(_path(value)) if name == "ca" else value
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
        asked.settings[option.field] = parsed
    elif option.kind == "secret":
        asked.secrets[option.field] = parsed
    elif option.kind == "mount":
        asked.mount[option.field] = parsed
    elif option.kind == "kernel":
        key = _OPPOSITES.get(name, name)
        asked.kernel.pop(key, None)
        asked.kernel[key] = name if value is None else f"{name}={escape(value)}"


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
    return f"unknown option {name!r}{hint}"


# -- the configuration file


def config_path(environ: Mapping[str, str]) -> Path:
    """Where the configuration file is looked for."""
    if environ.get("MEGAFS_CONFIG"):
        return Path(environ["MEGAFS_CONFIG"])
    if os.geteuid() == 0:
        return Path("/etc/megafs/config.toml")
    base = environ.get("XDG_CONFIG_HOME", "")
    home = Path(base) if base.startswith("/") else Path(environ.get("HOME", "/")) / ".config"
    return home / "megafs" / "config.toml"


def read_config(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the configuration file's contents; nothing if there is none."""
    path = config_path(environ)
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            if found.st_mode & stat.S_IWOTH:
                raise BadUsage(f"{path} can be written by everybody: chmod o-w {path}")
            text = file.read()
    except FileNotFoundError:
        if environ.get("MEGAFS_CONFIG"):
            raise BadUsage(f"MEGAFS_CONFIG={path}: there is no such file") from None
        return {}
    except OSError as exc:
        raise BadUsage(f"{path} cannot be read: {exc.strerror}") from exc
    if not text.strip():
        return {}
    import tomllib  # most mounts have no such file

    try:
        return tomllib.loads(text.decode())
    except ValueError as exc:  # not TOML, or not UTF-8
        raise BadUsage(f"{path}: {exc}") from exc


def _configured(url: str, config: Mapping[str, Any]) -> Iterable[tuple[str, str | None]]:
    for name in config:
        if name not in ("mount", "volume"):
            raise BadUsage(
                f'configuration: unknown table [{name}]; there are [mount], [volume."URL"]'
            )
    volumes = config.get("volume", {})
    for table in (config.get("mount", {}), volumes.get(url, {})):
        if not isinstance(table, dict):
            raise BadUsage('configuration: [mount] and [volume."URL"] must be tables')
        for name, value in table.items():
            if value is False:
                continue
            if value is True:
                yield name, None
            elif isinstance(value, str | int | float):
                yield name, str(value)
            else:
                raise BadUsage(f"configuration: {name} must be a text, a number or true")


def with_settings(options: MountOptions, **changes: Any) -> MountOptions:
    """Return *options* with other settings."""
    return replace(options, settings=replace(options.settings, **changes))
