"""Runs in the virtual machine, as a service: does what comes as lines of JSON on a serial line.

    {"run": "shell command", "within": seconds}   ->   {"code": 0, "out": "both outputs"}

A command that takes longer is killed, with code -1; one that cannot be killed is left behind.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import tty

_LONGEST = 100_000


def do(command: str, within: float) -> dict[str, object]:
    with tempfile.TemporaryFile(dir="/run") as out:
        process = subprocess.Popen(
            ["/bin/bash", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            cwd="/",
        )
        try:
            code = process.wait(within)
        except subprocess.TimeoutExpired:
            code = -1
            os.killpg(process.pid, signal.SIGKILL)
        out.seek(0)
        text = out.read(_LONGEST).decode(errors="replace")
    return {"code": code, "out": text}


def main() -> None:
    line = os.open(sys.argv[1], os.O_RDWR | os.O_NOCTTY)
    tty.setraw(line)
    os.write(line, b'{"ready": true}\n')
    with os.fdopen(line, "rb", buffering=0) as file:
        waiting = b""
        while True:
            waiting += file.read(4096) or b""
            while b"\n" in waiting:
                text, _, waiting = waiting.partition(b"\n")
                asked = json.loads(text)
                answer = do(asked["run"], asked["within"])
                left = json.dumps(answer).encode() + b"\n"
                while left:
                    left = left[os.write(line, left) :]


main()
