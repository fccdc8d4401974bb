"""Every error megafs raises on purpose.

    MegafsError
      Refused            a correct "no" (ENOENT, ENOTEMPTY, ...); an answer, no fault; never logged
      Fault              something below failed; EIO unless the class says otherwise; logged once
        Corrupt          authenticated bytes did not verify; never retried
          Rollback       the store serves less, or another history, than was seen before
        StoreError       a store could not do what was asked
          Missing        no such object (EIO upstairs: a lost chunk is not a missing file)
          Exists         put_new() found the name taken
          Denied         credentials refused, or not allowed
          Full           the store's own quota or disk is full
          TooLarge       it, or a proxy in front of it, takes no body of that size
          Unavailable    may work later; the only error that is retried
          NoStore        the bucket or directory itself does not exist
          BadStore       the URL or its options cannot be right
      Stopped            the command cannot go on, for a reason the user can mend
        BadUsage         the command line, an option or a setting is wrong
        BadPassphrase    no key slot opens with what was given
        NotAVolume       nothing of megafs lies there
        TooNew           a newer format than this program knows
        AlreadyThere     a volume, mount or file is in the way
        Busy             in use: try again later
        MountFailed      the mount could not be made, or is not usable

Each class says what the kernel gets (`errno`) and what the shell gets (`exit_code`).  The type
says what to do; the text says what happened, to which object, and what the user can do about it.
Texts never hold a passphrase, a key, a token or a signed URL.
"""

from __future__ import annotations

import errno as e


class MegafsError(Exception):
    """The root of every error below; on its own, a programming mistake reported as EIO."""

    errno: int = e.EIO
    exit_code: int = 1


class Refused(MegafsError):
    """A correct "no": carries the errno that POSIX asks for."""

    exit_code = 1

    def __init__(self, errno: int, text: str = "") -> None:
        super().__init__(text or e.errorcode.get(errno, str(errno)))
        self.errno = errno


class Fault(MegafsError):
    """Something below us failed."""

    exit_code = 1


class Corrupt(Fault):
    """Authenticated bytes did not verify: the store, the disk or a key is not what it was."""

    exit_code = 16


class Rollback(Corrupt):
    """The store shows an older or another history than this machine has already seen."""

    errno = e.EROFS
    exit_code = 17


class StoreError(Fault):
    """A store could not do what was asked."""

    exit_code = 14


class Missing(StoreError):
    """There is no object of that name."""

    exit_code = 16


class Exists(StoreError):
    """put_new() found the name taken."""

    errno = e.EEXIST
    exit_code = 14


class Denied(StoreError):
    """The store refused our credentials, or they do not allow this."""

    errno = e.EACCES
    exit_code = 13


class Full(StoreError):
    """The store, or the disk below it, has no room left."""

    errno = e.ENOSPC
    exit_code = 15


class TooLarge(StoreError):
    """The store, or a proxy in front of it, takes no body of that size; smaller ones may pass."""


class Unavailable(StoreError):
    """The store did not answer, or asked us to wait; the same request may work later.

    retry_after: seconds the store asked us to wait, if it said so.
    maybe_done: the request may have been carried out although no answer came.
    busy: the store has more to do than it can.
    unreached: not even a connection came about.
    """

    exit_code = 14

    def __init__(
        self,
        text: str,
        *,
        retry_after: float | None = None,
        maybe_done: bool = False,
        busy: bool = False,
        unreached: bool = False,
    ) -> None:
        super().__init__(text)
        self.busy = busy
        self.unreached = unreached
        self.retry_after = retry_after
        self.maybe_done = maybe_done


class NoStore(StoreError):
    """The bucket or directory that should hold the objects does not exist."""

    errno = e.ENOENT
    exit_code = 14


class BadStore(StoreError):
    """The URL or the options of the store cannot be right."""

    errno = e.EINVAL
    exit_code = 2


class Stopped(MegafsError):
    """The command cannot go on, for a reason the user can mend."""


class BadUsage(Stopped):
    """The command line, an option or a setting is wrong."""

    errno = e.EINVAL
    exit_code = 2


class NotAVolume(Stopped):
    """Nothing of megafs lies at that URL."""

    errno = e.ENOENT
    exit_code = 10


class TooNew(Stopped):
    """The volume needs a newer megafs."""

    errno = e.EPROTONOSUPPORT
    exit_code = 11


class BadPassphrase(Stopped):
    """No key slot opens with what was given."""

    errno = e.EACCES
    exit_code = 12


class AlreadyThere(Stopped):
    """A volume, a mount or a file is in the way."""

    errno = e.EEXIST
    exit_code = 18


class Busy(Stopped):
    """In use by somebody else."""

    errno = e.EBUSY
    exit_code = 19


class MountFailed(Stopped):
    """The mount could not be made, or is not usable."""

    exit_code = 32


#: What a disk, or the limits of this machine, may answer to any call; no mistake of the program.
_OF_THIS_MACHINE = frozenset(
    {e.ENOSPC, e.EDQUOT, e.EROFS, e.EIO, e.EMFILE, e.ENFILE, e.ENOMEM, e.ESTALE}
)


def of_this_machine(exc: BaseException) -> MegafsError | None:
    """Return what to say of an error of the operating system, or None if it may be a bug.

    A file that cannot be had is none (the error names it), nor is a full disk or too little memory.
    """
    if isinstance(exc, MemoryError):
        return Stopped("there is not enough memory")
    if not isinstance(exc, OSError) or exc.strerror is None:
        return None
    if exc.filename is None and exc.errno == e.ENOENT:  # of getcwd(3): a relative path was given
        return BadUsage("the directory that this was started in is gone: cd to another one")
    if exc.filename is None and exc.errno not in _OF_THIS_MACHINE:
        return None
    name = exc.filename
    if isinstance(name, bytes):
        name = name.decode("utf-8", "backslashreplace")
    text = exc.strerror if name is None else f"{name}: {exc.strerror}"
    if exc.errno in (e.ENOSPC, e.EDQUOT):
        return Full(text)
    if exc.errno in (e.EACCES, e.EPERM, e.EROFS):
        return Denied(text)
    return Stopped(text)


def leaf(exc: BaseException) -> BaseException:
    """Return the one error inside nested exception groups that says most about the cause.

    A nursery wraps what its tasks raise.  Among several, a fault beats a refusal (the refusal may
    only be its echo), and anything beats a cancellation.
    """
    while isinstance(exc, BaseExceptionGroup):
        inner = [leaf(sub) for sub in exc.exceptions]
        inner.sort(key=_rank)
        exc = inner[0]
    return exc


def _rank(exc: BaseException) -> int:
    if isinstance(exc, Fault | Stopped):
        return 0
    if isinstance(exc, Refused):
        return 2
    return 1 if isinstance(exc, Exception) else 3
