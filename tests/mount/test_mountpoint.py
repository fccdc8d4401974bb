"""May this be mounted here, by this user, on this machine: each no is a sentence."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from megafs.errors import BadUsage, Busy, MountFailed
from megafs.mount import mountpoint
from tests.mount.machine import is_mounted

pytestmark = pytest.mark.fuse


def test_the_machine_has_no_fuse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mountpoint, "FUSE_DEVICE", str(tmp_path / "fuse"))
    with pytest.raises(MountFailed, match="modprobe fuse"):
        mountpoint.check_fuse(allow_other=False)


def test_others_than_root_need_fusermount3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MountFailed, match=r"fusermount3 is missing.*install fuse3"):
        mountpoint.check_fuse(allow_other=False)


def test_allow_other_needs_a_line_in_fuse_conf(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    conf = tmp_path / "fuse.conf"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(mountpoint, "FUSE_CONF", str(conf))
    with pytest.raises(MountFailed, match="user_allow_other"):
        mountpoint.check_fuse(allow_other=True)
    conf.write_text("# user_allow_other\n")
    with pytest.raises(MountFailed, match="user_allow_other"):
        mountpoint.check_fuse(allow_other=True)
    conf.write_text("mount_max = 9\nuser_allow_other\n")
    mountpoint.check_fuse(allow_other=True)


def test_what_is_mounted_is_found_by_its_whole_name(place: Path) -> None:
    path = place / "a b\tc\\d"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "some name", path], check=True)
    found = mountpoint.find(str(path))
    assert found is not None
    assert (found.fstype, found.source) == ("tmpfs", "some name")
    assert mountpoint.find(str(place)) is None
    mountpoint.unmount(str(path))
    assert not is_mounted(path)


def test_links_lead_to_one_name(place: Path) -> None:
    (place / "real").mkdir()
    (place / "link").symlink_to("real")
    assert mountpoint.canonical(place / "link") == str(place / "real")
    assert mountpoint.canonical(f"{place}/link/../real/") == str(place / "real")


def test_another_filesystem_may_lie_below(place: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "x", place], check=True)
    mountpoint.check(str(place), nonempty=False)
    assert mountpoint.find(str(place)) is not None  # it was not taken for what a dead mount left
    mountpoint.unmount(str(place))
    assert mountpoint.find(str(place)) is None


def test_unmounting_what_is_in_use_or_not_there(place: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "x", place], check=True)
    with (place / "f").open("w"):
        with pytest.raises(Busy, match="is in use"):
            mountpoint.unmount(str(place))
        mountpoint.detach(str(place))
    with pytest.raises(BadUsage, match="nothing is mounted"):
        mountpoint.unmount(str(place))
