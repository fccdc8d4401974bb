"""A mount imports little, all of it before the fork, and is not looked through for garbage."""

import json
import os
import subprocess
import sys

import pytest

# What libraries would import for a use that a mount has not, and what waits for its use.
NEEDLESS = {"dataclasses", "rich", "pygments", "httpx", "httpcore", "botocore"}

IMPORTING = """
import json, sys
sys.argv = ["megafs"]
from megafs.cli import main
main.cli.get_command(None, "mount")
from megafs.cli import mount
mount._import_all({url!r})
{then}
"""


def run(url: str, then: str, **environ: str) -> object:
    clean = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    done = subprocess.run(
        [sys.executable, "-c", IMPORTING.format(url=url, then=then)],
        env={**clean, **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("url", ["file:///x", "s3://bucket/prefix"])
def test_a_mount_imports_nothing_needless(url: str) -> None:
    got = run(url, f"print(json.dumps(sorted({NEEDLESS!r} & set(sys.modules))))")

    assert got == []


@pytest.mark.parametrize(
    ("url", "options"),
    [("file:///x", {}), ("s3://bucket/prefix", {"endpoint": "http://127.0.0.1:9"})],
)
def test_the_driver_is_imported_before_the_fork(url: str, options: dict[str, str]) -> None:
    then = (
        "before = set(sys.modules)\n"
        "from megafs.stores.stack import open_driver\n"
        f"open_driver({url!r}, {options!r})\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )

    assert run(url, then) == []


def test_libraries_are_as_they_come() -> None:
    then = (
        "import gc, importlib.metadata, ctypes.util, typing_extensions\n"
        "print(json.dumps([importlib.metadata.version('trio') != '', gc.isenabled(),\n"
        "    ctypes.util.find_library('c'), bool(typing_extensions.get_type_hints)]))"
    )

    assert run("s3://b/p", then) == [True, True, "libc.so.6", True]


def test_threads_have_names() -> None:
    then = (
        "import trio\n"
        "def name(): return open('/proc/thread-self/comm').read().strip()\n"
        "async def main(): return await trio.to_thread.run_sync(name, thread_name='reader')\n"
        "print(json.dumps(trio.run(main)))"
    )

    assert run("file:///x", then).startswith("reader")  # type: ignore[attr-defined]
