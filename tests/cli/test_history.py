"""snapshot, log, restore, undelete: on a mount and on a volume that is not mounted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.mount.machine import Machine

pytestmark = pytest.mark.fuse


def asked(volume: Machine, *args: str | Path) -> Any:
    return json.loads(volume.run(*args, "--json").stdout)


def test_on_a_mount(volume: Machine) -> None:
    volume.mount()
    mnt = volume.mnt
    (mnt / "docs").mkdir()
    (mnt / "docs/a").write_text("first")
    (mnt / "docs/b").write_text("second")
    made = asked(volume, "snapshot", "create", mnt, "monday")
    assert made["name"] == "monday"
    volume.run("snapshot", "create", mnt, "monday", code=18)
    volume.run("snapshot", "create", mnt, "2026-11-23", code=2)
    rows = asked(volume, "snapshot", "list", mnt)["snapshots"]
    assert [row["name"] for row in rows] == ["monday"]

    (mnt / "docs/a").write_text("changed")
    assert (mnt / ".megafs/snapshots/monday/docs/a").read_text() == "first"
    log = asked(volume, "log", mnt / "docs/a")["events"]
    assert [event["what"] for event in log][-1] == "created"
    assert "contents" in [event["what"] for event in log]
    assert asked(volume, "log", mnt)["commits"][-1]["sequence"] == 1
    assert "first" not in volume.run("log", "-r", mnt).stdout

    volume.run("restore", mnt / "docs/a", code=2)  # as of when?
    volume.run("restore", mnt / "docs/a", "--at", "monday", code=18)
    volume.run("restore", mnt / "docs/a", "--at", "monday", "--to", mnt / "old")
    assert (mnt / "old").read_text() == "first"
    volume.run("restore", mnt / ".megafs/snapshots/monday/docs", "--to", mnt / "docs 2")
    assert (mnt / "docs 2/b").read_text() == "second"
    volume.run("restore", mnt / "docs/a", "--at", "monday", "--replace")
    assert (mnt / "docs/a").read_text() == "first"

    shutil.rmtree(mnt / "docs")
    removed = asked(volume, "undelete", mnt)["removed"]
    assert removed[0]["path"] == "/docs"
    assert not removed[0]["exists"]
    assert "docs/" in volume.run("undelete", mnt).stdout
    volume.run("undelete", mnt / "docs")
    assert sorted(path.name for path in (mnt / "docs").iterdir()) == ["a", "b"]
    volume.run("undelete", mnt / "never", code=2)
    volume.run("snapshot", "delete", mnt, "monday")
    assert not (mnt / ".megafs/snapshots/monday").exists()
    volume.umount()


def test_on_a_volume_that_is_not_mounted(volume: Machine) -> None:
    volume.mount()
    (volume.mnt / "d").mkdir()
    (volume.mnt / "d/f").write_text("text")
    volume.umount()

    volume.run("snapshot", "create", volume.url, "s")
    assert [e["what"] for e in asked(volume, "log", volume.url, "d/f")["events"]][-1] == "created"
    volume.run("restore", volume.url, "d", "--at", "s", "--to", "e")
    volume.run("log", volume.mnt / "d", code=2)  # lies in no mount now

    volume.mount()
    assert (volume.mnt / "e/f").read_text() == "text"
    assert (volume.mnt / ".megafs/snapshots/s/d/f").read_text() == "text"
    volume.umount()
