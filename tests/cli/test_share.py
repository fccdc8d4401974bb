"""`megafs share` and `megafs get`, as they are typed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.fuse


class Place:
    """A mounted volume and a folder for a web server."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.mnt = place / "m"
        self.environ = os.environ | {
            "MEGAFS_PASSPHRASE": "correct horse battery",
            "MEGAFS_KDF": "low-memory",
            "MEGAFS_STATE_DIR": str(place / "state"),
            "MEGAFS_CACHE_DIR": str(place / "cache"),
        }
        self.url = f"file://{place}/store"

    def run(self, *args: str, code: int = 0, given: str = "", **more: str) -> tuple[str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "megafs", *args],
            env=self.environ | more,
            cwd=self.place,
            input=given,
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,  # without a terminal to ask at
        )
        assert done.returncode == code, done.stderr
        return done.stdout, done.stderr


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    made.mnt.mkdir()
    made.run("format", made.url, "--no-recovery-key")
    made.run("mount", made.url, str(made.mnt))
    (made.mnt / "report.txt").write_text("figures\n" * 1000)
    folder = made.mnt / "photos"
    folder.mkdir()
    (folder / "one.jpg").write_bytes(os.urandom(300_000))
    try:
        yield made
    finally:
        made.run("umount", str(made.mnt))


def test_a_file_goes_from_a_mount_to_somebody_without_one(place: Place) -> None:
    link, said = place.run("share", "m/report.txt", "--out", "www")
    assert "report.txt" in said and link.startswith("megafs:#1.")
    place.run("get", link.strip(), "copy.txt")
    assert (place.place / "copy.txt").read_text() == "figures\n" * 1000
    out, _ = place.run("get", "-", "-", given=link)
    assert out == "figures\n" * 1000
    place.run("get", link.strip(), "copy.txt")  # again: nothing to do
    (place.place / "copy.txt").write_text("mine")
    _, said = place.run("get", link.strip(), "copy.txt", code=18)
    assert "move it away" in said
    attribute = os.getxattr(place.mnt / "report.txt", "user.megafs.link").decode()
    assert attribute == link.strip()


def test_a_folder_with_a_password(place: Place) -> None:
    (place.place / "pw").write_text("Geheim!\n")
    (place.place / "pw").chmod(0o600)
    text, _ = place.run(
        "share", "m/photos", "--out", "www", "--password-file", "pw", "--expires", "7d", "--json"
    )
    link = json.loads(text)["link"]
    _, said = place.run("get", link, "got", code=2)
    assert "MEGAFS_LINK_PASSWORD" in said
    _, said = place.run("get", link, "got", code=12, MEGAFS_LINK_PASSWORD="other")
    assert "password" in said and "Geheim" not in said
    place.run("get", link, "got", MEGAFS_LINK_PASSWORD="Geheim!")
    assert (place.place / "got" / "one.jpg").read_bytes() == (
        place.mnt / "photos" / "one.jpg"
    ).read_bytes()
    listed, _ = place.run("get", link, "--list", "--json", "--password-file", "pw")
    assert [row["path"] for row in json.loads(listed)["files"]] == ["one.jpg"]


def test_links_are_listed_shown_and_revoked(place: Place) -> None:
    link, _ = place.run("share", "m/report.txt", "--out", "www")
    listed, _ = place.run("share", "list", "m")
    assert "/report.txt" in listed and "live" in listed
    shown, _ = place.run("share", "show", "m/report.txt")
    assert shown == link
    (row,) = json.loads(place.run("share", "list", "m", "--json")[0])["links"]
    place.run("share", "revoke", "m", row["id"])
    assert place.run("share", "list", "m")[0] == ""
    _, said = place.run("get", link.strip(), "x", code=16)
    assert "revoked" in said and not (place.place / "x").exists()
    _, said = place.run("share", "revoke", "m/report.txt", code=2)
    assert "share list" in said


def test_the_page_is_written(place: Place) -> None:
    place.run("share", "page", "--out", "www")
    sums = (place.place / "www" / "sums.txt").read_text()
    assert "  index.html\n" in sums and "  vendor/fzstd.js\n" in sums
    done = subprocess.run(
        ["sha256sum", "--check", "--quiet", "sums.txt"], cwd=place.place / "www", check=False
    )
    assert done.returncode == 0
    assert not list((place.place / "www").rglob("*.d.ts"))


@pytest.mark.parametrize(
    ("args", "code", "word"),
    [
        (["share", "m/nothing"], 2, "no such file"),
        (["share", "m/report.txt"], 2, "--out"),
        (["share", "m/report.txt", "--page", "ftp://x"], 2, "page="),
        (["share", "m/report.txt", "--expires", "soon"], 2, "soon"),
        (["share", "/etc/hosts"], 2, "mount"),
        (["share", "setup", "m"], 2, "--out"),
        (["get", "https://example.org/#1.cut"], 2, "cut short"),
        (["get", "https://example.org/"], 2, "not a link"),
        (["get", "megafs:#1.AAAAAAAAAAAAAAAAAAAAAA." + "A" * 43, "-o", "ro"], 2, "-o"),
    ],
)
def test_mistakes_are_one_line(place: Place, args: list[str], code: int, word: str) -> None:
    out, said = place.run(*args, code=code)
    assert word in said and out == ""
    assert all(line.startswith("megafs: ") for line in said.splitlines()), said


def test_the_volume_is_not_mounted(place: Place) -> None:
    place.run("umount", str(place.mnt))
    try:
        link, _ = place.run("share", place.url, "/report.txt", "--out", "www")
        place.run("get", link.strip(), "copy")
        assert (place.place / "copy").read_text() == "figures\n" * 1000
    finally:
        place.run("mount", place.url, str(place.mnt))
