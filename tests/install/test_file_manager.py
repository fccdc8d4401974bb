"""The entry for the menus of file managers: the link reaches the clipboard, and no command line."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "contrib" / "file-managers" / "megafs-copy-link"


MEGAFS = """[ "$4" = /out/side ] && {
    echo "megafs: /out/side does not lie in a mount" >&2
    exit 2
}
echo "https://page.example/#1.id.secret-of-$(basename "$4")"
"""


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """Programs that write down what they are given."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (
        ("wl-copy", f'cat >"{tmp_path}/clipboard"; echo "$@" >>"{tmp_path}/arguments"'),
        ("notify-send", f'echo "$@" >>"{tmp_path}/told"'),
        (
            "megafs",
            MEGAFS,
        ),
    ):
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return folder


def run(programs: Path, *paths: str) -> int:
    environ = {"PATH": f"{programs}:/usr/bin:/bin", "WAYLAND_DISPLAY": "wayland-0", "HOME": "/"}
    return subprocess.run([str(SCRIPT), *paths], env=environ, check=False).returncode


def test_links_go_to_the_clipboard(programs: Path, tmp_path: Path) -> None:
    assert run(programs, "/m/one file", "/m/-odd") == 0
    assert (tmp_path / "clipboard").read_text() == (
        "https://page.example/#1.id.secret-of-one file\nhttps://page.example/#1.id.secret-of--odd\n"
    )
    for shown in ("arguments", "told"):
        assert "secret" not in (tmp_path / shown).read_text()


def test_what_cannot_be_shared_is_said(programs: Path, tmp_path: Path) -> None:
    assert run(programs, "/out/side") == 1
    assert "does not lie in a mount" in (tmp_path / "told").read_text()
    assert not (tmp_path / "clipboard").exists()
    assert run(programs) == 2
    os.remove(programs / "wl-copy")
    assert run(programs, "/m/x") == 1
    assert "install one of them" in (tmp_path / "told").read_text()
