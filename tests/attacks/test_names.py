"""Names and texts of others as people and programs see them: one line each, and exact in JSON."""

from __future__ import annotations

import base64
import io
import json
import logging
import os
import shutil
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megafs import logs
from megafs.cli import main, output
from megafs.log_file import LogFile
from megafs.mount.daemon import Notifier
from megafs.printable import printable
from tests.mount.machine import Machine

#: As bytes in a volume, and what people see of each.
EVIL = [
    (b"esc\x1b[2J\x1b]0;title\x07", r"esc\x1b[2J\x1b]0;title\x07"),
    (
        b"line\n2026-01-01 00:00:00,000 E megafs: forged",
        r"line\n2026-01-01 00:00:00,000 E megafs: forged",
    ),
    (b"back\rmegafs: all is well\x08\x7f", r"back\rmegafs: all is well\x08\x7f"),
    ("c1\x9b31m\x85next\x8d".encode(), r"c1\x9b31m\x85next\x8d"),
    ("bidi\u202efdp.exe\u2066\u061c".encode(), r"bidi\u202efdp.exe\u2066\u061c"),
    ("separators\u2028\u2029".encode(), r"separators\u2028\u2029"),
    ("hidden\u200b\ufeff\U000e0041".encode(), r"hidden\u200b\ufeff\U000e0041"),
    (b"latin-1\xe9\xff\x9b", r"latin-1\xe9\xff\x9b"),
    ("plain ä 日本 \u200d👨\u200d👩 \\ [red]x[bold] %s {0}".encode(), "plain ä 日本 "),
]
#: For commands that take one name each, and a second or so.
SOME = [EVIL[1], EVIL[4], EVIL[7]]
RAW = set("\x1b\r\x07\x08\x7f\x85\x8d\x9b\u202e\u2066\u061c\u2028\u2029\u200b\ufeff")


def assert_clean(text: str) -> None:
    """Nothing in *text* moves the cursor, hides, or begins a line that is not ours."""
    assert not RAW & set(text)
    for line in text.splitlines():
        assert not line.startswith("2026-01-01"), line


@given(st.text(st.characters(exclude_categories=())))
def test_printable_is_one_line_and_may_be_done_twice(text: str) -> None:
    shown = printable(text)
    assert len(shown.splitlines()) <= 1
    assert not RAW & set(shown)
    assert printable(shown) == shown
    shown.encode()


@pytest.mark.parametrize("name,shown", EVIL)
def test_one_name(name: bytes, shown: str) -> None:
    assert printable(os.fsdecode(name)).startswith(shown)
    assert printable(name.decode("utf-8", "backslashreplace")).startswith(shown)


def test_common_text_is_left_alone() -> None:
    for text in (
        "",
        "a b",
        "größe 日本語",
        "می\u200cخواهم",
        "👨\u200d👩",
        "a\u00a0b\u3000c",
        "\\n",
    ):
        assert printable(text) == text


@pytest.mark.parametrize("name", [name for name, _ in EVIL])
def test_everything_that_is_shown(name: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    text = os.fsdecode(name)
    output.note(text)
    output.warn(text)
    output.show(text, text)
    output.show(*output.table(["a", text], [[text, "b"]]))
    output.show(*output.rows([(text, text)]))
    with output.progress(text) as step:
        step(1, text)
    for exc in (ValueError(text), OSError(5, text)):
        main.report_error(exc, as_json=False, debug=True)
    printed = capsys.readouterr()
    assert_clean(printed.out)
    assert_clean(printed.err)
    assert len(printed.out.splitlines()) == 5
    assert all(line.startswith(("megafs: ", "    ")) for line in printed.err.splitlines())


def test_a_table_is_aligned_by_what_is_shown() -> None:
    first, second, third = output.table(["name", "x"], [["a\x1b", "1"], ["b", "2"]])
    assert second == r"a\x1b  1"
    assert third == "b      2"
    assert first == "name   x"


@pytest.fixture
def logged(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "log"
    before = logging.getLogger().handlers[:]
    level = logging.getLogger().level
    logs.set_up(str(path))
    yield path
    for handler in logging.getLogger().handlers[:]:
        logging.getLogger().removeHandler(handler)
        handler.close()
    for handler in before:
        logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(level)
    logging.raiseExceptions = True
    logging.captureWarnings(False)


def test_a_record_of_the_log_is_one_line(logged: Path) -> None:
    log = logging.getLogger("megafs.test")
    for name, _ in EVIL:
        log.warning("damaged: %s", os.fsdecode(name))
        try:
            raise ValueError(os.fsdecode(name))
        except ValueError:
            log.exception("a bug with %s", os.fsdecode(name))
    text = logged.read_text()
    assert_clean(text)
    records = [line for line in text.splitlines() if not line.startswith("    ")]
    assert len(records) == 2 * len(EVIL)
    assert all(" megafs.test: " in line for line in records)
    assert text.count("forged") == 3


def test_the_journal_and_syslog_too(monkeypatch: pytest.MonkeyPatch) -> None:
    text = os.fsdecode(EVIL[1][0])
    record = logging.LogRecord("megafs", logging.ERROR, "", 0, "%s", (text,), None)
    for formatter in (logs._Journal("%(name)s: %(message)s"), logs._Escaping("%(message)s")):
        (line,) = formatter.format(record).splitlines()
        assert line.endswith(r"line\n2026-01-01 00:00:00,000 E megafs: forged")


def test_no_field_of_systemd_comes_from_a_name(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})(
            READY=1, STATUS="file:///x\nMAINPID=1 at /mnt\n\x1b"
        )
        assert systemd.recv(4096) == b"READY=1\nSTATUS=file:///x\\nMAINPID=1 at /mnt\\n\\x1b"


def test_a_log_stays_for_its_owner_when_it_is_rotated(
    logged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = os.umask(0)
    try:
        (handler,) = (h for h in logging.getLogger().handlers if isinstance(h, LogFile))
        handler.maxBytes = 100
        for _ in range(5):
            logging.getLogger("megafs").warning("x" * 60)
    finally:
        os.umask(old)
    found = sorted(logged.parent.glob("log*"))
    assert len(found) == 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in found} == {0o600}


def test_a_log_does_not_go_through_a_link_in_a_directory_of_others(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("dear")
    victim.chmod(0o644)
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    (shared / "log").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        LogFile(str(shared / "log"))
    assert victim.read_text() == "dear"
    assert stat.S_IMODE(victim.stat().st_mode) == 0o644
    (tmp_path / "log").symlink_to(tmp_path / "elsewhere")
    handler = LogFile(str(tmp_path / "log"))
    handler.emit(logging.LogRecord("megafs", 30, "", 0, "said", (), None))
    handler.close()
    assert (tmp_path / "elsewhere").read_text() == "said\n"


def _exact(row: dict[str, Any], field: str = "path") -> bytes:
    """The bytes of a path in JSON, as docs/commands.md says."""
    if f"{field}_b64" in row:
        return base64.b64decode(row[f"{field}_b64"])
    return str(row[field]).encode()


@pytest.mark.fuse
def test_every_command_that_prints_names(volume: Machine) -> None:
    """The text is clean and shows each name; --json has its exact bytes."""
    log = volume.place / "log"
    volume.mount("-o", f"log={log}")
    mnt = os.fsencode(volume.mnt)
    names = [name for name, _ in EVIL]
    contents = os.urandom(100_000)  # too much to lie in the tree
    for name in names:
        with open(mnt + b"/" + name, "wb") as file:
            file.write(contents + name)
    expected = {b"/" + name for name in names}
    some = {b"/" + name for name, _ in SOME}

    def both(*args: str | Path, codes: tuple[int, ...] = (0, 0)) -> dict[str, Any]:
        said = volume.run(*args, code=codes[0])
        assert_clean(said.stdout)
        assert_clean(said.stderr)
        texts.append(said.stdout + said.stderr)
        return dict(json.loads(volume.run(*args, "--json", code=codes[1]).stdout))

    texts: list[str] = []
    found = both("log", "-r", volume.mnt)["events"]
    assert expected <= {_exact(row) for row in found}
    assert all(shown in texts[-1] for _, shown in EVIL)
    for name, _ in SOME:
        path = os.fsdecode(mnt + b"/" + name)
        assert _exact(both("log", path)) == b"/" + name
        volume.run("pin", path)
        moved = b"moved " + name
        os.rename(mnt + b"/" + name, mnt + b"/" + moved)
        renamed = both("log", os.fsdecode(mnt + b"/" + moved))["events"][0]
        assert (_exact(renamed), _exact(renamed, "was")) == (b"/" + moved, b"/" + name)
        os.rename(mnt + b"/" + moved, mnt + b"/" + name)
    pins = both("pin", "--list", volume.mnt)["pins"]
    assert {_exact(row) for row in pins} == some
    assert all(shown in texts[-1] for _, shown in SOME)
    both("fsck", volume.mnt)
    both("scrub", volume.mnt)
    both("status", volume.mnt)
    for name in names:
        os.unlink(mnt + b"/" + name)
    removed = both("undelete", volume.mnt)["removed"]
    assert expected <= {_exact(row) for row in removed}
    assert all(shown in texts[-1] for _, shown in EVIL)
    for name, _ in SOME:
        path = os.fsdecode(mnt + b"/" + name)
        volume.run("unpin", path, code=2)
        result = json.loads(volume.run("undelete", path, "--json").stdout)
        assert (_exact(result), _exact(result, "from")) == (b"/" + name, b"/" + name)
        assert_clean(volume.run("undelete", path, code=18).stderr)
        with open(mnt + b"/" + name, "rb") as back:
            assert back.read() == contents + name
        with open(mnt + b"/" + name, "ab") as file:
            file.write(b"more")
        both("restore", path, "--at", "999999", codes=(2, 2))
    volume.umount()

    # A pack is lost: scrub, fsck and the log of a mount name every file that it held.
    for pack in (volume.place.parent / "store/packs").rglob("*"):
        if pack.is_file():
            pack.write_bytes(b"\0" * pack.stat().st_size)
    damaged = both("scrub", volume.url, codes=(4, 4))["damaged"]
    assert some <= {_exact(row) for row in damaged if row.get("path")}
    assert all(shown in texts[-1] for _, shown in SOME)
    (volume.place / "out").mkdir()
    result = both("salvage", volume.url, "--to", volume.place / "out/1", codes=(4, 18))
    report = json.loads((volume.place / "out/salvage-report.json").read_text())
    assert some <= {_exact(row) for row in report["damaged"]}
    assert "error" in result
    shutil.rmtree(volume.place / "cache")
    volume.mount("-o", f"log={log}")
    for name, _ in SOME:
        with open(mnt + b"/" + name, "rb") as lost, pytest.raises(OSError):
            lost.read()
    both("status", volume.mnt)
    volume.umount()
    text = log.read_text()
    assert_clean(text)
    assert r"line\n2026-01-01" in text


def test_stdout_of_another_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte that is not UTF-8 is no reason to end with a traceback."""
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", "strict")
    monkeypatch.setattr(sys, "stdout", out)
    output.show(os.fsdecode(b"\xff\x1b"))
    out.flush()
    assert out.buffer.getvalue() == b"\\xff\\x1b\n"
