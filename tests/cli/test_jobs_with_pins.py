"""Every job of the command line on a machine that keeps pins, with a mount live elsewhere.

Pins are remembered in the state directory.  A job on such a machine may find a cache or none, and a
mount of its own or none; each of the four is a site below, on which the jobs run one after another.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.mount.conftest import mounts_below
from tests.mount.machine import Machine, eventually

pytestmark = pytest.mark.fuse

CONTENTS = os.urandom(300_000)


class Site:
    """Two machines and one volume: `here` keeps pins, `there` has the volume mounted meanwhile."""

    def __init__(self, place: Path, *, cache: bool, mounted: bool) -> None:
        self.place = place
        self.cache = cache
        self.mounted = mounted
        self.here = Machine(place, "here")
        self.there = Machine(place, "there", self.here.url)

    def begin(self) -> None:
        here = self.here
        made = json.loads(here.run("format", here.url, "--json").stdout)
        (here.place / "recovery").write_text(made["recovery_key"])
        (here.place / "recovery").chmod(0o600)
        here.mount()
        (here.mnt / "kept").mkdir()
        (here.mnt / "kept" / "file").write_bytes(CONTENTS)
        (here.mnt / "gone").write_bytes(b"gone")
        (here.mnt / "other").write_bytes(b"other")
        here.run("pin", here.mnt / "kept")
        here.run("snapshot", "create", here.mnt, "begin")
        (here.mnt / "gone").unlink()
        here.umount()
        if not self.cache:
            # A cache of no size, and nothing left of an earlier one.
            shutil.rmtree(here.place / "cache")
            (here.place / "config.toml").write_text('[mount]\ncache_size = "0"\n')
        if self.mounted:
            here.mount()
        self.there.mount("-o", "sync_interval=0.2")
        (self.there.mnt / "from there").write_bytes(b"x" * 50_000)

    def end(self) -> None:
        for machine in (self.here, self.there):
            machine.kill()

    def where(self, inner: str = "") -> list[str]:
        """The volume, or a path inside it, as this site's commands name it."""
        if self.mounted:
            return [str(self.here.mnt / inner)]
        return [self.here.url, inner] if inner else [self.here.url]

    def json(self, *args: str, code: int = 0) -> dict[str, Any]:
        """What a command prints: one JSON document, and nothing of a bug."""
        done = self.here.run(*args, "--json", code=code)
        assert "Traceback" not in done.stderr
        assert "this is a bug" not in done.stderr
        return dict(json.loads(done.stdout))


@contextmanager
def _site(place: Path, *, cache: bool, mounted: bool) -> Iterator[Site]:
    site = Site(place, cache=cache, mounted=mounted)
    try:
        site.begin()
        yield site
    finally:
        site.end()
        for point in mounts_below(place):
            os.system(f"umount -l {point}")


@pytest.fixture(
    scope="module",
    params=[(True, False), (True, True), (False, False), (False, True)],
    ids=["cache-url", "cache-mounted", "no-cache-url", "no-cache-mounted"],
)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    cache, mounted = request.param
    with _site(tmp_path_factory.mktemp("site"), cache=cache, mounted=mounted) as made:
        yield made


JOBS: dict[str, tuple[list[str], str]] = {
    # name: (the command before the place, what its document must have)
    "fsck": (["fsck", "@"], "problems"),
    "fsck-repair": (["fsck", "@", "--repair", "--yes"], "repaired"),
    "scrub": (["scrub", "@"], "chunks"),
    "gc-dry-run": (["gc", "@", "--dry-run"], "marked"),
    "gc": (["gc", "@"], "marked"),
    "reencrypt": (["key", "reencrypt", "@"], "epoch"),
    "log-of-commits": (["log", "@"], "commits"),
    "log": (["log", "@kept/file"], "events"),
    "log-recursive": (["log", "@kept", "--recursive"], "events"),
    "undelete-list": (["undelete", "@", "--list"], "removed"),
    "undelete": (["undelete", "@gone"], "files"),
    "restore": (["restore", "@kept", "--at", "begin", "--to", "again"], "bytes"),
    "snapshot-create": (["snapshot", "create", "@", "later"], "sequence"),
    "snapshot-list": (["snapshot", "list", "@"], "snapshots"),
    "snapshot-delete": (["snapshot", "delete", "@", "later"], "sequence"),
    "cache-show": (["cache", "show", "@"], "cache_bytes"),
}


@pytest.mark.parametrize("name", JOBS)
def test_a_job_does_its_work(site: Site, name: str) -> None:
    template, field = JOBS[name]
    args: list[str] = []
    for word in template:
        if word.startswith("@"):
            args += site.where(word[1:])
        elif word == "again":
            args.append(str(site.here.mnt / word) if site.mounted else word)
        else:
            args.append(word)
    result = site.json(*args)
    assert field in result
    assert result.get("exit_code", 0) == 0


def test_pins_are_still_known_afterwards(site: Site) -> None:
    site.here.run("pin", "--list", site.here.url, code=2)  # pins belong to a mount
    if site.mounted:
        (pin,) = site.json("pin", "--list", str(site.here.mnt))["pins"]
        assert pin["path"] == "/kept"
        if site.cache:
            eventually(
                lambda: (
                    site.json("pin", "--list", str(site.here.mnt))["pins"][0]["cached_bytes"]
                    == pin["bytes"]
                ),
                within=40,
            )
        else:
            told = site.json("pin", str(site.here.mnt / "other"), code=2)["error"]["text"]
            assert "mount with a larger cache_size" in told
        return
    (found,) = (site.here.place / "state" / "volumes").iterdir()
    assert len(json.loads((found / "pins").read_text())) == 1


def test_salvage_and_keys(site: Site) -> None:
    """What is done on the store itself, whether it is mounted here or not."""
    here = site.here
    out = here.place / "salvaged"
    assert site.json("salvage", here.url, "--to", str(out))["files"] >= 2
    assert (out / "kept" / "file").read_bytes() == CONTENTS
    new = here.place / "new"
    new.write_text("another passphrase\n")
    new.chmod(0o600)
    added = site.json(
        "key", "add", here.url, "--new-passphrase-file", str(new), "--label", "second"
    )
    assert added["slot"]
    assert {"second"} <= {slot["label"] for slot in site.json("key", "list", here.url)["slots"]}
    site.json("key", "change", here.url, "second", "--new-passphrase-file", str(new))
    site.json("key", "remove", here.url, "second")
    recovered = ("--recovery-key-file", str(here.place / "recovery"))
    site.json(
        "key",
        "recover",
        here.url,
        *recovered,
        "--new-passphrase-file",
        str(new),
        "--label",
        "third",
    )
    site.json("key", "remove", here.url, "third")
    assert site.json("key", "recovery-key", here.url)["recovery_key"]


@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no-cache"])
def test_rotate_shows_the_recovery_key_and_makes_the_first_commit(
    tmp_path: Path, cache: bool
) -> None:
    with _site(tmp_path, cache=cache, mounted=False) as site:
        here, there = site.here, site.there
        before = max(p.name for p in Path(here.url.removeprefix("file://"), "commits").iterdir())
        told = site.json("key", "rotate", here.url, "--yes")
        assert re.fullmatch(r"(\w{4}-){13}\w{4}", told["recovery_key"])
        after = max(p.name for p in Path(here.url.removeprefix("file://"), "commits").iterdir())
        assert after > before
        eventually(lambda: there.status()["frozen"], within=30)
        # The new recovery key opens it, and so does the passphrase; pins are kept.
        (here.place / "recovery").write_text(told["recovery_key"])
        new = here.place / "new"
        new.write_text("another passphrase\n")
        new.chmod(0o600)
        site.json(
            "key", "recover", here.url, "--recovery-key-file", str(here.place / "recovery"),
            "--new-passphrase-file", str(new),
        )  # fmt: skip
        here.mount()
        assert (here.mnt / "kept" / "file").read_bytes() == CONTENTS
        assert [p["path"] for p in site.json("pin", "--list", str(here.mnt))["pins"]] == ["/kept"]
        site.json("unpin", str(here.mnt / "kept"))
        here.umount()
