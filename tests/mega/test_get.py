"""`megafs get` of links to files: verified, resumed, and what it says when MEGA says no."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from megafs.mega.transfer import part_of
from tests.mega.conftest import Run
from tests.services.mega import reference
from tests.services.mega.server import MegaServer, Owner

MTIME = 1_600_000_000
CONTENT = os.urandom(5_000_000)
CONGESTED = "deadline=3s"


@pytest.fixture
def link(owner: Owner) -> str:
    return owner.link(owner.put("/Papers/thesis.pdf", CONTENT, mtime=MTIME))


def test_a_file_is_fetched_with_its_name_and_time(run: Run, link: str, tmp_path: Path) -> None:
    done = run("get", link)
    assert done.returncode == 0, done.stderr
    there = tmp_path / "thesis.pdf"
    assert there.read_bytes() == CONTENT
    assert int(there.stat().st_mtime) == MTIME
    assert b"verified" in done.stderr and not part_of(there).exists()
    again = run("get", link)
    assert again.returncode == 0 and b"there already" in again.stderr


@pytest.mark.parametrize("size", [0, 1, 131_072, 131_073, 393_216])
def test_every_size(run: Run, owner: Owner, tmp_path: Path, size: int) -> None:
    link = owner.link(owner.put("/file", CONTENT[:size]))
    assert run("get", link, "out").returncode == 0
    assert (tmp_path / "out").read_bytes() == CONTENT[:size]


def test_where_it_goes(run: Run, link: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    assert run("get", link, "in").returncode == 0
    assert (tmp_path / "in" / "thesis.pdf").stat().st_size == len(CONTENT)
    assert run("get", link, "in/other").returncode == 0
    assert (tmp_path / "in" / "other").stat().st_size == len(CONTENT)
    assert run("get", link, "-").stdout == CONTENT
    nowhere = run("get", link, "no/such/place")
    assert nowhere.returncode == 2 and b"is no directory" in nowhere.stderr
    (tmp_path / "mine").write_bytes(b"mine")
    taken = run("get", link, "mine")
    assert taken.returncode == 18 and (tmp_path / "mine").read_bytes() == b"mine"


def test_it_is_listed_and_not_fetched(run: Run, link: str, mega: MegaServer) -> None:
    shown = run("get", "--list", link)
    assert b"thesis.pdf" in shown.stdout and b"5 MB" in shown.stdout
    assert not mega.ranges


@pytest.mark.parametrize("form", ["old_link", "password_link"])
def test_the_other_forms_of_a_link(run: Run, owner: Owner, tmp_path: Path, form: str) -> None:
    file = owner.put("/a.bin", CONTENT[:1000])
    if form == "old_link":
        assert run("get", owner.old_link(file)).returncode == 0
    else:
        link = owner.password_link(file, "open sesame")
        wrong = run("get", link, MEGAFS_PASSPHRASE="sesame")
        assert wrong.returncode == 12 and b"not the password" in wrong.stderr
        assert run("get", link, MEGAFS_PASSPHRASE="open sesame").returncode == 0
    assert (tmp_path / "a.bin").read_bytes() == CONTENT[:1000]


def test_a_link_comes_on_standard_input(run: Run, link: str, tmp_path: Path) -> None:
    assert run("get", "-", "out", stdin=link + "\n").returncode == 0
    assert (tmp_path / "out").stat().st_size == len(CONTENT)


def test_it_goes_on_where_it_stopped(run: Run, link: str, mega: MegaServer, tmp_path: Path) -> None:
    part = part_of(tmp_path / "thesis.pdf")
    part.write_bytes(CONTENT[:3_000_005])
    assert run("get", link).returncode == 0
    assert (tmp_path / "thesis.pdf").read_bytes() == CONTENT
    assert min(first for _, first, _ in mega.ranges) == 3_000_000


def test_what_another_file_left_is_fetched_anew(run: Run, link: str, tmp_path: Path) -> None:
    part_of(tmp_path / "thesis.pdf").write_bytes(b"x" * 100_000)
    assert run("get", link).returncode == 0
    assert (tmp_path / "thesis.pdf").read_bytes() == CONTENT


@pytest.mark.parametrize("dest", [(), ("-",)])
def test_one_bit_of_another_is_found(
    run: Run, owner: Owner, mega: MegaServer, tmp_path: Path, dest: tuple[str, ...]
) -> None:
    file = owner.put("/a.bin", CONTENT)
    mega.tampered.add(file.handle)
    done = run("get", owner.link(file), *dest)
    assert done.returncode == 16
    assert b"MAC of the whole file does not fit" in done.stderr
    assert not (tmp_path / "a.bin").exists()


def test_every_wrong_key_is_one_error(run: Run, owner: Owner) -> None:
    public, key = owner.link_parts(owner.put("/a.bin", CONTENT[:10]))
    said = set()
    for at in (0, 15, 16, 24, 31):
        wrong = bytearray(key)
        wrong[at] ^= 1
        done = run("get", f"https://mega.nz/file/{public}#{reference.b64(bytes(wrong))}")
        said.add((done.returncode, done.stderr))
    assert len(said) == 1
    ((code, text),) = said
    assert code == 12 and b"the key does not open this" in text


def test_no_key_is_shown(run: Run, link: str) -> None:
    key = link.partition("#")[2]
    for command in (
        ["get", link[:-2]],
        ["get", link],
        ["get", link.replace("mega.nz/file/", "mega.nz/file/AAAAAAAA")],
    ):
        done = run(*command)
        assert key[:20].encode() not in done.stdout + done.stderr


# What MEGA answers


@pytest.mark.parametrize(
    ("code", "says"),
    [(-9, b"it was removed"), (-16, b"has blocked"), (-11, b"does not allow")],
)
def test_a_no_is_said_at_once(
    run: Run, link: str, mega: MegaServer, code: int, says: bytes
) -> None:
    mega.refuse("g", code)
    done = run("get", link)
    assert done.returncode in (13, 16) and says in done.stderr
    assert done.stderr.count(b"\n") == 1
    assert mega.commands == ["g"]


def test_congestion_is_waited_for(run: Run, link: str, mega: MegaServer) -> None:
    mega.refuse("g", -3, -3, -18)
    mega.fail("g", 500)
    assert run("get", link, "-").stdout == CONTENT
    assert mega.commands == ["g"] * 5 and len(set(mega.numbers)) == 1


@pytest.mark.parametrize("code", [-3, -4])
def test_congestion_without_an_end_is_said(
    run: Run, link: str, mega: MegaServer, code: int
) -> None:
    mega.refuse("g", *[code] * 30)
    done = run("get", "-o", CONGESTED, link)
    assert done.returncode == 14
    assert (b"congested" if code == -3 else b"no more requests") in done.stderr


def test_a_lost_reply_is_asked_for_with_the_same_number(
    run: Run, link: str, mega: MegaServer
) -> None:
    mega.lose_reply("g")
    assert run("get", link, "-").stdout == CONTENT
    assert mega.commands == ["g", "g"]
    assert len(mega.numbers) == 2 and len(set(mega.numbers)) == 1


def test_proof_of_work_is_done(run: Run, link: str, mega: MegaServer) -> None:
    mega.hashcash["g"] = 255
    assert run("get", link, "-").stdout == CONTENT
    assert mega.solved >= 1


def test_it_can_be_interrupted_and_ps_shows_no_key(
    link: str, mega: MegaServer, environ: dict[str, str], tmp_path: Path
) -> None:
    mega.hashcash["g"] = 0  # years of work
    process = subprocess.Popen(
        [sys.executable, "-m", "megafs", "get", "-o", f"api={mega.url}", link],
        cwd=tmp_path,
        env=environ,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    with process.stderr:
        assert b"proof of work" in process.stderr.readline()
        shown = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        assert b"https://mega.nz/file/" in shown
        assert link.partition("#")[2].encode() not in shown
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130


def test_busy_storage_servers_and_half_bodies(run: Run, link: str, mega: MegaServer) -> None:
    mega.storage_faults = [500, 429, 403, 404]
    mega.half_bodies = 2
    assert run("get", link, "-").stdout == CONTENT


def test_the_transfer_quota(run: Run, link: str, mega: MegaServer, tmp_path: Path) -> None:
    mega.transfer_left = 3000
    begin = time.monotonic()
    done = run("get", link)
    assert done.returncode == 14 and b"some again in 50 min" in done.stderr
    assert time.monotonic() - begin < 30
    assert not (tmp_path / "thesis.pdf").exists()
    mega.transfer_left = None
    assert run("get", link).returncode == 0


def test_a_short_wait_for_the_quota_is_waited(run: Run, link: str, mega: MegaServer) -> None:
    mega.transfer_left = 1
    threading.Timer(0.8, lambda: setattr(mega, "transfer_left", None)).start()
    assert run("get", link, "-").stdout == CONTENT


def test_the_api_is_nobody_elses(run: Run, link: str) -> None:
    for host in ("http://192.0.2.1", "https://example.org", "ftp://127.0.0.1", "127.0.0.1"):
        done = run("get", "-o", f"api={host}", link)
        assert done.returncode == 2 and b"api=" in done.stderr


def test_what_is_no_link_is_said(run: Run) -> None:
    done = run("get", "https://example.org/file/x#secret")
    assert done.returncode == 2 and b"not a link that is known here" in done.stderr
    assert b"secret" not in done.stderr
