"""git: clone, commit, gc, fsck, worktrees."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.programs.conftest import run, sh

pytestmark = [pytest.mark.fuse, pytest.mark.timeout(150)]

IDENTITY = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "gc.autoDetach=false"]


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with some history."""
    path = tmp_path_factory.mktemp("origin")
    script = """
    git init -q .
    for n in 1 2 3 4 5 6; do
        mkdir -p d$n; seq $((n * 1000)) > d$n/numbers; echo $n > file$n
        git add . && git -c user.name=t -c user.email=t@example.org commit -qm "step $n"
    done
    """
    sh(script, cwd=path)
    return path


def git(at: Path, *args: str | Path) -> str:
    return run("git", *IDENTITY, *args, cwd=at)


def test_clone_commit_gc_fsck(origin: Path, here: Path) -> None:
    git(here, "clone", "-q", "--no-hardlinks", origin, "c")
    at = here / "c"
    git(at, "fsck", "--full", "--strict")
    assert git(at, "rev-parse", "HEAD") == git(origin, "rev-parse", "HEAD")
    assert git(at, "status", "--porcelain") == ""
    for n in range(10):
        (at / f"new{n}").write_text(f"{n}\n" * 1000)
        git(at, "add", ".")
        git(at, "commit", "-qm", f"new {n}")
    git(at, "mv", "file1", "moved")
    git(at, "commit", "-qam", "moved")
    git(at, "gc", "-q", "--aggressive", "--prune=now")
    git(at, "repack", "-qadf")
    git(at, "fsck", "--full", "--strict")
    assert len(git(at, "log", "--oneline").splitlines()) == 17
    assert git(at, "status", "--porcelain") == ""


def test_branches_stash_rebase_worktree(origin: Path, here: Path) -> None:
    git(here, "clone", "-q", "--no-hardlinks", origin, "c")
    at = here / "c"
    git(at, "checkout", "-qb", "side", "HEAD~3")
    assert not (at / "d6").exists()
    (at / "side").write_text("side")
    git(at, "add", ".")
    git(at, "commit", "-qm", "side")
    (at / "side").write_text("changed")
    git(at, "stash", "-q")
    assert (at / "side").read_text() == "side"
    git(at, "rebase", "-q", "-")
    assert (at / "d6" / "numbers").exists()
    git(at, "stash", "pop", "-q")
    assert (at / "side").read_text() == "changed"
    git(at, "worktree", "add", "-q", here / "w", "HEAD~1")
    assert (here / "w" / "file6").exists()
    git(at, "fsck", "--full")


def test_push_into_a_bare_repository_and_out_of_it(
    origin: Path, here: Path, tmp_path: Path
) -> None:
    git(here, "init", "-q", "--bare", "b.git")
    git(origin, "push", "-q", here / "b.git", "HEAD:refs/heads/main")
    git(tmp_path, "clone", "-q", "-b", "main", here / "b.git", "out")
    assert git(tmp_path / "out", "rev-parse", "HEAD") == git(origin, "rev-parse", "HEAD")
