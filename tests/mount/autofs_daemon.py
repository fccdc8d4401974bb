"""A small automounter, as systemd's automount units and autofs(5) are: run in a mount namespace.

    python autofs_daemon.py MOUNTPOINT COMMAND...

Mounts autofs (direct, protocol 5) at MOUNTPOINT, looks into it from another process, runs COMMAND
when the kernel asks for the mount, and prints what the other process then saw.  COMMAND is in the
process group that the kernel exempts, as systemd's mount units and automount(8) have it.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import subprocess
import sys

_READY, _FAIL = 0x9360, 0x9361  # AUTOFS_IOC_READY, AUTOFS_IOC_FAIL
_MISSING_DIRECT = 5
_PACKET = 304


def main() -> None:
    at, command = sys.argv[1], sys.argv[2:]
    os.setpgid(0, 0)
    read_end, write_end = os.pipe()
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"fd={write_end},pgrp={os.getpgrp()},minproto=5,maxproto=5,direct".encode()
    if libc.mount(b"test", os.fsencode(at), b"autofs", 0, options):
        raise OSError(ctypes.get_errno(), "mount of autofs")
    os.close(write_end)
    root = os.open(at, os.O_RDONLY)
    looker = subprocess.Popen(
        ["ls", at], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    packet = os.read(read_end, _PACKET)
    _, kind, token = struct.unpack_from("iiI", packet)
    assert kind == _MISSING_DIRECT, kind
    try:
        done = subprocess.run(command, timeout=40, check=False).returncode
    except subprocess.TimeoutExpired:
        done = -1
    fcntl.ioctl(root, _READY if done == 0 else _FAIL, token)
    seen = looker.communicate(timeout=30)[0].decode()
    print(f"code {done}\nseen {seen}", flush=True)


main()
