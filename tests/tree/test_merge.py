"""Two mounts that changed the same things: nobody loses a byte, and both end with the same tree.

`first` commits first; `later` has to do its operations again on top.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megafs.errors import Refused
from megafs.tree.ops import RENAME_EXCHANGE
from tests.tree.invariants import check, rows
from tests.tree.mounts import Journal, Mount

Mounts = tuple[Mount, Mount]


def pair(place: Path) -> Mounts:
    journal = Journal()
    mounts = []
    for number, host in ((1, "first"), (2, "later")):
        directory = place / host
        directory.mkdir()
        mounts.append(Mount(journal, directory, number, host))
    return mounts[0], mounts[1]


@pytest.fixture
def mounts(tmp_path: Path) -> Iterator[Mounts]:
    first, later = pair(tmp_path)
    yield first, later
    first.replica.close()
    later.replica.close()


def share(mounts: Mounts, make: Callable[[Mount], object]) -> None:
    """Let both mounts see what *make* makes."""
    make(mounts[0])
    mounts[0].publish()
    mounts[1].follow()


def settle(mounts: Mounts) -> dict[str, bytes | None]:
    """The first commits, then the other; return the files that both see afterwards."""
    first, later = mounts
    first.publish()
    later.publish()
    first.follow()
    check(first.tree)
    check(later.tree)
    assert rows(first.tree) == rows(later.tree)
    assert later.tree.used == first.tree.used
    return first.files()


def copies(files: dict[str, bytes | None], start: str = "") -> list[str]:
    return [path for path in files if "(conflict from later" in path and path.startswith(start)]


def test_different_names_need_no_rule(mounts: Mounts) -> None:
    first, later = mounts
    first.create("/a", b"1")
    later.create("/b", b"2")
    assert settle(mounts) == {"/a": b"1", "/b": b"2"}
    assert not later.replica.conflicts()


def test_the_same_name_made_twice_keeps_both_files(mounts: Mounts) -> None:
    first, later = mounts
    first.create("/notes.txt", b"first's")
    later.create("/notes.txt", b"later's")
    files = settle(mounts)
    (copy,) = copies(files)
    assert copy.startswith("/notes (conflict from later ") and copy.endswith(").txt")
    assert files["/notes.txt"] == b"first's" and files[copy] == b"later's"
    assert len(later.replica.conflicts()) == 1


def test_a_file_and_a_directory_of_one_name_are_both_kept(mounts: Mounts) -> None:
    first, later = mounts
    first.create("/x", b"1")
    later.mkdir("/x")
    later.create("/x/y", b"2")
    files = settle(mounts)
    assert files["/x"] == b"1"
    assert sorted(v for v in files.values() if v) == [b"1", b"2"]


def test_two_directories_of_one_name_become_one(mounts: Mounts) -> None:
    first, later = mounts
    for mount, name in ((first, "1"), (later, "2")):
        mount.mkdir("/d")
        mount.mkdir("/d/e")
        mount.create(f"/d/e/{name}", name.encode())
    later.chmod("/d/e", 0o700)
    files = settle(mounts)
    assert files == {"/d": None, "/d/e": None, "/d/e/1": b"1", "/d/e/2": b"2"}
    assert first.tree.inode(first.ino("/d/e")).mode & 0o777 == 0o700


def test_removing_a_directory_of_ours_leaves_anothers_of_the_same_name(mounts: Mounts) -> None:
    first, later = mounts
    first.mkdir("/d")
    later.mkdir("/d")
    later.rmdir("/d")
    assert settle(mounts) == {"/d": None}


def test_contents_changed_on_both_sides_are_both_kept(mounts: Mounts) -> None:
    first, later = mounts
    share(mounts, lambda m: m.create("/f.txt", b"common"))
    first.write("/f.txt", b"first's")
    later.write("/f.txt", b"LATER", 0)
    later.write("/f.txt", b"!", 9)
    files = settle(mounts)
    (copy,) = copies(files)
    assert files["/f.txt"] == b"first's"
    assert files[copy] == b"LATERn\0\0\0!"


def test_parts_of_one_file_changed_on_both_sides_are_not_mixed(mounts: Mounts) -> None:
    first, later = mounts
    share(mounts, lambda m: m.create("/f", b"0" * 100))
    first.write("/f", b"1", 10)
    later.write("/f", b"2", 90)
    files = settle(mounts)
    (copy,) = copies(files)
    assert files["/f"] == b"0" * 10 + b"1" + b"0" * 89
    assert files[copy] == b"0" * 90 + b"2" + b"0" * 9


def test_a_file_removed_here_and_changed_there_stays(mounts: Mounts) -> None:
    first, later = mounts
    share(mounts, lambda m: m.create("/f", b"common"))
    first.write("/f", b"changed")
    later.unlink("/f")
    assert settle(mounts) == {"/f": b"changed"}
    assert later.replica.conflicts()


def test_a_file_changed_and_removed_here_and_changed_there_stays(mounts: Mounts) -> None:
    first, later = mounts
    share(mounts, lambda m: m.create("/f", b"common"))
    first.write("/f", b"changed")
    later.write("/f", b"ours")
    later.unlink("/f")
    assert settle(mounts)["/f"] == b"changed"


def test_a_file_changed_here_and_removed_there_comes_back(mounts: Mounts) -> None:
    first, later = mounts
    share(mounts, lambda m: m.create("/f", b"common"))
    later.replica.tree.xattr(later.ino("/f"), b"user.a")
    first.unlink("/f")
    later.write("/f", b"ours")
    later.setxattr("/f", b"user.a", b"1")
    assert settle(mounts) == {"/f": b"ours"}
    assert first.tree.xattr(first.ino("/f"), b"user.a") == b"1"


def test_a_file_changed_here_comes_back_though_the_other_still_has_it_open(mounts: Mounts) -> None:
    first, later = mounts
    share(mounts, lambda m: m.create("/f", b"common"))
    ino = first.open("/f")
    first.unlink("/f")
    later.write("/f", b"ours")
    assert settle(mounts) == {"/f": b"ours"}
    first.close(ino)
    assert settle(mounts) == {"/f": b"ours"}


def test_a_link_made_here_keeps_a_file_removed_there(mounts: Mounts) -> None:
    first, later = mounts
    share(mounts, lambda m: m.create("/f", b"common"))
    share(mounts, lambda m: m.create("/g", b"open"))
    first.open("/g")
    first.unlink("/f")
    first.unlink("/g")
    later.link("/f", "/f2")
    later.link("/g", "/g2")
    assert settle(mounts) == {"/f2": b"common", "/g2": b"open"}


def test_a_file_brought_back_can_be_removed_again(mounts: Mounts) -> None:
    first, later = mounts
    share(mounts, lambda m: m.create("/f", b"common"))
    first.unlink("/f")
    later.write("/f", b"ours")
    later.link("/f", "/g")
    later.unlink("/g")
    later.unlink("/f")
    assert settle(mounts) == {}


def test_a_directory_removed_there_comes_back_if_something_was_put_into_it(mounts: Mounts) -> None:
    first, later = mounts

    def make(mount: Mount) -> None:
        mount.mkdir("/d")
        mount.mkdir("/d/e")
        mount.chmod("/d/e", 0o711)

    share(mounts, make)
    first.rmdir("/d/e")
    first.rmdir("/d")
    later.create("/d/e/f", b"ours")
    assert settle(mounts) == {"/d": None, "/d/e": None, "/d/e/f": b"ours"}
    assert first.tree.inode(first.ino("/d/e")).mode & 0o777 == 0o711


def test_a_file_and_its_directory_removed_there_come_back_for_what_was_written(
    mounts: Mounts,
) -> None:
    first, later = mounts

    def make(mount: Mount) -> None:
        mount.mkdir("/d")
        mount.create("/d/f", b"common")

    share(mounts, make)
    first.unlink("/d/f")
    first.rmdir("/d")
    later.write("/d/f", b"ours")
    assert settle(mounts) == {"/d": None, "/d/f": b"ours"}


def test_a_directory_filled_there_and_removed_here_stays(mounts: Mounts) -> None:
    first, later = mounts
    share(mounts, lambda m: m.mkdir("/d"))
    first.create("/d/f", b"1")
    later.rmdir("/d")
    assert settle(mounts) == {"/d": None, "/d/f": b"1"}
    assert later.replica.conflicts()


def test_of_two_renames_the_first_stands(mounts: Mounts) -> None:
    first, later = mounts
    share(mounts, lambda m: m.create("/f", b"common"))
    first.rename("/f", "/one")
    later.rename("/f", "/two")
    assert settle(mounts) == {"/one": b"common"}
    assert later.replica.conflicts()


def test_a_rename_of_a_file_removed_there_brings_it_back(mounts: Mounts) -> None:
    first, later = mounts
    share(mounts, lambda m: m.create("/f", b"common"))
    share(mounts, lambda m: m.create("/g", b"open"))
    first.open("/g")
    first.unlink("/f")
    first.unlink("/g")
    later.rename("/f", "/f2")
    later.rename("/g", "/g2")
    assert settle(mounts) == {"/f2": b"common", "/g2": b"open"}


def test_what_is_moved_over_a_file_changed_there_goes_beside_it(mounts: Mounts) -> None:
    first, later = mounts

    def make(mount: Mount) -> None:
        mount.create("/f", b"common")
        mount.create("/new", b"")

    share(mounts, make)
    first.write("/f", b"first's")
    later.write("/new", b"later's")
    later.rename("/new", "/f")
    files = settle(mounts)
    (copy,) = copies(files)
    assert files == {"/f": b"first's", copy: b"later's"}


def test_what_is_moved_over_a_name_made_there_goes_beside_it(mounts: Mounts) -> None:
    first, later = mounts
    share(mounts, lambda m: m.create("/new", b"common"))
    first.create("/f", b"first's")
    later.rename("/new", "/f")
    files = settle(mounts)
    (copy,) = copies(files)
    assert files == {"/f": b"first's", copy: b"common"}


def test_saving_by_rename_over_a_file_removed_there_just_works(mounts: Mounts) -> None:
    first, later = mounts
    share(mounts, lambda m: m.create("/f", b"common"))
    first.unlink("/f")
    later.write("/f", b"ours")
    later.create("/f.tmp", b"newer")
    later.rename("/f.tmp", "/f")
    assert settle(mounts) == {"/f": b"newer"}


def test_renames_that_would_make_a_loop_leave_the_later_in_its_place(mounts: Mounts) -> None:
    first, later = mounts

    def make(mount: Mount) -> None:
        for name in ("/a", "/b"):
            mount.mkdir(name)
            mount.create(name + "/f", name.encode())

    share(mounts, make)
    first.rename("/a", "/b/a")
    later.rename("/b", "/a/b")
    files = settle(mounts)
    assert sorted(v for v in files.values() if v) == [b"/a", b"/b"]
    assert len(copies(files)) == 4  # the directory, its file, and the other directory in it
    assert later.replica.conflicts()


def test_a_loop_into_a_name_that_was_taken_is_settled_too(mounts: Mounts) -> None:
    first, later = mounts

    def make(mount: Mount) -> None:
        mount.mkdir("/a")
        mount.mkdir("/b")

    share(mounts, make)
    first.create("/a/b", b"in the way")
    first.rename("/a", "/b/a")
    later.rename("/b", "/a/b")
    files = settle(mounts)
    assert b"in the way" in files.values()


def test_a_directory_moved_over_one_that_was_filled_goes_beside_it(mounts: Mounts) -> None:
    first, later = mounts

    def make(mount: Mount) -> None:
        mount.mkdir("/empty")
        mount.mkdir("/full")
        mount.create("/full/f", b"1")

    share(mounts, make)
    first.create("/empty/g", b"2")
    later.rename("/full", "/empty")
    files = settle(mounts)
    assert files["/empty/g"] == b"2"
    assert b"1" in files.values()


def test_an_exchange_that_no_longer_fits_changes_nothing(mounts: Mounts) -> None:
    first, later = mounts

    def make(mount: Mount) -> None:
        mount.create("/a", b"a")
        mount.create("/b", b"b")

    share(mounts, make)
    first.rename("/a", "/c")
    later.rename("/a", "/b", RENAME_EXCHANGE)
    assert settle(mounts) == {"/c": b"a", "/b": b"b"}


def test_the_later_attributes_stand(mounts: Mounts) -> None:
    first, later = mounts
    share(mounts, lambda m: m.create("/f", b"common"))
    first.chmod("/f", 0o600)
    first.setxattr("/f", b"user.a", b"1", 1)
    later.chmod("/f", 0o640)
    later.setxattr("/f", b"user.a", b"2", 1)
    settle(mounts)
    inode = first.tree.inode(first.ino("/f"))
    assert inode.mode & 0o777 == 0o640
    assert first.tree.xattr(inode.ino, b"user.a") == b"2"


def test_attributes_of_a_file_removed_there_are_dropped(mounts: Mounts) -> None:
    first, later = mounts
    share(mounts, lambda m: m.create("/f", b"common"))
    first.unlink("/f")
    later.chmod("/f", 0o640)
    assert settle(mounts) == {}


def test_conflict_names_fit_and_are_counted(mounts: Mounts) -> None:
    long = "ü" * 120 + ".document"
    for mount in mounts:
        for round_ in range(3):
            mount.create("/" + long, f"{mount.replica.host}{round_}".encode())
            mount.rename("/" + long, f"/{round_}")
            mount.create("/" + long, b"")
            mount.unlink("/" + long)
        mount.create("/" + long, mount.replica.host.encode())
    files = settle(mounts)
    for path in files:
        name = os.fsencode(path[1:])
        assert len(name) <= 255
        name.decode()
    assert {b"first", b"later", b"later2", b"first2"} <= set(files.values())


def test_a_batch_undone_and_done_again_many_times_is_settled_once(mounts: Mounts) -> None:
    first, later = mounts
    share(mounts, lambda m: m.create("/f", b"common"))
    later.write("/f", b"ours")
    later.create("/g", b"ours too")
    for n in range(5):
        first.write("/f", b"%d" % n)
        first.publish()
        later.follow()
    files = settle(mounts)
    assert files["/f"] == b"4" and files["/g"] == b"ours too"
    assert len(copies(files)) == 1


def test_what_only_the_log_holds_is_taken_up_beside_anothers_change(tmp_path: Path) -> None:
    first, later = pair(tmp_path)
    share((first, later), lambda m: m.create("/f", b"0" * 10))
    later.write("/f", b"one", 0)
    later.replica.close_batch()
    later.write("/f", b"two", 5)
    later.replica.close_batch()
    later.replica.oplog.sync()
    later.replica.db.close()
    for path in (tmp_path / "later").glob("replica.db*"):
        path.unlink()
    first.write("/f", b"first's")
    first.publish()
    again = Mount(first.journal, tmp_path / "later", 2, "later")
    assert again.replica.recover() >= 2
    files = settle((first, again))
    assert files["/f"] == b"first's"
    (copy,) = copies(files)
    data = files[copy]
    assert data is not None and data[:3] == b"one" and data[5:8] == b"two"
    first.replica.close()
    again.replica.close()


# ---- anything at all ------------------------------------------------------------------------

NAMES = ("a", "b", "c", "d")
paths = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map(lambda p: "/" + "/".join(p))
steps = st.one_of(
    st.tuples(st.just("create"), paths),
    st.tuples(st.just("create"), paths),
    st.tuples(st.just("mkdir"), paths),
    st.tuples(st.just("mkdir"), paths),
    st.tuples(st.just("write"), paths),
    st.tuples(st.just("write"), paths),
    st.tuples(st.just("append"), paths),
    st.tuples(st.just("unlink"), paths),
    st.tuples(st.just("rmdir"), paths),
    st.tuples(st.just("rename"), paths, paths),
    st.tuples(st.just("rename"), paths, paths),
    st.tuples(st.just("exchange"), paths, paths),
    st.tuples(st.just("link"), paths, paths),
    st.tuples(st.just("chmod"), paths),
    st.tuples(st.just("open"), paths),
    st.tuples(st.just("close")),
    st.tuples(st.just("seal")),
)


class Program:
    """Does random things on a mount and knows which of what it wrote must still be somewhere."""

    def __init__(self, mount: Mount) -> None:
        self.mount = mount
        self.count = 0
        self.tokens: dict[int, set[bytes]] = {}

    def token(self) -> bytes:
        self.count += 1
        return f"<{self.mount.replica.host} {self.count}>".encode()

    def do(self, step: tuple[str, ...]) -> None:
        mount = self.mount
        try:
            match step:
                case ("create", path):
                    mount.create(path, self.token())
                case ("mkdir", path):
                    mount.mkdir(path)
                case ("write", path):
                    mount.write(path, self.token())
                case ("append", path):
                    ino = mount.ino(path)
                    mount.write_ino(ino, self.token(), mount.tree.inode(ino).size)
                case ("unlink", path):
                    mount.unlink(path)
                case ("rmdir", path):
                    mount.rmdir(path)
                case ("rename", old, new):
                    mount.rename(old, new)
                case ("exchange", old, new):
                    mount.rename(old, new, RENAME_EXCHANGE)
                case ("link", old, new):
                    mount.link(old, new)
                case ("chmod", path):
                    mount.chmod(path, 0o700)
                case ("open", path):
                    if mount.tree.inode(mount.ino(path)).is_file:
                        mount.open(path)
                case ("close",):
                    for ino in list(mount.opened):
                        mount.close(ino)
                case ("seal",):
                    mount.replica.close_batch()
        except Refused:
            pass

    def written(self) -> set[bytes]:
        """What of its own writing lies in files that this program sees now."""
        mark = f"<{self.mount.replica.host} ".encode()
        found = set()
        for data in self.mount.files().values():
            for part in (data or b"").split(b">"):
                if part.startswith(mark):
                    found.add(part + b">")
        return found


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(steps, max_size=15),
    st.lists(st.tuples(st.booleans(), steps), max_size=30),
    st.lists(st.tuples(st.booleans(), steps), max_size=15),
)
def test_two_mounts_always_agree_and_lose_nothing(
    tmp_path_factory: pytest.TempPathFactory,
    common: list[tuple[str, ...]],
    apart: list[tuple[bool, tuple[str, ...]]],
    again: list[tuple[bool, tuple[str, ...]]],
) -> None:
    first, later = mounts = pair(tmp_path_factory.mktemp("mounts"))
    try:
        programs = (Program(first), Program(later))
        for step in common:
            programs[0].do(step)
        first.publish()
        later.follow()
        for round_ in (apart, again):
            before = [program.written() for program in programs]
            for who, step in round_:
                programs[who].do(step)
            fresh = [program.written() - old for program, old in zip(programs, before, strict=True)]
            files = settle(mounts)
            everything = b"".join(data for data in files.values() if data)
            # What one wrote, and saw until the end, is there: whatever the other did meanwhile.
            for tokens in fresh:
                for token in tokens:
                    assert token in everything, f"{token!r} is lost"
    finally:
        first.replica.close()
        later.replica.close()


def git_directory(mount: Mount, path: str) -> None:
    """What `git init --bare` makes, as far as it tells a git directory."""
    for name in ("", "/objects", "/refs", "/refs/heads"):
        mount.mkdir(path + name)
    mount.create(f"{path}/HEAD", b"ref: refs/heads/main")
    mount.create(f"{path}/refs/heads/main", b"0")


@pytest.mark.parametrize("path", ["/work/.git", "/bare.git", "/any name"])
def test_conflicts_in_a_git_directory_go_where_git_does_not_read(mounts: Mounts, path: str) -> None:
    first, later = mounts

    def make(mount: Mount) -> None:
        mount.mkdir("/work")
        git_directory(mount, path)

    share(mounts, make)
    for mount, data in ((first, b"1"), (later, b"2")):
        # As git does: a lock file, renamed over the branch; and a new one.
        mount.create(f"{path}/refs/heads/main.lock", data)
        mount.rename(f"{path}/refs/heads/main.lock", f"{path}/refs/heads/main")
        mount.create(f"{path}/refs/heads/new", data)
        mount.write(f"{path}/HEAD", data)
    files = settle(mounts)
    assert files[f"{path}/refs/heads/main"] == files[f"{path}/refs/heads/new"] == b"1"
    assert {name for name in files if name.startswith(f"{path}/refs/heads/")} == {
        f"{path}/refs/heads/main", f"{path}/refs/heads/new",
    }  # fmt: skip
    found = copies(files)
    assert {name.partition(" (conflict")[0].removeprefix(f"{path}/") for name in found} == {
        "megafs-conflicts/refs__heads__main",
        "megafs-conflicts/refs__heads__new",
        "megafs-conflicts/HEAD",
    }
    assert all(files[name] == b"2" for name in found)
    assert all(f"{path}/megafs-conflicts/" in note for _, note in later.replica.conflicts())
    # A conflict among the conflicts stays there; beside a repository it stays beside.
    for mount, data in ((first, b"3"), (later, b"4")):
        mount.write(found[0], data)
        mount.create("/work/file", data)
    files = settle(mounts)
    assert len(copies(files, f"{path}/megafs-conflicts/")) == 4
    assert len(copies(files, "/work/file (conflict")) == 1


def test_a_file_in_the_place_of_gits_conflicts_changes_nothing(mounts: Mounts) -> None:
    first, later = mounts

    def make(mount: Mount) -> None:
        git_directory(mount, "/r")
        mount.create("/r/megafs-conflicts", b"a file")

    share(mounts, make)
    first.write("/r/HEAD", b"1")
    later.write("/r/HEAD", b"2")
    files = settle(mounts)
    (copy,) = copies(files)
    assert copy.startswith("/r/HEAD (conflict") and files[copy] == b"2"
    assert files["/r/megafs-conflicts"] == b"a file"
