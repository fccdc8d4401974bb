"""contrib/demo.sh chooses a mountpoint that is nobody else's, wherever the checkout lies."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A stand-in for the program: it notes what it is asked for, and ends the demo at the mount.
STAND_IN = """#!/bin/sh
echo "$@" >>"$DEMO_ASKED"
[ "$1" != mount ] || exit 7
"""


def demo(home: Path, checkout: Path, *args: str) -> tuple[int, str, list[str]]:
    (checkout / "contrib").mkdir(parents=True, exist_ok=True)
    script = checkout / "contrib" / "demo.sh"
    script.write_text((ROOT / "contrib" / "demo.sh").read_text())
    programs = checkout / ".venv" / "bin"
    programs.mkdir(parents=True, exist_ok=True)
    (programs / "megafs").write_text(STAND_IN)
    (programs / "megafs").chmod(0o755)
    (programs / "python").write_text("#!/bin/sh\necho /usr/share\n")
    (programs / "python").chmod(0o755)
    asked = home / "asked"
    asked.unlink(missing_ok=True)
    done = subprocess.run(
        ["sh", str(script), *args],
        env={"PATH": "/usr/bin:/bin", "HOME": str(home), "DEMO_ASKED": str(asked)},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = asked.read_text().splitlines() if asked.exists() else []
    return done.returncode, done.stdout + done.stderr, lines


@pytest.mark.parametrize("name", ["megafs", "megafs-demo", "src/megafs", "a b", "x|y&z", "[1]*"])
def test_any_folder_name_works(tmp_path: Path, name: str) -> None:
    checkout = tmp_path / name
    code, said, asked = demo(tmp_path, checkout)
    assert code == 7, said
    (mounted,) = [line for line in asked if line.startswith("mount ")]
    expected = "megafs-demo" if checkout.parts[len(tmp_path.parts)] == "megafs" else "megafs"
    if name == "src/megafs":
        expected = "megafs"
    assert f"file://{checkout}/.demo/store {tmp_path}/{expected} " in mounted
    assert f"$ megafs mount file://{checkout}/.demo/store" in said


def test_files_of_the_user_are_left_alone(tmp_path: Path) -> None:
    for name in ("megafs", "megafs-demo"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").touch()
    (tmp_path / "megafs-demo-2").touch()
    _, _, asked = demo(tmp_path, tmp_path / "checkout")
    assert f"{tmp_path}/megafs-demo-3 " in asked[-1]
    code, said, _ = demo(tmp_path, tmp_path / "checkout", str(tmp_path / "megafs"))
    assert code == 1
    assert "is not empty; give another one" in said
