"""Every mount option, with what it takes and what it says in docs and help.

Everything fstab, mount(8), systemd and FUSE programs are known to pass is here, and is taken or
refused with a sentence.  The options of a store stand with its driver (stores/drivers.py).
docs/mount-options.md is checked against this table by a test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

from msgspec import Struct

from megafs.config import Atime, Consistency, Fsync, parse_duration, parse_size
from megafs.mount.option_values import (
    as_gid,
    as_mask,
    as_path,
    as_text,
    as_uid,
    as_yes,
    number_from,
    one_of,
)

#: "setting": a field of Settings.  "secret": of Secrets.  "mount": of MountOptions.
#: "kernel": passed on to the kernel.  "ignored": accepted, without an effect.
#: "refused": with the option's text.
Kind = Literal["setting", "secret", "mount", "kernel", "ignored", "refused"]


class Option(Struct, frozen=True):
    """One option.

    text: for docs and help; of a refused one, the sentence with which it is refused.
    field: the field's name, if it is not the option's own.
    value: turns the text after "=" into the field's value; None for options without a value.
    fixed: the value of a flag.
    """

    name: str
    kind: Kind
    text: str
    value: Callable[[str], Any] | None = None
    field: str = ""
    fixed: Any = True
    example: str = ""
    optional: bool = False  # the value may be left out


_STRICTATIME = (
    "Every read that reaches megafs changes the access time: each time a file is opened and read, a"
    " directory listed, a link followed. What the kernel answers from its memory does not: bytes"
    " read again, or written before, through the same open file."
)


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
        one_of(*get_args(Fsync)),
        "fsync",
        example="local",
    )
    yield Option(
        "consistency",
        "setting",
        "`close-to-open` (default): what others wrote is seen within the sync interval, conflicts"
        " become copies. `strict`: every operation on names is committed before it returns, so that"
        " O_EXCL, mkdir, link and rename are atomic across machines; each costs a round trip.",
        one_of(*get_args(Consistency)),
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
        as_path,
        "/srv/megafs/state",
    )
    yield setting(
        "cache_dir",
        "Directory for the cache, which may be deleted at any time. Default MEGAFS_CACHE_DIR, else"
        " /var/cache/megafs for root, else ~/.cache/megafs.",
        as_path,
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
        number_from(1, 64),
        "12",
    )
    yield setting(
        "downloads",
        "The most downloads at the same time; how many there are follows from what they bring.",
        number_from(1, 64),
        "24",
    )
    yield setting(
        "readahead",
        "Bytes fetched ahead of a sequential reader; up to four times as many on a long line.",
        parse_size,
        "8M",
    )
    yield setting(
        "pack_size",
        "Bytes that are collected before they go to the store, from a chunk to 64M, instead of what"
        " the volume says; smaller by itself where the store takes no such bodies.",
        parse_size,
        "1M",
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
    yield setting("uid", "Show every file as owned by this user (number or name).", as_uid, "alice")
    yield setting(
        "gid", "Show every file as owned by this group (number or name).", as_gid, "users"
    )
    yield setting(
        "umask", "Show every file with mode 0777 less this octal mask.", as_mask, "022", "umask"
    )
    yield Option(
        "accept_state",
        "setting",
        "Mount although the store shows less, or another history, than this machine has seen;"
        " only after the message that explains what changed.",
        as_yes,
        "accept_state",
        optional=True,
    )
    yield setting(
        "expect_head",
        "Refuse to mount unless the newest commit is this one (hex, or the four words that `megafs"
        " status` shows).",
        as_text,
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
        (
            "strictatime",
            _STRICTATIME,
            "strictatime",
        ),
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
        as_path,
        "passphrase_file",
        example="/etc/megafs/home.pass",
    )
    yield Option(
        "passphrase_fd",
        "secret",
        "Open file descriptor from which the passphrase is read.",
        number_from(0, 65535),
        "passphrase_fd",
        example="3",
    )
    yield Option(
        "passphrase_command",
        "secret",
        "Command (for the shell) whose first line of output is the passphrase.",
        as_text,
        "passphrase_command",
        example="pass show megafs",
    )
    yield Option(
        "key_file",
        "secret",
        "Key file, alone or with a passphrase, as the key slot wants.",
        as_path,
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
        "guard",
        "mount",
        "Keep programs from writing into the bare directory while nothing is mounted there: it is"
        " made immutable (`chattr -i` undoes it), or, where that cannot be, gets mode 000, which"
        " stops everybody but root (`chmod 755` undoes it).",
        None,
        "guard",
    )
    yield Option(
        "_netdev",
        "mount",
        "The network is needed: for mount -a, and for systemd, which mounts when it is up and"
        " unmounts before it goes.",
        None,
        "netdev",
    )
    yield Option(
        "log",
        "mount",
        "Where the mount's log goes: `stderr`, `syslog` or a file.",
        as_text,
        "log",
        example="syslog",
    )
    yield Option("debug", "mount", "Log in detail.", None, "debug")
    yield Option(
        "fsname",
        "mount",
        "What df and mount show as the source; default the URL, with `%3A` for its colon: programs"
        " take a source with a colon for a remote one.",
        as_text,
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
            as_text,
            example='"system_u:..."',
        )


def _ignored() -> Iterable[Option]:
    for name, text in (
        ("defaults", "fstab's word for no options."),
        ("auto", "For mount -a; no meaning here."),
        ("noauto", "For mount -a; no meaning here."),
        ("nofail", "For mount -a and systemd; no meaning here."),
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
        yield Option(name, "ignored", text)
    for name, text in (
        ("user", "For mount(8); no meaning here."),
        ("group", "For mount(8); no meaning here."),
        ("owner", "For mount(8); no meaning here."),
        ("comment", "For people and programs that read fstab."),
        ("uhelper", "For umount(8)."),
        ("helper", "For umount(8)."),
    ):
        yield Option(name, "ignored", text, as_text, optional=True, example="text")
    yield Option("x-*", "ignored", "For others, x-systemd.automount for example; X-* too.")


_REFUSED = {
    "remount": "mount -o remount changes ro, rw and the kernel's flags of what is mounted; the rest"
    " of a megafs mount cannot be changed while it runs: unmount it and mount it again",
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
    for group in (_settings, _secrets, _mount, _kernel, _ignored, _refused)
    for option in group()
}
