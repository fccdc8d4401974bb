"""What people mistype, forget and misplace: each mistake ends in its documented exit code, and in
one line of printable text on stderr that is no traceback and calls nothing a bug.

The commands run in this process, most of a second is Python's start otherwise; those whose mistake
is about the process itself (closed descriptors, a directory that is gone) run as programs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from megafs.cli import main
from megafs.cli.main import EXIT_CODES
from tests.mount.machine import PASSPHRASE, Machine

LONG = "9" * 5000

# What {words} mean: see `words`.  Exit code, arguments.
MISTAKES: list[tuple[int, list[str]]] = [
    # No command, an unknown one, an unknown option.
    (2, ["mout", "{url}", "{dir}"]),
    (2, ["Mount", "{url}", "{dir}"]),
    (2, ["mount\n", "{url}"]),
    (2, ["\x1b[31mformat"]),
    (2, ["--verbose"]),
    (2, ["help", "exitcodes"]),
    # Too few arguments, and too many.
    (2, ["format"]),
    (2, ["mount"]),
    (2, ["mount", "{url}"]),
    (2, ["mount", "{url}", "{dir}", "{dir}"]),
    (2, ["umount"]),
    (2, ["key"]),
    (2, ["key", "list"]),
    (2, ["key", "add"]),
    (2, ["key", "remove", "{url}"]),
    (2, ["key", "frobnicate"]),
    (2, ["cache", "show"]),
    (2, ["pin"]),
    (2, ["unpin"]),
    (2, ["fsck"]),
    (2, ["scrub"]),
    (2, ["gc"]),
    (2, ["salvage"]),
    (2, ["snapshot", "create", "{url}"]),
    (2, ["restore"]),
    # URLs.
    (2, ["format", "{dir}"]),
    (2, ["format", ""]),
    (2, ["format", "file:"]),
    (2, ["format", "file://relative/path"]),
    (2, ["format", "s3:/bucket"]),
    (2, ["format", "s3://"]),
    (2, ["format", "ftp://host/dir"]),
    (2, ["format", "file://{place}/a\nb"]),
    (2, ["mount", "file://{place}/a\tb", "{dir}"]),
    (14, ["mount", "file://{place}/absent", "{dir}"]),
    (14, ["fsck", "file://{place}/absent"]),
    (10, ["scrub", "file://{dir}"]),
    (10, ["key", "list", "file://{dir}"]),
    (18, ["format", "{url}"]),
    (18, ["format", "file://{full}"]),
    # The mountpoint.
    (32, ["mount", "{url}", "{place}/absent"]),
    (32, ["mount", "{url}", "{file}"]),
    (32, ["mount", "{url}", "{file}/below"]),
    (32, ["mount", "{url}", "{full}"]),
    (2, ["umount", "{dir}"]),
    (2, ["umount", "{place}/absent"]),
    (2, ["status", "{dir}"]),
    (2, ["cache", "show", "{dir}"]),
    (2, ["pin", "{dir}"]),
    (2, ["pin", "{url}"]),
    (2, ["log", "{dir}/f"]),
    (2, ["undelete", "{dir}"]),
    (2, ["restore", "{dir}/f", "--at", "1h ago"]),
    # Secrets.
    (2, ["fsck", "{url}", "--passphrase-file", "{place}/absent"]),
    (2, ["fsck", "{url}", "--passphrase-file", "{dir}"]),
    (2, ["fsck", "{url}", "--passphrase-file", "{empty}"]),
    (2, ["fsck", "{url}", "--passphrase-file", "{binary}"]),
    (2, ["fsck", "{url}", "--passphrase-fd", "999"]),
    (2, ["fsck", "{url}", "--passphrase-fd", "-1"]),
    (2, ["fsck", "{url}", "--passphrase-fd", LONG]),
    (2, ["fsck", "{url}", "--passphrase-command", "exit 3"]),
    (2, ["fsck", "{url}", "--passphrase-command", "true"]),
    (2, ["fsck", "{url}", "--passphrase-file", "{wrong}", "--passphrase-fd", "0"]),
    (12, ["fsck", "{url}", "--passphrase-file", "{wrong}"]),
    (2, ["fsck", "{url}", "--key-file", "{place}/absent"]),
    (2, ["fsck", "{url}", "--key-file", "{dir}"]),
    (12, ["key", "recover", "{url}", "--recovery-key-file", "{wrong}"]),
    (2, ["key", "recover", "{url}", "--recovery-key-file", "{place}/absent"]),
    (2, ["key", "add", "{url}", "--new-passphrase-file", "{place}/absent"]),
    (2, ["key", "add", "{url}", "--new-passphrase-file", "{long}", "--label", "x" * 100]),
    (2, ["key", "add", "{url}", "--new-passphrase-file", "{long}", "--label", "a\nb"]),
    (2, ["key", "remove", "{url}", "no-such-slot"]),
    (2, ["key", "remove", "{url}", ""]),
    (2, ["key", "rotate", "{url}"]),
    (2, ["mount", "{url}", "{dir}", "-o", "passphrase=geheim"]),
    # Sizes, times, moments.
    (2, ["format", "{url}-n", "--quota", "much"]),
    (2, ["format", "{url}-n", "--quota", "-1G"]),
    (2, ["format", "{url}-n", "--quota", "0"]),
    (2, ["format", "{url}-n", "--quota", LONG]),
    (2, ["format", "{url}-n", "--quota", f"{LONG}G"]),
    (2, ["format", "{url}-n", "--chunk-size", "3"]),
    (2, ["format", "{url}-n", "--compression", "gzip"]),
    (2, ["format", "{url}-n", "--kdf", "fast"]),
    (2, ["gc", "{url}", "--retention", "soon"]),
    (2, ["gc", "{url}", "--retention", LONG]),
    (2, ["gc", "{url}", "--threshold", "101"]),
    (2, ["gc", "{url}", "--rate", "fast"]),
    (2, ["scrub", "{url}", "--limit", "1.2.3"]),
    (2, ["salvage", "{url}", "--to", "{place}/out", "--at", "0"]),
    (2, ["salvage", "{url}"]),
    (2, ["salvage", "{url}", "--to", "{file}"]),
    (18, ["salvage", "{url}", "--to", "{full}"]),
    # Options of the mount.
    (2, ["mount", "{url}", "{dir}", "-o", "nonsense"]),
    (2, ["mount", "{url}", "{dir}", "-o", "log=/nonexistent/x"]),
    (2, ["mount", "{url}", "{dir}", "-o", "log={dir}"]),
    (2, ["mount", "{url}", "{dir}", "-o", f"uid={LONG}"]),
    (2, ["mount", "{url}", "{dir}", "-o", "uid=4294967295"]),
    (2, ["mount", "{url}", "{dir}", "-o", "uid=nobody-of-that-name"]),
    (2, ["mount", "{url}", "{dir}", "-o", f"gid={LONG}"]),
    (2, ["mount", "{url}", "{dir}", "-o", "umask=999"]),
    (2, ["mount", "{url}", "{dir}", "-o", f"uploads={LONG}"]),
    (2, ["mount", "{url}", "{dir}", "-o", f"cache_size={LONG}"]),
    (2, ["mount", "{url}", "{dir}", "-o", f"deadline={LONG}"]),
    (2, ["mount", "{url}", "{dir}", "-o", "cache_size=a\0b"]),
    (2, ["mount", "{url}", "{dir}", "-o", "log=a\0b"]),
    (2, ["mount", "{url}", "{dir}", "-o", "fsname=a\nb"]),
    (2, ["mount", "{url}", "{dir}", "-o", "state_dir=/a\0b"]),
    (2, ["mount", "{url}", "{dir}", "-o", "key_file=~nobody-of-that-name/k"]),
    (2, ["mount", "{url}", "{dir}", "-o", 'fsname="open']),
    (2, ["mount", "{url}", "{dir}", "-o", "allow_other=yes"]),
    (2, ["mount", "{url}", "{dir}", "-o", "fsync="]),
    (2, ["mount", "{url}", "{dir}", "-o", "fsync=never"]),
    (2, ["mount", "{url}", "{dir}", "-o", "loop"]),
]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One volume for all of them: nothing of the table may change it."""
    place = tmp_path_factory.mktemp("mistakes")
    machine = Machine(place)
    machine.format()
    for name in ("dir", "full"):
        (place / name).mkdir()
    (place / "full" / "mine").touch()
    (place / "file").touch()
    (place / "empty").touch()
    (place / "binary").write_bytes(b"\xff\xfe\n")
    (place / "wrong").write_text("not the passphrase")
    (place / "long").write_text("a passphrase of many words")
    for name in ("empty", "binary", "wrong", "long"):
        (place / name).chmod(0o600)
    names = ("dir", "full", "file", "empty", "binary", "wrong", "long")
    paths = {name: str(place / name) for name in names}
    return {**paths, "place": str(place), "url": machine.url}


@pytest.fixture
def environ(words: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    place = Path(words["place"]) / "a"
    made = {
        "MEGAFS_STATE_DIR": str(place / "state"),
        "MEGAFS_CACHE_DIR": str(place / "cache"),
        "MEGAFS_RUNTIME_DIR": str(place / "run"),
        "MEGAFS_CONFIG": str(place / "config.toml"),
        "MEGAFS_KDF": "low-memory",
        "MEGAFS_PASSPHRASE": PASSPHRASE,
    }
    for name, value in made.items():
        monkeypatch.setenv(name, value)
    yield made


def is_one_line(said: str) -> bool:
    return (
        said.startswith("megafs: ")
        and said.endswith("\n")
        and said.count("megafs: ") >= 1
        and len(said.splitlines()) == 1
        and said.rstrip("\n").isprintable()
        and "Traceback" not in said
        and "this is a bug" not in said
    )


@pytest.mark.parametrize(
    ("code", "args"),
    MISTAKES,
    ids=[" ".join(args)[:60].encode("unicode_escape").decode() for _, args in MISTAKES],
)
def test_mistake(
    code: int,
    args: list[str],
    words: dict[str, str],
    environ: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    # No terminal may be asked.
    monkeypatch.setattr("megafs.cli.passphrase.has_terminal", lambda: False)
    filled = []
    for arg in args:
        for name, value in words.items():
            arg = arg.replace(f"{{{name}}}", value)
        filled.append(arg)
    found = main.run(filled)
    said = capfd.readouterr()
    assert found == code, said.err
    assert code in {number for number, _ in EXIT_CODES}
    assert is_one_line(said.err.splitlines(keepends=True)[-1]), said.err
    if args[0] != "format" and args[:2] != ["key", "recover"]:
        assert is_one_line(said.err), said.err
    assert len(said.err) < 2000
    assert "geheim" not in said.err


def test_there_are_enough() -> None:
    assert len(MISTAKES) >= 80


GONE = 'mkdir "$DIR/gone"; cd "$DIR/gone"; rmdir "$DIR/gone"'
SHELL = {
    # what: exit code, shell line; "$@" is the program
    "closed stdin": (2, 'exec "$@" fsck "$URL" <&-'),
    "closed stdout": (1, 'exec "$@" help exit-codes >&-'),
    "full stdout": (1, 'exec "$@" help exit-codes >/dev/full'),
    "full stdout, help": (1, 'exec "$@" --help >/dev/full'),
    "full stdout, version": (1, 'exec "$@" --version >/dev/full'),
    "full stdout, json": (1, 'exec "$@" key list "$URL" --json >/dev/full'),
    "full stdout, list": (1, 'exec "$@" key list "$URL" >/dev/full'),
    "no HOME, no user": (2, 'unset HOME; exec "$@" status "$DIR"'),
    "the directory is gone": (2, f'{GONE}; exec "$@" log f'),
    "a mountpoint in a directory that is gone": (2, f'{GONE}; exec "$@" umount x'),
    "LANG=C": (2, 'LANG=C LC_ALL=C exec "$@" umount "$DIR/größe"'),
    "ASCII": (2, 'PYTHONUTF8=0 PYTHONIOENCODING=ascii exec "$@" umount "$DIR/größe"'),
    "a state directory that is a file": (1, 'exec "$@" fsck "$URL" --state-dir "$FILE"'),
    "a state directory below a file": (1, 'exec "$@" fsck "$URL" --state-dir "$FILE/x"'),
    "a read-only state directory": (1, 'exec "$@" fsck "$URL" --state-dir /proc/x'),
}  # fmt: skip


@pytest.mark.parametrize("what", SHELL)
def test_mistake_of_the_process(what: str, words: dict[str, str], environ: dict[str, str]) -> None:
    code, line = SHELL[what]
    given = {**os.environ, "URL": words["url"], "DIR": words["dir"], "FILE": words["file"]}
    given["PYTHONPATH"] = str(Path(__file__).parents[2])
    if what == "closed stdin":
        del given["MEGAFS_PASSPHRASE"]
    done = subprocess.run(
        ["sh", "-c", line, "sh", sys.executable, "-m", "megafs"],
        env=given,
        capture_output=True,
        check=False,
        start_new_session=True,
    )
    said = done.stderr.decode("utf-8", "backslashreplace")
    assert done.returncode == code, said
    assert is_one_line(said), said
    assert done.stdout == b""


@pytest.mark.parametrize("command", [["status"], ["fsck", "{dir}"], ["mout"]])
@pytest.mark.parametrize("redirect", ["2>&-", "2>/dev/full", "2>&- >&- <&-"])
def test_without_stderr_the_exit_code_is_left(
    command: list[str], redirect: str, words: dict[str, str], environ: dict[str, str]
) -> None:
    args = [word.format(**words) for word in command]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirect}', "sh", sys.executable, "-m", "megafs", *args],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        check=False,
        capture_output=True,
        start_new_session=True,
    )
    assert done.returncode == (0 if command == ["status"] else 2)
