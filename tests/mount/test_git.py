"""Two machines that push to one bare repository, in git's own words."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.machine import Machine, eventually

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.timeout(200),
    pytest.mark.skipif(shutil.which("git") is None, reason="needs git"),
]


def git(at: Path, *args: str | Path, fails: bool = False) -> str:
    """Run git; return all that it says."""
    done = subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "gc.auto=0",
         "-c", "protocol.file.allow=always", "-c", "safe.directory=*", *map(str, args)],
        cwd=at,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, "LC_ALL": "C", "GIT_CONFIG_GLOBAL": "/dev/null"},
    )  # fmt: skip
    assert (done.returncode != 0) == fails, done.stdout
    return done.stdout


class Developer:
    """A machine with the volume, and a clone on its own disk."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.bare = machine.mnt / "repo.git"
        self.clone = machine.place / "clone"

    def begin(self) -> None:
        git(self.machine.place, "clone", "-q", self.bare, self.clone)

    def commit(self, name: str) -> str:
        (self.clone / name).write_text(name)
        git(self.clone, "add", ".")
        git(self.clone, "commit", "-qm", name)
        return git(self.clone, "rev-parse", "HEAD").strip()

    def main(self) -> str:
        return git(self.bare, "rev-parse", "refs/heads/main").strip()


@pytest.fixture
def team(
    volume: Machine, place: Path, request: pytest.FixtureRequest
) -> Iterator[tuple[Developer, Developer]]:
    """Two developers with one repository of one commit."""
    other = Machine(place, "other", volume.url)
    for machine in (volume, other):
        machine.mount("-o", request.param)
    one, two = Developer(volume), Developer(other)
    git(volume.mnt, "init", "-q", "--bare", "-b", "main", one.bare)
    one.begin()
    git(one.clone, "checkout", "-q", "-B", "main")
    first = one.commit("first")
    git(one.clone, "push", "-q", "origin", "main")
    eventually(lambda: (two.bare / "refs/heads/main").exists(), within=30)
    two.begin()
    assert two.main() == first
    yield one, two
    other.kill()


@pytest.mark.parametrize("team", ["fsync=local,sync_interval=8s"], indirect=True)
def test_what_lost_a_race_of_pushes_is_out_of_gits_sight(
    team: tuple[Developer, Developer],
) -> None:
    one, two = team
    theirs = {each: each.commit(name) for each, name in ((one, "one"), (two, "two"))}
    for each in team:
        git(each.clone, "push", "-q", "origin", "main")  # both are told that it went well
        assert each.main() == theirs[each]
    eventually(lambda: one.main() == two.main(), within=60)
    conflicts = one.bare / "megafs-conflicts"
    eventually(conflicts.is_dir, within=60)
    loser = two if one.main() == theirs[one] else one
    for each in team:
        eventually(lambda each=each: (each.bare / "megafs-conflicts").is_dir(), within=60)
        said = git(each.bare, "for-each-ref", "--format=%(refname)")
        assert said == "refs/heads/main\n"
        assert git(each.bare, "branch", "-a") == "* main\n"
        said = git(each.bare, "fsck", "--full", "--strict", "--no-dangling")
        assert "conflict" not in said
        assert "error" not in said
        assert "conflict" not in git(each.bare, "count-objects", "-v")
        git(each.bare, "pack-refs", "--all")
    # Nothing is lost: the commit is there, and its branch among the conflicts.
    (copy,) = conflicts.glob("refs__heads__main (conflict*")
    assert copy.read_text().strip() == theirs[loser]
    assert git(one.bare, "cat-file", "-t", theirs[loser]) == "commit\n"
    # Whoever lost is told at the next push, and goes on as after any rejected push.
    loser.commit("more")
    git(loser.clone, "push", "-q", "origin", "main", fails=True)
    git(loser.clone, "pull", "-q", "--rebase", "origin", "main")
    git(loser.clone, "push", "-q", "origin", "main")
    for each in team:
        each.machine.umount()


@pytest.mark.parametrize("team", ["consistency=strict"], indirect=True)
def test_with_strict_consistency_the_second_push_is_rejected(
    team: tuple[Developer, Developer],
) -> None:
    one, two = team
    ours = one.commit("one")
    two.commit("two")
    git(one.clone, "push", "-q", "origin", "main")
    said = git(two.clone, "push", "-q", "origin", "main", fails=True)
    assert "rejected" in said or "failed" in said
    assert two.main() == ours
    git(two.clone, "pull", "-q", "--rebase", "origin", "main")
    git(two.clone, "push", "-q", "origin", "main")
    newest = git(two.clone, "rev-parse", "HEAD").strip()
    assert two.main() == newest
    eventually(lambda: one.main() == newest, within=30)
    for each in team:
        assert not (each.bare / "megafs-conflicts").exists()
        assert git(each.bare, "for-each-ref", "--format=%(refname)") == "refs/heads/main\n"
        each.machine.umount()
