"""The files of cached ranges, read without waiting where the kernel has them in memory."""

from __future__ import annotations

import ctypes
import errno
import os

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW


class _OpenHow(ctypes.Structure):
    """openat2(2)'s struct open_how: 24 bytes."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_AT_FDCWD = -100
_SYS_OPENAT2 = 437  # the same on every architecture that Python's packages are built for
_CACHED = _OpenHow(_READ, 0, 0x20)  # RESOLVE_CACHED
# PyDLL: it does not wait, so it need not let go of the interpreter either.
_openat2 = ctypes.PyDLL(None).syscall
_openat2.restype = ctypes.c_long


class RangeFile:
    """An open file, closed when the last reader lets go of it."""

    __slots__ = ("fd", "size")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.size = os.fstat(fd).st_size

    @classmethod
    def at(cls, path: str) -> RangeFile:
        return cls(os.open(path, _READ))

    @classmethod
    def at_hand(cls, path: str) -> RangeFile | None:
        """The file, if the kernel has all that opening it takes in memory: no disk is waited for.

        7 microseconds, where a hop to a thread and back takes 150.
        """
        fd = _openat2(_SYS_OPENAT2, _AT_FDCWD, os.fsencode(path), ctypes.byref(_CACHED), 24)
        if fd < 0:  # EAGAIN; ENOSYS or EINVAL before Linux 5.12; or what the real open will meet
            return None
        return cls(fd)

    def __del__(self) -> None:
        os.close(self.fd)

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self.fd, size, offset)

    def read_in_place(self, offset: int, size: int, scratch: memoryview) -> bytes | None:
        """Return the bytes if the kernel has them in memory, None if it would have to wait.

        scratch: overwritten.  (A fresh buffer of 256 KiB for each read costs 250 microseconds in
            page faults; one that is used again, 10.)
        """
        buffer = scratch[:size]
        try:
            if os.preadv(self.fd, [buffer], offset, os.RWF_NOWAIT) == size:
                return bytes(buffer)
        except OSError:  # EAGAIN; or EOPNOTSUPP on tmpfs and some others
            pass
        return None

    def link_to(self, path: str) -> bool:
        """Give the file *path* as one more name, if it has one and both are on one file system.

        A pack that was just uploaded need not be copied then, 1 ms/MiB: nobody writes to it again.
        """
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        try:
            # Only with a directory does Python ask for links to be followed, and the path, which is
            # absolute, makes no use of it.
            os.link(f"/proc/self/fd/{self.fd}", path, src_dir_fd=self.fd, follow_symlinks=True)
        except OSError:
            return False
        return True

    def copy_to(self, fd: int) -> int:
        """Copy the whole file to *fd*; return its size."""
        done = 0
        while done < self.size:
            piece = os.pread(self.fd, min(1 << 20, self.size - done), done)
            if not piece:
                raise OSError(errno.EIO, "the file became shorter")
            view = memoryview(piece)
            while view:
                view = view[os.write(fd, view) :]
            done += len(piece)
        return done
