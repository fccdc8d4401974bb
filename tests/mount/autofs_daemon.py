"""A small automounter, as systemd's automount units and autofs(5) are: run in a mount namespace.

    python autofs_daemon.py MOUNTPOINT COMMAND...
    python autofs_daemon.py --by-hand MOUNTPOINT COMMAND...

Mounts autofs (direct, protocol 5) at MOUNTPOINT, looks into it from another process, runs COMMAND
when the kernel asks for the mount, and prints what the other process then saw.  COMMAND is in the
process group that the kernel exempts, as systemd's mount units and automount(8) have it.

With --by-hand COMMAND runs outside of that group before anybody has looked, as `mount -a` does at a
shell.  Should the kernel ask for the mount, that is refused, and printed.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import subprocess
import sys
import threading

_READY, _FAIL = 0x9360, 0x9361  # AUTOFS_IOC_READY, AUTOFS_IOC_FAIL
_MISSING_DIRECT = 5
_PACKET = 304


class Automount:
    """An autofs at *at*, which this process's group may enter unasked."""

    def __init__(self, at: str) -> None:
        os.setpgid(0, 0)
        self._read_end, write_end = os.pipe()
        libc = ctypes.CDLL(None, use_errno=True)
        options = f"fd={write_end},pgrp={os.getpgrp()},minproto=5,maxproto=5,direct".encode()
        if libc.mount(b"test", os.fsencode(at), b"autofs", 0, options):
            raise OSError(ctypes.get_errno(), "mount of autofs")
        os.close(write_end)
        self._root = os.open(at, os.O_RDONLY)

    def asked(self) -> int:
        """Wait until the kernel asks for the mount, and return the token of its question."""
        packet = os.read(self._read_end, _PACKET)
        _, kind, token = struct.unpack_from("iiI", packet)
        assert kind == _MISSING_DIRECT, kind
        return int(token)

    def answer(self, token: int, *, is_mounted: bool) -> None:
        fcntl.ioctl(self._root, _READY if is_mounted else _FAIL, token)


def run(command: list[str], *, by_hand: bool) -> int:
    try:
        return subprocess.run(
            command, timeout=40, check=False, start_new_session=by_hand
        ).returncode
    except subprocess.TimeoutExpired:
        return -1


def look(at: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["ls", at], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


def refuse(automount: Automount) -> None:
    while True:
        automount.answer(automount.asked(), is_mounted=False)
        print("asked", flush=True)


def main() -> None:
    args = sys.argv[1:]
    by_hand = args[0] == "--by-hand"
    at, *command = args[1:] if by_hand else args
    automount = Automount(at)
    if by_hand:
        threading.Thread(target=refuse, args=(automount,), daemon=True).start()
        done = run(command, by_hand=True)
        looker = look(at)
    else:
        looker = look(at)
        token = automount.asked()
        done = run(command, by_hand=False)
        automount.answer(token, is_mounted=done == 0)
    seen = looker.communicate(timeout=30)[0].decode()
    print(f"code {done}\nseen {seen}", flush=True)


main()
